"""Values of columns tagged `pii` are compared and never shown, whatever is said of them."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from steadfeast.featurestore.errors import ManifestError
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift.data_quality import figures
from steadfeast.monitor.drift.detector import Level, detect
from steadfeast.monitor.drift.reference import Reference, build_reference
from steadfeast.monitor.profiles.distribution import distributions
from steadfeast.monitor.profiles.profile import Window, profile
from support.drift_world import training_set

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS, ROWS = 28, 400
PERSON = "Ada L."
AMOUNT = 918273.0
CONFIG = MonitorConfig(service="s", model="m", min_rows=10)


def _rows(days, *, share, amount):
    random = np.random.default_rng(7)
    many = days * ROWS
    at = [START + timedelta(days=1) * (i / ROWS) for i in range(many)]
    name = np.where(random.random(many) < share, PERSON, "others")
    return pa.table(
        {
            "event_timestamp": pa.array(at, pa.timestamp("us", tz="UTC")),
            "name": name,
            "late": np.zeros(many),
            "amount": amount + random.normal(size=many),
        }
    )


@pytest.fixture
def reference_of(tmp_path):
    def made(config=CONFIG):
        table = _rows(DAYS, share=0.2, amount=AMOUNT)
        path = training_set(tmp_path, table, features=("name", "amount"))
        manifest = json.loads(path.read_text())
        for column in ("name", "amount"):
            manifest["columns"][column]["pii"] = True
        path.write_text(json.dumps(manifest))
        return build_reference(duckdb.connect(), path, config)

    return made


def test_drift_of_personal_columns_is_seen_and_its_values_are_not_said(reference_of):
    reference = Reference.from_json(reference_of().to_json())
    now = profile(_rows(1, share=0.9, amount=AMOUNT + 50).to_batches(), reference.edges)
    window = Window(START, START + timedelta(days=1), now.rows)
    verdicts = detect(reference, now, window, CONFIG)
    assert {v.feature for v in verdicts if v.level is Level.DRIFT} >= {"name", "amount"}
    said = repr(
        [asdict(v) for v in verdicts]
        + [asdict(f) for f in figures(now)]
        + [asdict(d) for d in distributions(reference.profile, now)]
    )
    assert "group 1" in said
    for value in (PERSON, "others'", "9182", "9183"):
        assert value not in said


def test_neither_names_nor_extremes_of_personal_columns_are_kept(reference_of):
    reference = reference_of()
    now = profile(_rows(1, share=0.9, amount=AMOUNT + 50).to_batches(), reference.edges)
    for kept in (reference.to_json(), json.dumps(reference.edges.to_json()), now.to_json()):
        assert PERSON not in kept
        assert '"others"' not in kept
    for one in (reference.profile, now):
        for name in ("name", "amount"):
            assert (one.columns[name].minimum, one.columns[name].maximum) == (None, None)
    share = now.columns["name"].counts / ROWS
    assert sorted(share.tolist()) == pytest.approx([0, 0.1, 0.9], abs=0.06)


def test_a_personal_column_is_no_segment(reference_of):
    with pytest.raises(ManifestError, match="name is tagged pii"):
        reference_of(CONFIG.model_copy(update={"segments": ("name",)}))
