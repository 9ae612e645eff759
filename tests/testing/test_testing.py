"""What a user's tests find with `steadfeast.testing`: faults that are planted in a real project."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.featurestore.starter import Template, create
from steadfeast.testing import (
    Case,
    SandboxError,
    assert_point_in_time,
    assert_same_row_by_row,
    assert_serves_what_training_sees,
    open_sandbox,
    values_at,
)

ROOT = Path(__file__).parents[2]
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
KNOWN = NOON + timedelta(minutes=5)
CUSTOMERS = [{"customer": number} for number in (1, 2, 3)]


def row(customer, visits, spend):
    return {
        "customer": customer,
        "visits": visits,
        "spend": spend,
        "event_timestamp": NOON,
        "created": KNOWN,
    }


ROWS = {"activity": [row(1, 4, 20.0), row(2, 0, 5.0)]}


@pytest.fixture
def project(tmp_path):
    create(tmp_path / "shop", Template.BINARY, now=NOON)
    return tmp_path / "shop"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def pytest_of(folder, *files):
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def test_the_sandbox_leaves_the_project_alone_and_has_the_rows_of_the_test(project, tmp_path):
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with open_sandbox(project / "steadfeast.yaml", tmp_path / "box", ROWS, until=KNOWN) as store:
        assert values_at(store, "purchase", {"customer": 1}, KNOWN) == {
            "visits": 4,
            "spend": 20.0,
            "spend_per_visit": 5.0,
        }
        assert_serves_what_training_sees(store, "purchase", CUSTOMERS, at=KNOWN)
        assert_same_row_by_row(store, "purchase", CUSTOMERS, at=KNOWN)
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert {name: text for name, text in after.items() if "__pycache__" not in str(name)} == before


def test_a_project_on_redis_is_tested_without_one(project, tmp_path):
    edit(
        project / "feature_store.yaml",
        "  type: steadfeast.SQLiteOnlineStore\n  path: data/online.db",
        "  type: steadfeast.RedisOnlineStore\n  url: redis://nowhere.invalid:1",
    )
    with open_sandbox(project / "steadfeast.yaml", tmp_path / "box", ROWS, until=KNOWN) as store:
        assert_serves_what_training_sees(store, "purchase", CUSTOMERS, at=KNOWN)


def test_a_wrong_value_is_named_with_its_keys_and_its_time(project, tmp_path):
    with open_sandbox(project / "steadfeast.yaml", tmp_path / "box", ROWS, until=KNOWN) as store:
        wrong = Case(KNOWN, {"customer": 2}, {"visits": 0, "spend": 6.0})
        message = "customer=2 at 2024-03-10T12:05:00+00:00: spend is 5.0, expected 6.0"
        with pytest.raises(AssertionError, match=re.escape(message)):
            assert_point_in_time(store, "purchase", [wrong])
        with pytest.raises(NotFoundError, match="did you mean spend"):
            assert_point_in_time(store, "purchase", [Case(KNOWN, {"customer": 1}, {"spent": 1})])
        for nothing in (
            lambda: assert_point_in_time(store, "purchase", []),
            lambda: assert_serves_what_training_sees(store, "purchase", [], at=KNOWN),
            lambda: assert_same_row_by_row(store, "purchase", CUSTOMERS[:1], at=KNOWN),
        ):
            with pytest.raises(AssertionError, match=r"there is no|nothing to|two rows or more"):
                nothing()


def test_an_on_demand_view_that_looks_at_other_rows_is_found(project, tmp_path):
    edit(project / "features.py", 'inputs["visits"].clip(lower=1)', 'inputs["spend"].mean()')
    with (
        open_sandbox(project / "steadfeast.yaml", tmp_path / "box", ROWS, until=KNOWN) as store,
        pytest.raises(AssertionError, match=r"customer=1: spend_per_visit is 1\.6 among others"),
    ):
        assert_same_row_by_row(store, "purchase", CUSTOMERS, at=KNOWN)


def test_an_online_value_that_training_does_not_see_is_found(project, tmp_path):
    with open_sandbox(project / "steadfeast.yaml", tmp_path / "box", ROWS, until=KNOWN) as store:
        later = {"event_timestamp": [NOON + timedelta(minutes=1)], "created": [KNOWN]}
        store.write_online("activity", {"customer": [1], "visits": [9], "spend": [1.0], **later})
        with pytest.raises(AssertionError, match="visits is served as 9, training sees 4"):
            assert_serves_what_training_sees(store, "purchase", CUSTOMERS, at=KNOWN)


@pytest.mark.parametrize(
    ("rows", "path", "error", "problem"),
    [
        ({"activty": []}, "", NotFoundError, "did you mean activity"),
        ({"activity": [{"visit": 1}]}, "", SandboxError, "did you mean visits"),
        ({"activity": [row(1, "many", 1.0)]}, "", SandboxError, "a row does not fit"),
        ({}, "/srv/activity.parquet", SandboxError, "named relative to the repo"),
    ],
)
def test_what_cannot_be_tested_is_refused_by_name(rows, path, error, problem, project, tmp_path):
    if path:
        edit(project / "features.py", "data/sources/activity.parquet", path)
    with (
        pytest.raises(error, match=problem),
        open_sandbox(project / "steadfeast.yaml", tmp_path / "box", rows),
    ):
        pass


def test_the_tests_of_a_new_project_pass_before_anything_is_applied_and_find_a_fault(tmp_path):
    create(tmp_path / "shop", Template.REGRESSION, now=NOON)
    done = pytest_of(tmp_path / "shop", "test_features.py")
    assert "4 passed" in done.stdout, done.stdout
    edit(tmp_path / "shop/features.py", "timedelta(days=3)", "timedelta(days=4)")
    done = pytest_of(tmp_path / "shop", "test_features.py")
    assert "expected None" in done.stdout
    assert "1 failed, 3 passed" in done.stdout


def test_the_snippet_of_the_guide_runs_in_a_new_project(project):
    guide = (ROOT / "docs/guide/testing.md").read_text()
    snippet = re.search(
        r"<!-- snippet: test_features.py -->\n```python\n(.*?)```", guide, re.DOTALL
    )
    (project / "test_guide.py").write_text(snippet[1])
    done = pytest_of(project, "test_guide.py")
    assert "1 passed" in done.stdout, done.stdout


def test_a_test_outside_any_project_is_told(tmp_path):
    (tmp_path / "test_alone.py").write_text(
        'pytest_plugins = ["steadfeast.testing.fixtures"]\n\ndef test_it(sandbox): ...\n'
    )
    done = pytest_of(tmp_path, "test_alone.py")
    assert "there is no steadfeast.yaml in its folder or above" in done.stdout
