"""What a store in use needs done: entities erased, definitions read again behind requests."""

import json
import time
from datetime import UTC, datetime

import pytest
import yaml
from typer.testing import CliRunner

from steadfeast import Store
from steadfeast.featurestore import cli
from steadfeast.featurestore.definitions.refresher import Refresher
from steadfeast.featurestore.errors import InvalidKeysError, NotFoundError

NOW = datetime.now(UTC)
pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")


def _user(number, spend=1.0):
    return {"user_id": number, "at": NOW, "written": NOW, "spend": spend}


def test_erasing_an_entity_takes_its_rows_of_every_view(shop):
    shop.write([_user(1), _user(2), _user(3)], [{"item_id": "1", "at": NOW, "price": 1.0}])
    run = CliRunner()
    with Store.open(shop.config) as store:
        store.materialize(NOW)
        assert store.erase([{"user_id": 1}, {"user_id": 9}], apply=True).online == {"users": 1}
        got = store.online_features("small", [{"user_id": n} for n in (1, 2)])
        assert got.statuses["spend"].tolist() == [3, 1]
        with pytest.raises(NotFoundError, match=r"'user'.*did you mean user_id"):
            store.erase([{"user": 1}], apply=True)
        with pytest.raises(NotFoundError, match="did you mean users"):
            store.erase([{"user_id": 1}], views=["user"], apply=True)
        with pytest.raises(InvalidKeysError, match="'user_id'"):
            store.erase([{"user_id": "x"}], apply=True)
        command = ["store", "erase", "--key=user_id=2", "-c", str(shop.config)]
        assert "add --apply to remove it" in run.invoke(cli.app, command).output
        said = run.invoke(cli.app, [*command, "--apply", "--json"])
        assert json.loads(said.output)["online"] == {"users": 1}
        got = store.online_features("small", [{"user_id": n} for n in (2, 3)])
        assert got.statuses["spend"].tolist() == [3, 1]
    wrong = run.invoke(cli.app, ["store", "erase", "--key", "user_id", "-c", str(shop.config)])
    assert wrong.exit_code == 2
    assert "join_key=value" in wrong.output


def test_new_definitions_reach_a_store_in_use_and_broken_ones_do_not(shop):
    path = shop.folder / "feature_store.yaml"
    text = yaml.safe_load(path.read_text())
    text["registry"] = {"path": "data/registry.db", "cache_ttl_seconds": 1}
    path.write_text(yaml.safe_dump(text))
    shop.write([_user(1)], [])

    def served(store, seconds=20):
        """Ask until the contract is another one; return the two."""
        first = store.online_features("purchase", rows).contract
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            got = store.online_features("purchase", rows).contract
            if got != first:
                return first, got
            time.sleep(0.05)
        return first, first

    rows = [{"user_id": 1, "item_id": "a", "amount": 1.0}]
    with Store.open(shop.config) as store:
        store.materialize(NOW)
        first = store.online_features("purchase", rows).contract
        # The function on disk is no longer the one that was applied: what is served stays.
        shop.edit("features.py", 'inputs["visits"] - 1', 'inputs["visits"] - 2')
        assert served(store, 2.5) == (first, first)
        with Store.open(shop.config) as other:
            other.apply()
            applied = other.contract("purchase").sha256
        assert served(store) == (first, applied)


def test_a_refresh_runs_alone_and_not_before_its_time():
    never = Refresher(0)
    assert not never.is_due()
    runs = []
    often = Refresher(0.05)
    assert not often.is_due()
    time.sleep(0.1)
    for _ in range(5):
        often.start(lambda: (runs.append(1), time.sleep(0.2)))
    often.wait()
    assert runs == [1]
