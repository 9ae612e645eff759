"""Bad input: one clear error that names view, file and column, in Feast's class if it has one."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FileSource
from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError

from steadfeast.featurestore.errors import (
    EntityFrameError,
    NotFoundError,
    ResourceError,
    SourceError,
    UserError,
)
from steadfeast.featurestore.offline import DuckDBOfflineStore
from support.offline_oracle import INSTANT, at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Repo


def history() -> pa.Table:
    times = pa.array([at(0), at(1)], INSTANT)
    return pa.table({"k": [1, 2], "ts": times, "made": times, "a": [1.0, 2.0]})


def asked(**columns: Any) -> pa.Table:
    return pa.table({"k": [1], "event_timestamp": pa.array([at(2)], INSTANT)} | columns)


@pytest.fixture
def ready(repo: Repo) -> Repo:
    repo.view(history(), ["a"], created="made")
    return repo


def replace(repo: Repo, table: pa.Table) -> None:
    repo.write(table, "source-0.parquet")


def test_missing_file(ready: Repo) -> None:
    (ready.folder / "source-0.parquet").unlink()
    with pytest.raises(SourceError, match=r"'v': .*source-0\.parquet: there is no such file") as e:
        ready.join(asked(), ["v:a"])
    assert (e.value.view, e.value.column) == ("v", "")
    assert e.value.location.endswith("source-0.parquet")


def test_empty_folder(repo: Repo) -> None:
    repo.view("folder", ["a"]) if (repo.folder / "folder").mkdir() else None
    with pytest.raises(SourceError, match="holds no Parquet file"):
        DuckDBOfflineStore.pull_all_from_table_or_query(
            repo.store.config, FileSource(path="folder", timestamp_field="ts"), ["k"], ["a"], "ts"
        )


@pytest.mark.parametrize("column", ["k", "ts", "made", "a"])
def test_missing_column(ready: Repo, column: str) -> None:
    replace(ready, history().drop_columns(column))
    with pytest.raises(SourceError, match=rf"'v': .*column '{column}': there is no such") as e:
        ready.join(asked(), ["v:a"])
    assert e.value.column == column


@pytest.mark.parametrize("column", ["ts", "made"])
def test_time_column_of_another_type(ready: Repo, column: str) -> None:
    at_fault = history().schema.get_field_index(column)
    replace(ready, history().set_column(at_fault, column, pa.array(["x", "y"])))
    with pytest.raises(SourceError, match=f"column '{column}': holds VARCHAR, not times"):
        ready.join(asked(), ["v:a"])


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"not a parquet file at all", b"PAR1" + b"x" * 99]
)
def test_unreadable_footer(ready: Repo, content: bytes) -> None:
    (ready.folder / "source-0.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=r"'v': .*source-0\.parquet: ") as e:
        ready.join(asked(), ["v:a"])
    assert "\n" not in str(e.value)


def test_damaged_data_behind_a_good_footer(ready: Repo) -> None:
    path = ready.folder / "source-0.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"source-0\.parquet"):
        ready.join(asked(), ["v:a"])


def test_entity_frame_without_times(ready: Repo) -> None:
    with pytest.raises(EntityTimestampInferenceException) as e:
        ready.join(pd.DataFrame({"k": [1], "x": [2]}), ["v:a"])
    assert isinstance(e.value, EntityFrameError)
    assert "'event_timestamp'" in str(e.value)


def test_entity_frame_with_two_times(ready: Repo) -> None:
    times = pa.array([at(0)], INSTANT)
    with pytest.raises(EntityTimestampInferenceException, match="several could be: 'x', 'y'"):
        ready.join(pa.table({"k": [1], "x": times, "y": times}), ["v:a"])


def test_one_time_column_of_any_name_will_do(ready: Repo) -> None:
    frame = asked().rename_columns(["k", "when"])
    assert ready.join(frame, ["v:a"])["a"].to_pylist() == [1.0]


@pytest.mark.parametrize("times", [["soon"], [5], [{"x": 1}]])
def test_unparsable_time(ready: Repo, times: list[Any]) -> None:
    for frame in (
        pa.table({"k": [1], "event_timestamp": times}),
        pd.DataFrame({"k": [1], "event_timestamp": pd.Series(times, dtype=object)}),
    ):
        if times == [5] and isinstance(frame, pd.DataFrame):
            continue  # pandas reads numbers as nanoseconds
        with pytest.raises(EntityFrameError, match="'event_timestamp': has a time that"):
            ready.join(frame, ["v:a"])


def test_texts_of_mixed_zones_are_parsed(ready: Repo) -> None:
    texts = ["2024-01-01T02:00:00+02:00", "2023-12-31 23:59:59Z", "2024-01-01", None]
    for kind in (object, "string"):
        frame = pd.DataFrame({"k": [1] * 4, "event_timestamp": pd.Series(texts, dtype=kind)})
        assert ready.join(frame, ["v:a"])["a"].to_pylist() == [1.0, None, 1.0, None]


def test_missing_join_key(ready: Repo) -> None:
    with pytest.raises(FeastEntityDFMissingColumnsError) as e:
        ready.join(asked().rename_columns(["other", "event_timestamp"]), ["v:a"])
    assert isinstance(e.value, EntityFrameError)
    assert "lacks 'k'" in str(e.value)


def test_join_key_of_another_kind(ready: Repo) -> None:
    with pytest.raises(EntityFrameError, match="'k': holds string, but 'k' of view 'v' holds BIG"):
        ready.join(asked(k=["1"]), ["v:a"]).to_pylist()
    with pytest.raises(EntityFrameError, match="is not a whole number"):
        ready.join(asked(k=[1.5]), ["v:a"])
    assert ready.join(asked(k=[1.0]), ["v:a"])["a"].to_pylist() == [1.0]


def test_column_with_a_features_name(ready: Repo) -> None:
    with pytest.raises(EntityFrameError, match="'a': has the name of a feature of view 'v'"):
        ready.join(asked(a=[5]), ["v:a"])
    found = ready.join(asked(a=[5]), ["v:a"], full_feature_names=True)
    assert (found["a"].to_pylist(), found["v__a"].to_pylist()) == ([5], [1.0])


def test_column_that_comes_twice(ready: Repo) -> None:
    frame = pa.table([[1], [1], pa.array([at(2)], INSTANT)], names=["k", "k", "event_timestamp"])
    with pytest.raises(EntityFrameError, match="two columns named 'k'"):
        ready.join(frame, ["v:a"])


@pytest.mark.parametrize("text", ["SELEKT 1", "SELECT * FROM nowhere", "CREATE TABLE t (i INT)"])
def test_bad_query(ready: Repo, text: str) -> None:
    with pytest.raises(EntityFrameError, match=r"the query failed|not one query"):
        ready.join(text, ["v:a"])


def test_not_a_frame(ready: Repo) -> None:
    with pytest.raises(EntityFrameError, match="is a list"):
        ready.join([1], ["v:a"])


def test_feature_that_does_not_exist(ready: Repo) -> None:
    view = ready.views["v"]
    with pytest.raises(NotFoundError, match=r"no feature in view 'v' 'b'; did you mean a\?"):
        DuckDBOfflineStore.get_historical_features(
            ready.store.config, [view], ["v:b"], asked(), ready.store.registry, "tests"
        )


def test_rows_that_do_not_fit(ready: Repo) -> None:
    store = DuckDBOfflineStore()
    config, view = ready.store.config, ready.views["v"]
    with pytest.raises(ValueError, match=r"\['k', 'ts', 'made'\] are not the source's"):
        store.offline_write_batch(config, view, history().drop_columns("a"), None)
    text = history().set_column(3, "a", pa.array(["x", "y"]))
    with pytest.raises(SourceError, match=r"'v': .*the rows do not fit"):
        store.offline_write_batch(config, view, text, None)


def test_out_of_spill_space(make_repo: Callable[..., Repo], tmp_path: Path) -> None:
    repo = make_repo(
        memory_limit="40MiB",
        temp_directory=str(tmp_path / "spill"),
        max_temp_directory_size="1MiB",
        threads=1,
    )
    rows = 600_000
    times = pa.array(np.arange(rows) * 10**6).cast(INSTANT)
    repo.view(pa.table({"k": np.arange(rows) % 1000, "ts": times, "a": np.zeros(rows)}), ["a"])
    frame = pa.table({"k": np.arange(rows) % 1000, "event_timestamp": times})
    with pytest.raises(ResourceError) as e:
        repo.join(frame, ["v:a"])
    assert e.value.memory_limit == "40.0 MiB"
    assert str(tmp_path / "spill") in str(e.value)
    assert list((tmp_path / "spill").iterdir()) == []


def test_errors_are_users_errors_without_a_driver_trace(ready: Repo) -> None:
    (ready.folder / "source-0.parquet").unlink()
    with pytest.raises(UserError) as e:
        ready.join(asked(), ["v:a"])
    assert "duckdb" not in "".join(traceback.format_exception_only(e.value))
