"""Writing to a source: what is not whole has a name that every sweep knows, and goes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource

from steadfeast.featurestore.offline import writing
from steadfeast.featurestore.tables import abandoned, sweep

ROWS = pa.table({"k": [1, 2], "day": ["a", "b"]})


@pytest.fixture
def written(monkeypatch):
    """Every place that a Parquet file is written to, in order."""
    places = []
    write, to_dataset, writer = pq.write_table, pq.write_to_dataset, pq.ParquetWriter

    def note(path):
        places.append(Path(path))
        return path

    monkeypatch.setattr(pq, "write_table", lambda table, path, **o: write(table, note(path), **o))
    monkeypatch.setattr(
        pq,
        "write_to_dataset",
        lambda table, root_path, **o: to_dataset(table, root_path=note(root_path), **o),
    )
    monkeypatch.setattr(
        pq, "ParquetWriter", lambda path, *rest, **o: writer(note(path), *rest, **o)
    )
    return places


def source(path: Path) -> FileSource:
    return FileSource(name="s", path=str(path), timestamp_field="at")


WRITES = {
    "a new file": lambda root: writing.append(ROWS, source(root / "s.parquet"), None, "v"),
    "a file that becomes a folder": lambda root: [
        writing.append(ROWS, source(root / "s.parquet"), None, "v") for _ in range(2)
    ],
    "a file of a folder": lambda root: writing.append(ROWS, source(root / "s"), None, "v"),
    "partitions": lambda root: writing.log(ROWS, root / "s", ["day"]),
    "a log": lambda root: writing.log(ROWS, root / "s", None),
    "a data set in one file": lambda root: persisted(root / "s.parquet"),
    "a data set in a folder": lambda root: [persisted(root / "s"), persisted(root / "s")],
    "a data set in place of a folder": lambda root: [
        (root / "s.parquet").mkdir(parents=True),
        persisted(root / "s.parquet"),
    ],
}


def persisted(path: Path) -> None:
    batches = pa.RecordBatchReader.from_batches(ROWS.schema, ROWS.to_batches())
    writing.persist(batches, source(path), path)


@pytest.mark.parametrize("what", WRITES)
def test_what_is_being_written_is_known_to_the_sweep_and_nothing_is_left(tmp_path, written, what):
    root = tmp_path / "data"
    WRITES[what](root)
    assert written
    for place in written:
        parts = place.relative_to(root).parts
        assert any(part.startswith(".") and part.endswith(".half") for part in parts)
    assert [path for path in root.rglob("*") if path.name.startswith(".")] == []
    assert sweep(root) == []
    whole = [path for path in root.rglob("*.parquet") if path.is_file()]
    assert {row["k"] for path in whole for row in pq.read_table(path).to_pylist()} == {1, 2}
    # A source is not the owner's alone: others may read it as they read other new files.
    (tmp_path / "other").touch()
    rights = (tmp_path / "other").stat().st_mode
    assert {path.stat().st_mode for path in whole} == {rights}


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    left = [
        tmp_path / ".s.0.half" / "part-0.parquet",
        tmp_path / "s" / ".parts.0.half" / "day=a" / "part-0.parquet",
        tmp_path / "s" / ".part-1.parquet.0.half",
        tmp_path / ".other.0.half",  # of another source, in a folder that is not ours to sweep
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a person's key")
    assert len(abandoned(tmp_path)) == len(left)
    writing.append(ROWS, source(tmp_path / "s"), None, "v")
    assert [path for path in left if path.exists()] == left[-1:]
