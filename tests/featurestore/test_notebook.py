"""What a notebook shows of the objects that people hold: real ones, and words that are markup."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from steadfeast import Store
from steadfeast.featurestore import notebook

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
MARKUP = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = set(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert attrs == []
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def shown(thing):
    """What a person reads of it; its tags are only those of a table."""
    text = thing._repr_html_()
    assert len(text) < 5000
    reader = Reader(text)
    assert reader.tags <= {"div", "b", "br", "small", "table", "thead", "tbody", "tr", "th", "td"}
    return " ".join(reader.words)


@pytest.fixture
def stocked(shop):
    rows = [
        {"user_id": number, "at": NOON, "written": NOON, "spend": 4.0, "visits": 1, "city": MARKUP}
        for number in range(8)
    ]
    shop.write(rows, [])
    with Store.open(shop.config) as store:
        store.apply()
        store.materialize(NOON)
        yield store


def test_a_store_says_where_it_is_and_what_it_has(stocked):
    assert repr(stocked).startswith("<Store project shop, repo ")
    assert "\n" not in repr(stocked)
    said = shown(stocked)
    assert all(word in said for word in ("purchase", "small", "users", "user_id", "1d", "none"))


def test_online_features_show_a_few_rows_and_no_markup_of_theirs(stocked):
    keys = {"user_id": list(range(9)), "item_id": ["i"] * 9, "amount": [1.0] * 9}
    got = stocked.online_features("purchase", keys, request_time=NOON)
    contract = stocked.contract("purchase").sha256[:12]
    assert repr(got).startswith("<OnlineFeatures 9 rows, 9 features: ")
    assert repr(got).endswith(f" and 4 more, contract {contract}>")
    said = shown(got)
    assert "9 rows" in said
    assert "4 more rows" in said
    assert "not found" in said
    assert MARKUP in said
    assert "<script>" not in got._repr_html_()


def test_the_repr_of_online_features_makes_no_columns(stocked):
    got = stocked.online_features("small", {"user_id": [1]}, request_time=NOON)
    was = got.packed
    repr(got)
    assert got.packed is was


def test_a_training_set_and_its_manifest_say_which_they_are(stocked):
    entities = pa.table(
        {"user_id": [1, 2], "event_timestamp": [NOON, NOON], "late": [1, 0], MARKUP: [1, 2]}
    )
    built = stocked.training_set(entities, "small", label="late")
    identity = built.manifest.id
    assert repr(built).startswith(f"<TrainingSet {identity}, small, 2 rows, 1 feature, label late,")
    assert repr(built.manifest) == repr(built).replace("TrainingSet", "Manifest")
    assert all(word in shown(built) for word in (identity, "spend", "late", MARKUP))
    said = shown(built.manifest)
    assert all(word in said for word in ("users.parquet", "feature", "label", "key", MARKUP))


def test_an_audit_says_what_came_of_each_check(stocked):
    report = stocked.audit("small")
    assert repr(report) == f"<AuditReport small, {report.outcome}, {len(report.checks)} checks>"
    said = shown(report)
    assert all(check.invariant in said and check.subject in said for check in report.checks)
    assert "nothing was logged" in said


def test_long_and_wide_data_are_cut():
    wide = pa.table({f"c{number}": ["x" * 1000] * 7 for number in range(50)})
    text = notebook.preview(wide)
    assert len(text) < 10_000
    assert "2 more rows and 30 more columns" in text
