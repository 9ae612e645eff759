"""Generations of a view's rows, made and removed by several at once: what is served is whole."""

import threading

import pytest

from steadfeast import Store
from steadfeast.featurestore.errors import LostRowsError, StoreUnavailableError
from steadfeast.featurestore.online.batches import space_of
from steadfeast.featurestore.online.progress import Progress
from support.small_repo import SmallRepo, hour, rows, served

KEYS = tuple(range(40))
ROWS = rows(*((key, hour(1), key * 10) for key in KEYS))
RIGHT = {"v": [key * 10 for key in KEYS]}
ONLINE = rows((1, hour(1), 7)).rename_columns({"at": "event_timestamp"})
REDIS = pytest.param("redis", marks=pytest.mark.service("redis-server"))


@pytest.fixture
def repo(online, tmp_path):
    """A repo of one view on each store in turn, whose source has a row for each of `KEYS`."""
    options = {name: str(value).lower() if value in (True, False) else value
               for name, value in online.options.items()}  # fmt: skip
    made = SmallRepo(tmp_path / "repo", online=options)
    made.kind = online.kind
    made.write(ROWS)
    return made


@pytest.mark.parametrize("online", ["sqlite", REDIS], indirect=True)
def test_several_that_rebuild_one_view_take_nothing_from_each_other(repo):
    outcomes = []

    def rebuild(store):
        for _ in range(15):
            try:
                store.materialize(hour(5), rebuild=True)
                outcomes.append("done")
            except StoreUnavailableError as error:
                assert "is being replaced by others" in str(error)  # noqa: PT017
            outcomes.append(served(store, hour(5), KEYS) == RIGHT)

    with Store.open(repo.config) as first, Store.open(repo.config) as second:
        first.apply()
        first.materialize(hour(5))
        threads = [threading.Thread(target=rebuild, args=(store,)) for store in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count(True) == 30
        assert "done" in outcomes
        for store in (first, second):
            store.materialize(hour(5), rebuild=True)
            assert served(store, hour(5), KEYS) == RIGHT
            (check,) = [c for c in store.audit("svc").checks if c.invariant == "I1"]
            assert check.outcome == "holds"


def test_a_view_torn_down_and_applied_by_others_is_missed_by_who_served_it(repo):
    with Store.open(repo.config) as server:
        server.apply()
        server.materialize(hour(5))
        assert served(server, hour(5), KEYS) == RIGHT
        with Store.open(repo.config) as other:
            other.feast.teardown()
        with Store.open(repo.config) as other:
            other.apply()
            other.write_online("view", rows((1, hour(2), 12)))
            with pytest.raises(LostRowsError, match="'view'"):
                served(server, hour(5), KEYS)
            other.materialize(hour(5))
        assert served(server, hour(5), (0, 1)) == {"v": [0, 12]}


def test_who_clears_away_leaves_what_others_have_begun_meanwhile(repo):
    # On SQLite naming a generation and clearing away others is one step, on Redis it is two.
    step = "_serve" if repo.kind == "sqlite" else "_swap"
    with Store.open(repo.config) as store, Store.open(repo.config) as other:
        store.apply()
        store.materialize(hour(5))
        config, view = other.feast.config, other.feast.get_feature_view("view")
        space, begun = space_of(config, view), []
        swap = getattr(store.online, step)

        def meanwhile(*values):
            done = swap(*values)
            if not begun:
                begun.append(other.online.begin(config, space))
                other.online.write_batch(config, view, ONLINE, place=begun[0])
            return done

        setattr(store.online, step, meanwhile)
        store.online.begin(config, space)
        assert other.online.commit(config, begun[0], Progress(until=0))
        assert served(store, hour(5), (1, 2)) == {"v": [7, None]}


def test_what_a_writer_adds_to_a_generation_that_others_replaced_goes_with_it(repo):
    with Store.open(repo.config) as store, Store.open(repo.config) as other:
        store.apply()
        store.materialize(hour(5))
        config, view = other.feast.config, other.feast.get_feature_view("view")
        late = other.online.begin(config, space_of(config, view))
        store.materialize(hour(5), rebuild=True)
        other.online.write_batch(config, view, ONLINE, place=late)
        assert not other.online.commit(config, late, Progress(until=0))
        other.online.abandon(config, late)
        assert [batch for batch in other.online._pairs(config, late) if batch] == []
        assert served(store, hour(5), KEYS) == RIGHT
