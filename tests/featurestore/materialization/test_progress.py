"""Progress is kept with what it describes: lost, changed or shared, online is what the source says.

The right values are written down by hand or come from `newest`, a loop over rows in plain Python.
"""

import threading
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steadfeast import Store
from steadfeast.featurestore.errors import LostRowsError, StoreUnavailableError
from steadfeast.featurestore.tables import micros
from support.small_repo import MICROS, VIEW, SmallRepo, hour, rows, served, trained

LATER = datetime(2099, 1, 1, tzinfo=UTC)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
MICROS_OF_FIVE = micros(hour(5))
TWO = rows((1, hour(1), 11), (2, hour(2), 22))


REDIS = pytest.param("redis", marks=pytest.mark.service("redis-server"))


@pytest.fixture
def repo(online, tmp_path):
    """A repo of one view on each store in turn, with two rows in its source."""
    options = {name: str(value).lower() if value in (True, False) else value
               for name, value in online.options.items()}  # fmt: skip
    made = SmallRepo(tmp_path / "repo", online=options)
    made.kind, made.options = online.kind, online.options
    made.write(TWO)
    return made


def mark_what_is_lost(repo):
    path = repo.folder / "feature_store.yaml"
    text = path.read_text().replace("online_store:\n", "online_store:\n  when_lost: mark\n")
    path.write_text(text)


def i1(store):
    (check,) = [check for check in store.audit("svc").checks if check.invariant == "I1"]
    return check


def stored_rows(store):
    view = store.feast.get_feature_view("view")
    return sum(batch.num_rows for batch in store.online.scan(store.feast.config, view))


def lose(repo):
    """Have the online store lose everything."""
    if repo.kind == "sqlite":
        for path in repo.folder.parent.glob("online.db*"):
            path.unlink()
        time.sleep(0.05)  # reads look at the file fifty times a second
        return
    with redis.Redis.from_url(repo.options["url"]) as client:
        client.flushall()


def test_a_store_that_lost_its_rows_is_refused_and_filled_from_the_start(repo):
    with Store.open(repo.config) as server, Store.open(repo.config) as store:
        server.apply()
        assert store.materialize(hour(5)).notes == {"view": "filled from the start"}
        assert served(server, hour(5)) == served(store, hour(5)) == {"v": [11, 22]}
        lose(repo)
        for one in (server, store):
            with pytest.raises(LostRowsError, match=r"'view'.*materialize"):
                served(one, hour(5))
        with Store.open(repo.config) as stranger, pytest.raises(LostRowsError, match="'view'"):
            served(stranger, hour(5))
        # Rows that are streamed meanwhile, and definitions applied again, do not hide the loss.
        store.write_online("view", rows((3, hour(4), 33)))
        store.apply()
        with pytest.raises(LostRowsError, match="'view'"):
            served(server, hour(5))
        assert store.materialize(hour(6)) == {"view": 2}
        assert served(server, hour(6), (1, 2, 3)) == {"v": [11, 22, 33]}


def test_by_configuration_what_is_lost_is_marked(repo):
    path = repo.folder / "feature_store.yaml"
    path.write_text(
        path.read_text().replace("online_store:\n", "online_store:\n  when_lost: mark\n")
    )
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(5))
        lose(repo)
        got = store.online_features("svc", [{"k": 1}, {"k": 2}], request_time=hour(5))
        assert got.tally().tolist() == [2, 0, 0, 0, 0]
        assert got.to_dict() == {"k": [1, 2], "v": [None, None]}
        assert got.statuses["v"].tolist() == [0, 0]
        by_feast = store.feast.get_online_features(["view:v"], [{"k": 1}]).proto
        assert list(by_feast.results[1].statuses) == [0]
        store.materialize(hour(5))
        got = store.online_features("svc", [{"k": 1}, {"k": 9}], request_time=hour(5))
        assert got.statuses["v"].tolist() == [1, 3]


def test_torn_down_or_removed_and_added_again_a_view_is_filled_from_the_start(repo):
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(5))
        repo.define("")
        store.apply()
        repo.define(VIEW)
        store.apply()
        assert store.materialize(hour(6)) == {"view": 2}
        assert served(store, hour(6)) == {"v": [11, 22]}
        store.feast.teardown()
    with Store.open(repo.config) as store:
        store.apply()
        assert store.materialize(hour(6)) == {"view": 2}
        assert served(store, hour(6)) == {"v": [11, 22]}


CHANGES = {
    "source": ("data/s.parquet", "data/t.parquet", {"v": [1, 2]}),
    "field_mapping": ('at")', 'at", field_mapping={"w": "v"})', {"v": [110, 220]}),
    "features w": ("dtype=Int64)]", 'dtype=Int64), Field(name="w", dtype=Int64)]',
                   {"v": [11, 22], "w": [110, 220]}),
    "features v": ("dtype=Int64)]", "dtype=Float64)]", {"v": [11.0, 22.0]}),
    "timestamp_field": ('"at")', '"later")', {"v": [11, 22]}),
    "created_timestamp_column": ('"at")', '"at", created_timestamp_column="later")',
                                 {"v": [None, 22]}),
    "ttl_us": ("days=30", "days=31", {"v": [11, 22]}),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("online", ["sqlite", REDIS], indirect=True)
def test_what_no_longer_matches_is_filled_anew_and_said(repo, what):
    old, new, right = CHANGES[what]
    later = pa.array([hour(7), hour(2)], MICROS)
    repo.write(TWO.append_column("later", later))
    repo.write(rows((1, hour(1), 1), (2, hour(2), 2)), "t")
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(5))
        before = store.standing("view").generation
        repo.define(VIEW.replace(old, new))
        store.apply()
        done = store.materialize(hour(6))
        assert what.split()[-1] in done.notes["view"]
        assert done.notes["view"].startswith("filled anew from the start: ")
        assert store.standing("view").generation != before
        at = hour(6 if what != "timestamp_field" else 8)
        if what == "timestamp_field":  # one of its rows is known at 7 only
            store.materialize(at)
        assert served(store, at) == trained(store, at) == right
        assert store.materialize(at).notes == {}  # and from there on it goes on
        assert i1(store).outcome == "holds"


@pytest.mark.parametrize("online", ["sqlite", REDIS], indirect=True)
def test_rows_that_were_streamed_under_other_definitions_are_not_merged_with_the_first_fill(repo):
    with Store.open(repo.config) as store:
        store.apply()
        store.write_online("view", rows((1, hour(3), 5), (3, hour(3), 33)))
        repo.define(VIEW.replace('at")', 'at", field_mapping={"w": "v"})'))
        store.apply()
        store.materialize(hour(5))
        assert served(store, hour(5), (1, 2, 3)) == {"v": [110, 220, None]}
        assert i1(store).outcome == "holds"


def test_a_first_fill_that_was_cut_off_leaves_no_row_of_other_definitions(repo):
    many = rows(*((key, hour(1), key) for key in range(1, 200_000)))
    repo.write(many)
    with Store.open(repo.config) as store:
        store.apply()

        def cut_off(_: int) -> None:
            raise KeyboardInterrupt

        view = store.feast.get_feature_view("view")
        with pytest.raises(KeyboardInterrupt):
            store._mover().step(view, None, MICROS_OF_FIVE, tell=cut_off)
        assert stored_rows(store) > 0
        repo.write(TWO, "t")
        repo.define(VIEW.replace("data/s.parquet", "data/t.parquet"))
        store.apply()
        assert store.materialize(hour(5)) == {"view": 2}
        assert served(store, hour(5), (1, 2, 3)) == {"v": [11, 22, None]}
        assert i1(store).outcome == "holds"


@pytest.mark.parametrize("online", ["sqlite", REDIS], indirect=True)
def test_a_rebuild_replaces_what_was_streamed_before_the_first_fill_too(repo):
    with Store.open(repo.config) as store:
        store.apply()
        store.write_online("view", rows((1, hour(1), 99), (3, hour(3), 33)))
        store.materialize(hour(5), rebuild=True)
        assert served(store, hour(5), (1, 2, 3)) == {"v": [11, 22, None]}
        assert i1(store).outcome == "holds"


FOR_EVER = VIEW.replace("timedelta(days=30)", "timedelta(0)")


def test_a_mark_never_runs_ahead_of_now(repo):
    repo.define(FOR_EVER)
    with Store.open(repo.config) as store:
        store.apply()
        done = store.materialize(LATER)
        assert "2099-01-01T00:00:00+00:00 is yet to come" in done.notes["view"]
        assert store.watermark("view") <= datetime.now(UTC)
        now = datetime.now(UTC)
        repo.write(pa.concat_tables([TWO, rows((1, now, 12))]))
        store.materialize(datetime.now(UTC))
        assert served(store, datetime.now(UTC)) == {"v": [12, 22]}
        assert i1(store).outcome == "holds"


def test_writers_move_a_mark_forward_only(repo):
    steps = [hour(n) for n in (9, 3, 7, 5, 1, 8)]
    with Store.open(repo.config) as first, Store.open(repo.config) as second:
        first.apply()
        first.materialize(hour(6))
        second.materialize(hour(4))
        assert first.watermark("view") == second.watermark("view") == hour(6)
        repo.write(pa.concat_tables([TWO, rows((1, hour(5), 15), (2, hour(8), 28))]))
        threads = [
            threading.Thread(target=store.materialize, args=(step,))
            for step, store in zip(steps, (first, second) * 3, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in (first, second):
            assert store.watermark("view") == hour(9)
            assert served(store, hour(9)) == {"v": [15, 28]}
            assert i1(store).outcome == "holds"


def test_a_start_after_the_mark_leaves_no_gap(repo):
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(1))
        store.materialize(hour(9), since=hour(8))
        assert served(store, hour(9)) == {"v": [11, 22]}


def test_what_the_source_says_now_replaces_what_is_online(repo):
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(5))
        store.write_online("view", rows((4, hour(3), 44)))
        repo.write(rows((1, hour(1), 7), (3, hour(3), 33)))  # corrected, deleted, and new
        done = store.materialize(hour(6), rebuild=True)
        assert done.notes == {"view": "replaced by what the source says, as asked"}
        keys = (1, 2, 3, 4)
        assert served(store, hour(6), keys) == trained(store, hour(6), keys)
        assert served(store, hour(6), keys) == {"v": [7, None, 33, None]}
        repo.write(rows((1, hour(1), 5)))
        store.materialize(hour(4), since=BEGINNING)  # an older window is merged
        assert served(store, hour(6), keys) == {"v": [7, None, 33, None]}
        store.materialize(hour(6), since=BEGINNING)
        assert served(store, hour(6), keys) == {"v": [5, None, None, None]}
        assert store.watermark("view") == hour(6)
        repo.write(rows())
        store.materialize(hour(6), rebuild=True)
        assert served(store, hour(6), keys) == {"v": [None] * 4}


def test_a_rebuild_that_fails_leaves_what_was_served(repo):
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(5))
        write = store.online.write_batch

        def broken(*arguments, **options):
            write(*arguments, **options)
            raise StoreUnavailableError("the store", "went away")

        store.online.write_batch = broken
        with pytest.raises(StoreUnavailableError, match="went away"):
            store.materialize(hour(6), rebuild=True)
        del store.online.write_batch
        assert served(store, hour(6)) == {"v": [11, 22]}
        assert store.watermark("view") == hour(5)
        repo.write(rows((1, hour(1), 7)))
        store.materialize(hour(6), rebuild=True)
        assert served(store, hour(6)) == {"v": [7, None]}


def test_rows_streamed_during_a_rebuild_are_there_afterwards(repo):
    with Store.open(repo.config) as store, Store.open(repo.config) as stream:
        store.apply()
        store.materialize(hour(5))
        write = store.online.write_batch

        def meanwhile(*arguments, **options):
            stream.write_online("view", rows((1, hour(7), 17), (5, hour(7), 57)))
            return write(*arguments, **options)

        store.online.write_batch = meanwhile
        store.materialize(hour(6), rebuild=True)
        del store.online.write_batch
        for one in (store, stream):
            assert served(one, hour(8), (1, 2, 5)) == {"v": [17, 22, 57]}
            assert served(one, hour(6), (1, 2, 5)) == {"v": [11, 22, None]}


# Rows ahead of the clock ---------------------------------------------------------------------


def test_a_row_ahead_hides_nothing_and_waits(repo):
    soon = timedelta(seconds=5)
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(5))
        store.write_online("view", rows((1, hour(6) + soon, 12)))
        assert served(store, hour(6)) == trained(store, hour(6)) == {"v": [11, 22]}
        assert served(store, hour(6) + soon) == {"v": [12, 22]}
        far = datetime(2090, 1, 1, tzinfo=UTC)
        store.write_online("view", rows((2, far, 99), (2, hour(7), 23)))
        assert served(store, hour(8)) == {"v": [12, 23]}
        check = i1(store)
        assert check.outcome == "holds"
        assert "2 rows online are due later" in check.note
        assert "1 rows were left out: ahead of the clock" in check.note


def test_many_rows_ahead_are_bounded_and_the_newest_that_is_due_stays(repo):
    now = datetime.now(UTC)
    repo.define(FOR_EVER)
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(hour(5))
        for minutes in range(60, 0, -1):
            store.write_online("view", rows((1, now + timedelta(minutes=minutes), minutes)))
        assert served(store, now) == {"v": [11, 22]}
        assert served(store, now + timedelta(minutes=2)) == {"v": [2, 22]}
        assert store.standing("view").left_out == 56


moments = st.integers(0, 12).map(hour)
streamed = st.lists(st.tuples(st.sampled_from([1, 2]), moments, st.integers(0, 3)), max_size=4)


def newest(history, key, at):
    """The naive answer: of the rows that are due, the greatest by event time, then by value."""
    there = [(when, value) for owner, when, value in history if owner == key and when <= at]
    return max(there)[1] if there else None


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=streamed, pushed=streamed, until=moments, order=st.randoms())
@pytest.mark.parametrize("online", ["sqlite", REDIS], indirect=True)
def test_whatever_is_streamed_in_whatever_order_the_newest_due_row_is_served(
    repo, source, pushed, until, order
):
    repo.write(rows(*source))
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(until, rebuild=True)
        mark = store.watermark("view")  # which never moves back
        settled = [row for row in source if row[1] <= mark]
        order.shuffle(pushed)
        for row in pushed:
            store.write_online("view", rows(row))
        for at in [max(mark, hour(number)) for number in range(13)]:
            right = [newest([*settled, *pushed], key, at) for key in (1, 2)]
            assert served(store, at) == {"v": right}
        # Once the source says it too, and it is materialized, nothing waits any more.
        repo.write(rows(*source, *pushed))
        store.materialize(hour(13), rebuild=True)
        assert served(store, hour(13)) == trained(store, hour(13))


# Redis ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("online", [REDIS], indirect=True)
@pytest.mark.parametrize("mark", [False, True])
def test_a_redis_that_may_drop_rows_is_not_trusted(repo, mark):
    if mark:
        mark_what_is_lost(repo)
    with redis.Redis.from_url(repo.options["url"]) as client:
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            with Store.open(repo.config) as store:
                store.apply()
                store.materialize(hour(5))
                if mark:
                    got = store.online_features("svc", [{"k": 1}, {"k": 9}], request_time=hour(5))
                    assert got.to_dict()["v"] == [11, None]
                    assert got.statuses["v"].tolist() == [1, 0]
                else:
                    with pytest.raises(LostRowsError, match="maxmemory-policy is allkeys-lru"):
                        served(store, hour(5))
            client.config_set("maxmemory-policy", "volatile-lru")  # which spares rows
            with Store.open(repo.config) as store:
                assert served(store, hour(5)) == {"v": [11, 22]}
        finally:
            client.config_set("maxmemory-policy", "noeviction")
