"""The listing of a log's folder, against listing it anew each time."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast.featurestore.served_log import files
from steadfeast.featurestore.served_log.files import Listing

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OLD = (1.0, 1.0)


def at(second: int) -> datetime:
    return EPOCH + timedelta(seconds=second)


def put(folder, first, last, name="x"):
    path = folder / f"{first * 10**6}-{last * 10**6}-{name}.parquet"
    path.touch()
    return path


def naive(folder, start, end):
    found = []
    for path in folder.iterdir():
        if path.suffix == ".parquet" and not path.name.startswith("."):
            first, last = (int(one) for one in path.name.split("-")[:2])
            if first < end * 10**6 and last >= start * 10**6:
                found.append((first, last, path.name))
    return [folder / name for _, _, name in sorted(found)]


steps = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 30), st.sampled_from("abc"), st.booleans()),
    max_size=12,
)


@given(steps, st.tuples(st.integers(0, 60), st.integers(0, 40)))
@settings(max_examples=60)
def test_a_listing_that_is_kept_says_what_a_new_one_does(tmp_path_factory, changes, asked):
    """Files come, overlap, go and come again; hidden and half-written ones are none."""
    folder = tmp_path_factory.mktemp("log")
    listing = Listing(folder)
    (folder / ".1-2-hidden.parquet").touch()
    (folder / "collected.json").touch()
    start, length = asked
    for first, length_of, name, gone in changes:
        path = put(folder, first, first + length_of, name)
        if gone:
            path.unlink()
        assert listing.between(at(start), at(start + length)) == naive(
            folder, start, start + length
        )
        everything = naive(folder, 0, 10**6)
        newest = listing.newest()
        if newest is None:
            assert not everything
        else:
            lasts = [int(one.name.split("-")[1]) for one in everything]
            assert newest[0] == max(lasts)
            assert newest[1] in everything
            assert newest[1].name.split("-")[1] == str(newest[0])


@pytest.fixture
def looked(monkeypatch, tmp_path):
    """How often the test's folder was listed, and how many names were read."""
    seen = {"folders": 0, "names": 0}
    listdir, parsed = os.listdir, files._parsed

    def folders(folder):
        seen["folders"] += Path(folder) == tmp_path  # others may list theirs meanwhile
        return listdir(folder)

    def names(name):
        seen["names"] += 1
        return parsed(name)

    monkeypatch.setattr(files.os, "listdir", folders)
    monkeypatch.setattr(files, "_parsed", names)
    return seen


def test_a_folder_that_has_not_changed_is_not_listed_again(tmp_path, looked):
    for second in range(100):
        put(tmp_path, second, second)
    os.utime(tmp_path, OLD)  # as if the last file had come long ago
    listing = Listing(tmp_path)
    for second in range(100):
        assert len(listing.between(at(second), at(second + 1))) == 1
    assert listing.newest()[0] == 99 * 10**6
    assert looked == {"folders": 1, "names": 100}
    put(tmp_path, 100, 100)
    assert len(listing.between(at(99), at(101))) == 2
    assert looked["names"] == 101, "of a folder that has changed only new names are read"


def test_a_folder_that_has_just_changed_is_not_trusted(tmp_path):
    """Two files within the clock's grain leave the same time on the folder."""
    listing = Listing(tmp_path)
    put(tmp_path, 1, 1)
    stamp = tmp_path.stat().st_mtime_ns
    assert len(listing.between(at(0), at(9))) == 1
    put(tmp_path, 2, 2)
    os.utime(tmp_path, ns=(stamp, stamp))
    assert len(listing.between(at(0), at(9))) == 2


def test_few_files_are_looked_at_for_a_short_stretch_of_a_long_log(tmp_path):
    rng = np.random.default_rng(1)
    for second in range(500):
        put(tmp_path, second, second + int(rng.integers(0, 3)))
    listing = Listing(tmp_path)
    for start in range(0, 500, 37):
        assert listing.between(at(start), at(start + 2)) == naive(tmp_path, start, start + 2)


def test_a_folder_may_come_later_and_go(tmp_path):
    listing = Listing(tmp_path / "later")
    assert listing.newest() is None
    assert listing.between(at(0), at(9)) == []
    (tmp_path / "later").mkdir()
    path = put(tmp_path / "later", 1, 2)
    assert listing.newest() == (2 * 10**6, path)
    path.unlink()
    (tmp_path / "later").rmdir()
    assert listing.newest() is None
