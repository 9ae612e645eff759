"""Dashboards cannot rot: names, layout, and every query on a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from steadfeast.featurestore.server import metrics
from steadfeast.monitor.exporter.metrics import METRICS, SAMPLES
from steadfeast.pipeline.inference import metrics as inference

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
}
VARIABLES = {
    "$project": ".*",
    "$model": ".*",
    "$monitor": ".*",
    "$feature": "weather__temp",  # one at a time: the variable takes no more
    "$view": ".*",
    "$__rate_interval": "1m",
}
MOST_SERIES = 100
SERVING = {
    metrics.REQUESTS,
    metrics.ROWS,
    metrics.VALUES,
    metrics.LOGGED,
    metrics.WAITING,
    f"{metrics.AGE}_sum",
    f"{metrics.AGE}_count",
    f"{metrics.DURATION}_bucket",
    inference.REQUESTS,
    inference.ROWS,
    inference.VERSION,
    inference.NOT_SERVED,
    f"{inference.SECONDS}_bucket",
}
"""What the serving edges export; a process of its own, with names of its own."""


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            yield f"{name}: {panel['title']}", panel


def queries() -> Iterator[tuple[str, str]]:
    for title, panel in panels():
        for target in panel["targets"]:
            yield f"{title} {target['refId']}", target["expr"]


def others() -> Iterator[tuple[str, str]]:
    """Queries of annotations and variables."""
    for name, board in BOARDS.items():
        for annotation in board["annotations"]["list"]:
            yield f"{name}: {annotation['name']}", annotation["target"]["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name}: {variable['name']}", variable["query"]["query"]


def names(expr: str) -> set[str]:
    return set(re.findall(r"\bsteadfeast_[a-z0-9_]+", expr))


def filled(expr: str) -> str:
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr
    return expr


def test_the_five_are_there():
    assert set(BOARDS) == {"overview", "feature", "model", "serving", "operations"}
    assert {board["uid"] for board in BOARDS.values()} == {f"steadfeast-{name}" for name in BOARDS}


def test_generated_files_are_up_to_date():
    ran = subprocess.run(
        [sys.executable, "grafana/build.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


def test_an_edited_file_is_found_out_and_written_anew(tmp_path):
    shutil.copytree(ROOT / "grafana", tmp_path / "grafana")
    edited = tmp_path / "grafana" / "dashboards" / "model.json"
    edited.write_text("{}", encoding="utf-8")
    build = [sys.executable, str(tmp_path / "grafana" / "build.py")]
    checked = subprocess.run([*build, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "differs: grafana/dashboards/model.json" in checked.stdout
    assert "differs: docs/metrics.md" in checked.stdout  # it is not there at all
    assert edited.read_text(encoding="utf-8") == "{}"
    subprocess.run(build, check=True, capture_output=True)
    assert json.loads(edited.read_text(encoding="utf-8")) == BOARDS["model"]


@pytest.mark.parametrize("expr", [pytest.param(e, id=i) for i, e in [*queries(), *others()]])
def test_every_name_is_exported(expr):
    assert names(expr) <= {*SAMPLES, *SERVING}
    rules = (ROOT / "grafana" / "rules" / "steadfeast.rules.yml").read_text("utf-8")
    recorded = set(re.findall(r"record: (\S+)", rules))
    assert set(re.findall(r"\bsteadfeast:[a-z0-9_:]+", expr)) <= recorded


def test_every_metric_is_shown_or_listed_as_not_shown(grafana):
    """A new metric is put on a dashboard, or somebody says why not."""
    found = {name for _, expr in queries() for name in names(expr)}
    assert found >= SERVING
    shown = {SAMPLES[name].name for name in found - SERVING}
    not_shown = set(grafana("boards").NOT_SHOWN)
    assert set(METRICS) - shown == not_shown


@pytest.mark.parametrize("panel", [pytest.param(p, id=i) for i, p in panels()])
def test_every_panel_explains_itself(panel):
    assert panel["description"].endswith(".")
    assert panel["datasource"]["uid"] == "${datasource}"
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("board", [pytest.param(b, id=n) for n, b in BOARDS.items()])
def test_layout_and_links(board):
    """Panels have an id each and do not overlap; links keep time range and variables."""
    ids = [panel["id"] for panel in board["panels"]]
    assert ids == sorted(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at.get("x", 0), at.get("x", 0) + at["w"])
            for y in range(at.get("y", 0), at.get("y", 0) + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert all(link["keepTime"] and link["includeVars"] for link in board["links"])
    assert [one["type"] for one in board["templating"]["list"]][:2] == ["datasource", "query"]


def test_the_limit_is_where_red_begins():
    for _, panel in panels():
        if any("steadfeast_drift_ratio" in target["expr"] for target in panel["targets"]):
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            assert steps[-1]["value"] == 1


@pytest.mark.service("prometheus")
@pytest.mark.parametrize("expr", [pytest.param(e, id=i) for i, e in queries()])
def test_every_query_gives_data(prometheus, expr):
    series = prometheus.query(filled(expr))
    assert 0 < len(series) <= MOST_SERIES


@pytest.mark.service("prometheus")
@pytest.mark.parametrize("expr", [pytest.param(e, id=i) for i, e in others()])
def test_annotations_parse_and_variables_have_values(prometheus, expr):
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", expr)
    if asked is None:
        prometheus.query(filled(expr))  # raises when it does not parse
    else:
        values = prometheus.get(f"label/{asked[2]}/values", **{"match[]": filled(asked[1])})
        assert values


@pytest.mark.service("prometheus")
def test_prometheus_reads_what_the_state_says(prometheus, drifting):
    """The figures that arrive are the figures that were rendered."""
    found = {
        one["metric"]["feature"]: float(one["value"][1])
        for one in prometheus.query('steadfeast_drift_ratio{monitor="flights"}')
    }
    verdicts = drifting.monitors["flights"].verdicts
    assert found == {one.feature: one.ratio for one in verdicts if one.value is not None}
