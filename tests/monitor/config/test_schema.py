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
