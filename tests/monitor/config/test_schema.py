"""What the monitor reads of the file, beside its own section."""

from __future__ import annotations

from datetime import timedelta

import pytest

from steadfeast.featurestore.config import load_section
from steadfeast.featurestore.errors import ConfigError
from steadfeast.monitor.config.schema import load
from steadfeast.pipeline.config import PipelineConfig

FILE = """\
store: {{repo: ., data: data}}
monitor:
  state: data/monitor
  pipelines: {{training: 127.0.0.1:1}}
  monitors:
    sales:
      service: sale
      model: sale
      pipeline: training
      bucket: 1d
      performance: {{{monitor}}}
pipeline:
  state: data/pipeline
  models:
    sale: {{service: sale, {pipeline}recipe: "train:fit", label: sold}}
"""
DAY = timedelta(days=1)


def delay(tmp_path, monitor: str, pipeline: str) -> timedelta:
    path = tmp_path / "steadfeast.yaml"
    path.write_text(FILE.format(monitor=monitor, pipeline=pipeline))
    return load(path)[0].monitors["sales"].performance.label_delay


@pytest.mark.parametrize(
    ("monitor", "pipeline", "days"),
    [
        ("", "", 0),
        ("", "label_delay: 30d, ", 30),
        ("", "label_delay: 30h, ", 2),
        ("label_delay: 3d", "", 3),
        ("label_delay: 2d", "label_delay: 30h, ", 2),
    ],
)
def test_the_delay_of_labels_is_said_once(tmp_path, monitor, pipeline, days):
    assert delay(tmp_path, monitor, pipeline) == days * DAY


def test_two_delays_that_differ_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"differs from pipeline.models.sale.label_delay"):
        delay(tmp_path, "label_delay: 3d", "label_delay: 30d, ")


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "", "x" * 101])
def test_a_monitor_whose_name_leads_out_of_the_state_is_refused(tmp_path, name):
    path = tmp_path / "steadfeast.yaml"
    text = FILE.format(monitor="", pipeline="").replace("    sales:", f"    {name!r}:")
    path.write_text(text)
    with pytest.raises(ConfigError, match="monitors"):
        load(path)


@pytest.mark.parametrize("name", ["..", "../x", ".m"])
def test_a_model_whose_name_leads_out_of_the_state_is_refused(tmp_path, name):
    path = tmp_path / "steadfeast.yaml"
    text = FILE.format(monitor="", pipeline="entities: e.parquet, ")
    path.write_text(text.replace("    sale: {service", f"    {name!r}: {{service"))
    with pytest.raises(ConfigError, match=r"pipeline\.models"):
        load_section(path, "pipeline", PipelineConfig)


def configured(tmp_path, performance: str, task: str):
    path = tmp_path / "steadfeast.yaml"
    path.write_text(FILE.format(monitor=performance, pipeline=f"task: {task}, "))
    return load(path)[0].monitors["sales"].performance


@pytest.mark.parametrize(
    ("task", "fits"),
    [("multiclass", "roc_auc_ovr"), ("regression", "root_mean_squared_error"), ("ranking", "ndcg")],
)
@pytest.mark.parametrize("given", ["", "metric: roc_auc", "min_labels: 5"])
def test_a_metric_that_is_none_of_the_models_task_is_refused_with_those_that_fit(
    tmp_path, task, fits, given
):
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, given, task)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'steadfeast.yaml'}: monitor.monitors.sales.performance.")
    assert f"task {task}" in said
    assert f"these fit: {fits}" in said
    assert ("is missing" in said) == ("metric" not in given)
    assert "\n" not in said
    named = said.partition("these fit: ")[2].split(", ")
    assert all(configured(tmp_path, f"metric: {name}", task).task == task for name in named)


def test_the_default_metric_is_refused_where_performance_is_not_mentioned(tmp_path):
    path = tmp_path / "steadfeast.yaml"
    text = FILE.format(monitor="", pipeline="task: regression, ")
    path.write_text(text.replace("      performance: {}\n", ""))
    with pytest.raises(ConfigError, match=r"performance\.metric: is missing: model sale is of"):
        load(path)
    path.write_text(text.replace("performance: {}", "performance: null"))
    assert load(path)[0].monitors["sales"].performance is None


def test_a_task_is_that_of_the_pipeline(tmp_path):
    assert configured(tmp_path, "", "binary").task is None
    assert configured(tmp_path, "metric: accuracy", "multiclass").task == "multiclass"
    assert configured(tmp_path, "metric: 'mine:cost'", "regression").task == "regression"
    with pytest.raises(ConfigError, match=r"task: is binary, and pipeline.models.sale.task is reg"):
        configured(tmp_path, "task: binary", "regression")


def test_a_task_without_a_pipeline_section_needs_its_metric_too(tmp_path):
    path = tmp_path / "steadfeast.yaml"
    path.write_text(
        FILE.format(monitor="task: regression", pipeline="").partition("\npipeline:")[0]
    )
    with pytest.raises(ConfigError, match="these fit: root_mean_squared_error"):
        load(path)
