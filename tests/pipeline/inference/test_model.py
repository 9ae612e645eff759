"""A model that reads, predicts and logs in one call, against its estimator called by hand."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast import Model, Store
from steadfeast.featurestore.errors import EntityRowsError, NotFoundError
from steadfeast.pipeline.inference.model import NoChampionError
from steadfeast.pipeline.registry import UntrustedModelError
from support.shop_world import MODEL, at

ALL = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
ROWS = {"shop": ["s1", "s2", "nowhere"]}


@pytest.fixture
def trained(pipeline):
    """A first version, promoted, and features online up to its day."""
    run = pipeline.run(at(40))
    with Store.open(pipeline.path) as store:
        store.materialize(at(40))
    assert run.model_version == "1"
    return pipeline


@pytest.fixture
def model(trained):
    with Model.open(trained.path, MODEL) as opened:
        yield opened


def logged(model):
    model.store.served.flush()
    files = model.store.served.files("sale", *ALL)
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("request_id")


def test_it_says_what_its_estimator_says_of_the_features_that_training_saw(trained, model):
    got = model.predict(ROWS, request_ids=["a", "b", "c"], request_time=at(40))
    loaded = trained.registry.load(MODEL, "1")
    frame = pa.table(
        {**ROWS, "event_timestamp": pa.array([at(40)] * 3, pa.timestamp("us", tz="UTC"))}
    )
    offline = model.store.training_set(frame, "sale").table
    np.testing.assert_array_equal(got.values, loaded.predict(offline))
    assert (got.version, got.contract) == ("1", loaded.contract)
    table = logged(model)
    assert table["request_id"].to_pylist() == ["a", "b", "c"]
    assert table["prediction"].to_pylist() == got.values.tolist()
    assert set(table["model"].to_pylist()) == {MODEL}
    assert set(table["model_version"].to_pylist()) == {"1"}
    assert table["x"].to_pylist() == offline["x"].to_pylist()
    checks = {check.invariant: check for check in model.store.audit("sale").checks}
    assert all(checks[name].ok for name in ("I2", "I4", "I11"))


def test_it_follows_the_registry_and_answers_by_version(trained, model):
    first = model.predict(ROWS, request_ids=list("abc"), request_time=at(40))
    assert trained.run(at(80)).model_version == "2"
    trained.registry.set_champion(MODEL, "2")
    model.look()
    second = model.predict(ROWS, request_ids=list("def"), request_time=at(40))
    assert (model.version, second.version) == ("2", "2")
    assert second.values.tolist() != first.values.tolist()
    again = model.predict(ROWS, request_ids=list("ghi"), request_time=at(40), version="1")
    assert (again.version, again.values.tolist()) == ("1", first.values.tolist())
    assert model.versions == ("1", "2")
    assert logged(model)["model_version"].to_pylist() == ["1"] * 3 + ["2"] * 3 + ["1"] * 3


def test_a_champion_that_does_not_load_leaves_the_last_good_one(trained, model):
    model._closing.set()  # it looks when it is told to: the run below may promote version 2
    model._thread.join()
    trained.run(at(80))
    for file in trained.config.state.rglob("*.skops"):
        file.write_bytes(file.read_bytes() + b" ")
    trained.registry.set_champion(MODEL, "2")
    model.look()
    assert model.version == "1"
    assert "version 2 does not load" in model.problem
    assert model.predict(ROWS, request_ids=list("abc")).version == "1"
    with pytest.raises(UntrustedModelError, match="version 2"):
        model.predict(ROWS, request_ids=list("def"), version="2")


def test_a_version_is_served_under_its_contract_or_not_at_all(trained, model):
    features = trained.path.parent / "features.py"
    features.write_text(features.read_text().replace("timedelta(days=3)", "timedelta(days=4)"))
    with Store.open(trained.path) as store:
        store.apply()
        changed = store.contract("sale").sha256
    model.store.refresh()
    assert changed != model.loaded().contract
    got = model.predict(ROWS, request_ids=list("abc"), request_time=at(40) + timedelta(days=3.5))
    # Under the contract of then the values are too old; the definitions of now would serve them.
    assert got.contract == model.loaded().contract
    assert got.features.to_dict()["x"] == [None] * 3
    assert (
        model.store.online_features(
            "sale", ROWS, request_time=at(40) + timedelta(days=3.5)
        ).to_dict()["x"][0]
        is not None
    )


def test_what_it_cannot_answer_it_says_by_name(model):
    for given, error, words in (
        ({"rows": {"shops": ["s1"]}, "request_ids": ["a"]}, EntityRowsError, "shop"),
        ({"rows": ROWS, "request_ids": list("abc"), "version": "7"}, NotFoundError, "version"),
    ):
        with pytest.raises(error, match=words):
            model.predict(given.pop("rows"), **given)
    assert model.store.served.counters("sale").rows == 0


def test_before_the_first_promotion_it_says_so(pipeline):
    with Model.open(pipeline.path, MODEL) as model:
        with pytest.raises(NoChampionError, match="no version has been promoted"):
            model.predict(ROWS, request_ids=list("abc"))
        assert model.version == ""
    with pytest.raises(NotFoundError, match="did you mean sale"):
        Model.open(pipeline.path, "sales")
