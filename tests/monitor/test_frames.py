"""Two data frames compared in one call."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import steadfeast
from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.frames import FramesError

PER_DAY = 300


def days(many: int, start: str, *, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Days of rows: `x` lies at `shift`, everything else is as it always is."""
    random = np.random.default_rng(seed)
    rows = many * PER_DAY
    after = pd.to_timedelta(np.sort(random.uniform(0, many * 86_400, rows)), unit="s")
    return pd.DataFrame(
        {
            "at": (pd.Timestamp(start, tz="UTC") + after).as_unit("us"),
            "x": random.normal(shift, 1, rows),
            "y": random.normal(0, 1, rows),
            "city": random.choice(["Bonn", "<b>Cologne</b>"], rows),
            "order": np.arange(rows),
        }
    )


@pytest.fixture(scope="module")
def january():
    return days(40, "2024-01-01")


def test_what_moved_is_named_and_what_did_not_is_not(january):
    moved = days(10, "2024-03-01", shift=0.6, seed=1)
    report = steadfeast.compare(january, moved, time="at")
    assert report.calibrated
    assert report.drifted == ("x",)
    assert report.rows == (40 * PER_DAY, 10 * PER_DAY)
    table = report.to_pandas().set_index("feature")
    assert table.index[0] == "x"
    assert set(table.index) == {"x", "y", "city"}
    assert (table.loc["x", "days over"], table.loc["x", "days judged"]) == (10, 10)
    assert (table["value"] > table["limit"]).to_dict() == {"x": True, "y": False, "city": False}
    assert any("order" in note for note in report.notes)
    assert repr(report) == (
        "<DriftReport 1 of 3 features drifted, x, 12,000 reference rows, 3,000 current rows>"
    )


def test_the_same_rows_in_any_order_and_any_table_give_the_same(january):
    moved = days(10, "2024-03-01", shift=0.6, seed=1)
    shuffled = moved.sample(frac=1, random_state=0)
    shuffled["at"] = shuffled["at"].dt.tz_localize(None)
    arrow = pa.Table.from_pandas(shuffled, preserve_index=False)
    one, other = (steadfeast.compare(january, rows, time="at") for rows in (moved, arrow))
    pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas())


@pytest.mark.parametrize("time", [None, "at"])
def test_without_days_to_learn_from_no_verdict_is_given(january, time):
    """No time column; or one, and a reference of three days."""
    few = january[january["at"] < pd.Timestamp("2024-01-04", tz="UTC")]
    report = steadfeast.compare(few, days(10, "2024-03-01", shift=2, seed=1), time=time,
                                columns=["x", "y"])  # fmt: skip
    assert not report.calibrated
    assert report.drifted == ()
    table = report.to_pandas().set_index("feature")
    assert list(table.index) == ["x", "y"]
    assert table.loc["x", "value"] > 1 > table.loc["y", "value"]
    assert set(table["verdict"]) == {"unknown"}
    assert any("Limits are not known" in note for note in report.notes)
    assert "limits are not known" in repr(report)


def test_what_is_shown_is_escaped_and_values_of_people_are_not(january):
    report = steadfeast.compare(january, days(10, "2024-03-01", seed=1), time="at")
    html = report._repr_html_()
    assert "<b>Cologne" not in html
    assert "Not compared" in html
    hidden = steadfeast.compare(january, days(10, "2024-03-01"), time="at", personal=["city"])
    assert "Cologne" not in hidden._repr_html_()
    assert "Bonn" not in hidden.to_pandas().to_string()


def test_columns_of_one_side_and_an_overlap_are_said(january):
    other = january.drop(columns="y").assign(z=1.0)
    notes = " ".join(steadfeast.compare(january, other, time="at").notes)
    assert "Not in the current rows: y." in notes
    assert "Not in the reference, so not compared: z." in notes
    assert "overlap in time" in notes


@pytest.mark.parametrize(
    ("changes", "given", "kind", "said"),
    [
        ({}, {"time": "when"}, NotFoundError, "no column of reference 'when'"),
        ({}, {"time": "x"}, FramesError, "column x of reference is double, not a time"),
        ({}, {"columns": ["xx"]}, NotFoundError, "no column of the reference 'xx'; did you mean x"),
        ({}, {"keys": ["shop"]}, NotFoundError, "no column of the reference 'shop'"),
        ({}, {"statistic": "ps"}, NotFoundError, "did you mean psi"),
        ({}, {"min_rows": 0}, FramesError, "min_rows: Input should be greater than 0"),
        ({"current": 3}, {}, FramesError, "current (int) is no table"),
        ({"rows": 0}, {}, FramesError, "current has no rows"),
        ({"at": pd.NaT}, {"time": "at"}, FramesError, "column at of current is "),
    ],
)
def test_what_cannot_be_compared_is_named(january, changes, given, kind, said):
    current = january
    if "at" in changes:
        current = january.assign(at=january["at"].mask(january.index == 3))
    if "rows" in changes:
        current = january[:0]
    with pytest.raises(kind) as caught:
        steadfeast.compare(january, changes.get("current", current), **given)
    assert said in str(caught.value)
