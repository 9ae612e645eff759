"""The backtest of policies, on a small repo whose truth changes: counted by hand."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from steadfeast.backtest import Verdicts, compare
from steadfeast.backtest.command import StretchError
from steadfeast.backtest.policies import PolicyError
from steadfeast.backtest.replay import NoFirstModelError
from steadfeast.backtest.report import as_json, page, table
from steadfeast.featurestore import Store
from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.config.schema import MonitorConfig, load

DAYS, PER_DAY = 365, 12
START = datetime(2023, 1, 1, tzinfo=UTC)
POLICIES = ("never", "monthly", "90d", "triggered")

FEATURES = """from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

site = Entity(name="site", value_type=ValueType.STRING)
view = FeatureView(name="view", entities=[site], ttl=timedelta(hours=1),
    schema=[Field(name="x", dtype=Float64), Field(name="z", dtype=Float64)],
    source=FileSource(name="s", path="data/view.parquet", timestamp_field="event_timestamp"))
service = FeatureService(name="service", features=[view])
"""
TRAIN = """from pathlib import Path
from sklearn.linear_model import Ridge
from steadfeast import Fitted, frame

def train(training):
    with (Path(__file__).parent / "fits").open("a") as fits:
        fits.write("x")
    rows = frame(training.table, training.features)
    return Fitted(Ridge().fit(rows, training.table["y"].to_numpy()), training.features)
"""
STORE = """project: small
provider: local
registry: data/registry.db
offline_store: {type: steadfeast.DuckDBOfflineStore}
online_store: {type: steadfeast.SQLiteOnlineStore, path: data/online.db}
entity_key_serialization_version: 3
"""
CONFIG = """store: {repo: ., data: data}
pipeline:
  state: data/pipeline
  models:
    demand: {service: service, recipe: "train:train", entities: data/examples.parquet, label: y,
             task: regression, min_rows: 50, window: all}
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """What x is worth rises all year, so a model that is left alone gets worse."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "data").mkdir()
    rng = np.random.default_rng(3)
    rows = DAYS * PER_DAY
    at = pd.date_range(START, periods=rows, freq=f"{24 // PER_DAY}h")
    x, z = rng.normal(size=(2, rows))
    y = x * np.linspace(1, 4, rows) + z + rng.normal(size=rows) * 0.3
    view = pd.DataFrame({"site": "a", "event_timestamp": at, "x": x, "z": z})
    view.to_parquet(folder / "data" / "view.parquet")
    asked = pd.DataFrame(
        {"site": "a", "event_timestamp": at, "y": y, "known_at": at + timedelta(hours=6)}
    )
    asked.to_parquet(folder / "data" / "examples.parquet")
    for name, text in (("features.py", FEATURES), ("train.py", TRAIN),
                       ("feature_store.yaml", STORE), ("steadfeast.yaml", CONFIG)):  # fmt: skip
        (folder / name).write_text(text)
    with Store.open(folder / "steadfeast.yaml") as store:
        store.apply()
    return folder


@pytest.fixture(scope="module")
def verdict(repo):
    return compare(repo / "steadfeast.yaml", POLICIES)["demand"]


def by_name(verdict):
    return {one.replayed.name: one for one in verdict.earned}


def test_calendars_run_at_their_dates_and_know_only_what_was_known(verdict):
    found = by_name(verdict)
    # A sixth of the year is 60 days: the first model is of 2 March.
    firsts = [datetime(2023, month, 1, tzinfo=UTC) for month in range(4, 13)]
    assert [one.at for one in found["monthly"].replayed.asked] == firsts
    every = [datetime(2023, 3, 2, tzinfo=UTC) + n * timedelta(days=90) for n in (1, 2, 3)]
    assert [one.at for one in found["90d"].replayed.asked] == every
    assert not found["never"].replayed.asked
    for one in found["monthly"].replayed.asked:
        # Labels take six hours, requests come every two.
        assert one.run.known_until == one.at - timedelta(hours=6)
        assert one.run.known_since == START


def test_figures_are_of_the_model_that_served(verdict, repo):
    """Recomputed with numpy: least squares on everything before the first of each month."""
    examples = pd.read_parquet(repo / "data" / "examples.parquet")
    view = pd.read_parquet(repo / "data" / "view.parquet")
    truth, rows = examples["y"].to_numpy(), view[["x", "z"]].assign(one=1.0).to_numpy()
    at, known = examples["event_timestamp"], examples["known_at"]
    of_monthly = by_name(verdict)["monthly"].by_period
    for place, month in enumerate(range(4, 13)):
        moment = pd.Timestamp(2023, month, 1, tz="UTC")
        seen = ((known <= moment) & (at <= moment)).to_numpy()
        fit = np.linalg.lstsq(rows[seen], truth[seen], rcond=None)[0]
        asked = ((at.dt.month == month) & (at >= moment)).to_numpy()
        expected = np.sqrt(np.mean((rows[asked] @ fit - truth[asked]) ** 2))
        assert of_monthly[place + 1] == pytest.approx(expected, rel=2e-3)
    assert verdict.periods == tuple(f"2023-{month:02}" for month in range(3, 13))


def test_a_plain_calendar_is_the_recipe_alone(repo, verdict):
    """The same fits: the window is everything here, and no gate of monthly's has refused one."""
    names = ("never", "plain monthly", "plain 90d")
    found = by_name(compare(repo / "steadfeast.yaml", names)["demand"])
    plain, monthly = found["plain monthly"], by_name(verdict)["monthly"]
    assert plain.by_period == pytest.approx(monthly.by_period, rel=1e-6)
    assert plain.replayed.runs == monthly.replayed.runs == 9
    assert {one.run.fits for one in plain.replayed.asked} == {1}


def test_who_retrains_earns_more_and_triggered_is_no_calendar(verdict):
    found = by_name(verdict)
    assert verdict.measure.lower_is_better
    assert found["monthly"].figure < found["90d"].figure < found["never"].figure
    ours = found["triggered"]
    assert ours.figure < found["90d"].figure
    assert ours.replayed.runs <= found["monthly"].replayed.runs
    assert ours.against_never.low > 0
    assert found["never"].against_never is None
    assert {one.why.partition(":")[0] for one in ours.replayed.asked} <= {"schedule", "performance"}


def test_a_second_backtest_fits_only_what_is_new(repo, verdict):
    before = (repo / "fits").stat().st_size
    again = compare(repo / "steadfeast.yaml", ("never", "quarterly", "monthly"))["demand"]
    # 1 April, July and October, and the calendar's other dates were there; twice three fits less
    # the refit that monthly has done at each of the three.
    assert (repo / "fits").stat().st_size - before <= 6
    assert by_name(again)["monthly"].by_period == by_name(verdict)["monthly"].by_period


def test_late_labels_are_known_later(repo):
    late = compare(repo / "steadfeast.yaml", ("never", "90d"), label_delay=timedelta(days=30))[
        "demand"
    ]
    for one in by_name(late)["90d"].replayed.asked:
        assert one.run.known_until == one.at - timedelta(days=30, hours=6)


def test_a_notebook_shows_the_advice_and_the_table_with_every_word_escaped(verdict):
    said = Verdicts({"<b>": verdict})
    assert repr(said) == f"<Verdicts <b>: {verdict.best} of {len(verdict.earned)}>"
    assert repr(verdict).startswith(f"<Verdict {verdict.best} of ")
    text = said._repr_html_()
    assert "<b>&lt;b&gt;</b>" in text
    assert escape(verdict.advice) in text
    assert all(f"<td>{escape(one.replayed.name)}</td>" in text for one in verdict.earned)


def test_reports_say_the_same(verdict):
    told = json.loads(as_json({"demand": verdict}))["demand"]
    assert [one["name"] for one in told["policies"]] == list(POLICIES)
    assert told["recommended"] == verdict.best
    assert [one["runs"] for one in told["policies"]][:2] == [0, 9]
    html = page({"demand": verdict})
    pictures = re.findall(r"<svg.*?</svg>", html)
    assert len(pictures) == 2
    for picture in pictures:
        ET.fromstring(picture)  # noqa: S314 - our own
    assert all(name in html for name in POLICIES)
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")
    assert table(verdict, "demand").row_count == len(POLICIES)


@pytest.mark.parametrize(
    ("policies", "more", "error", "text"),
    [
        (("fortnightly",), {}, PolicyError, "'fortnightly' is no policy; give never, daily"),
        (("never",), {"model": "other"}, NotFoundError, "demand"),
        (("never",), {"start": START - timedelta(days=1)}, StretchError, "nothing to replay"),
        (("never",), {"start": START + timedelta(days=1)}, NoFirstModelError, "a later --from"),
    ],
)
def test_mistakes_are_named(repo, policies, more, error, text):
    with pytest.raises(error, match=re.escape(text)):
        compare(repo / "steadfeast.yaml", policies, **more)


def test_the_guides_settings_are_the_defaults(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "pipeline.md").read_text("utf-8")
    [text] = re.findall(r"^```yaml\n(monitor:.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    path = tmp_path / "steadfeast.yaml"
    path.write_text("store: {repo: ., data: data}\n" + text)
    monitor = load(path)[0].monitors["sale"]
    assert monitor == MonitorConfig(service="shop", model="sale", pipeline="training")
