"""Which features move together, on worlds whose answer is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from steadfeast.monitor.drift.related import related, view_of
from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.profile import profile

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)


def days(seed: int, many: int = 56) -> list[pa.RecordBatch]:
    """Draw days of rows: `v__a` and `v__b` share day effects, `v__c` mirrors `v__d` row by row."""
    rng = np.random.default_rng(seed)
    drawn = []
    for day in range(many):
        season = 0.5 * np.sin(2 * np.pi * day / 7) + 0.01 * day
        effect = 0.2 * rng.standard_normal(4)
        rows = rng.standard_normal((6, 500)) + season
        mirrored = rng.standard_normal(500) + season
        drawn.append(
            pa.RecordBatch.from_pydict(
                {
                    "v__a": rows[0] + effect[0],
                    "v__b": rows[1] + effect[0],
                    "v__c": mirrored,
                    "v__d": -2 * mirrored + 0.1 * rows[2],
                    "v__alone": rows[3] + effect[1],
                    "w__a": rows[4] + effect[0],
                    "plain": rows[5] + effect[2],
                    "word": rng.choice(["x", "y"], 500).tolist(),
                    "still": np.ones(500),
                }
            )
        )
    return drawn


def found(batches: list[pa.RecordBatch]):
    names = batches[0].schema.names
    edges = edges_of(batches, names)
    return [(START + i * DAY, profile([one], edges)) for i, one in enumerate(batches)], edges


@pytest.mark.parametrize("seed", range(3))
def test_what_shares_day_effects_or_rows_moves_together(seed: int):
    """A common season and a common trend are no reason, and views are kept apart."""
    groups = related(*found(days(seed)))
    assert groups == {"v__a": "v__a", "v__b": "v__a", "v__c": "v__c", "v__d": "v__c"}


def test_a_short_reference_cannot_tell():
    assert related(*found(days(0, 10))) == {}


def test_the_view_is_what_stands_before_two_underscores():
    assert view_of("weather__temp_f") == "weather"
    assert view_of("temp_f") == ""
