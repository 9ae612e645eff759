"""The registry: what was registered is what is loaded, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import skops.io
from pydantic import SecretStr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from steadfeast import frame
from steadfeast.featurestore.errors import NotFoundError
from steadfeast.measures import Task
from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue
from steadfeast.pipeline.recipes import Target
from steadfeast.pipeline.registry import (
    Facts,
    Registry,
    RegistryError,
    UntrustedModelError,
    formats,
)
from support.shop_world import MODEL, at, trigger

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

    from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

TABLE = pa.table({"x": np.random.default_rng(3).normal(size=200)})
FACTS = Facts(
    run_id="r1",
    features=("x",),
    contract="c" * 64,
    manifest_uri="training/1/manifest.json",
    as_of=at(40),
    trained_before=at(33),
    rows=200,
    commit="abc",
    recipe="train:fit sha256:0",
    metrics={"roc_auc": 0.75},
    target=Target(Task.BINARY, "sold", (0, 1)),
)


@pytest.fixture
def registry(shops: Path) -> Registry:
    return Registry.open(load(shops / "steadfeast.yaml")[0])


def estimator(sign: int = 1) -> BaseEstimator:
    rows = frame(TABLE, ["x"])
    return LogisticRegression().fit(rows, (sign * rows["x"] > 0).astype(int))


def add(registry: Registry, run_id: str) -> str:
    return registry.register(MODEL, estimator(), replace(FACTS, run_id=run_id))


def model_file(registry: Registry, version: str) -> Path:
    source = registry._client.get_model_version(MODEL, version).source
    return Path(urlparse(source).path) / "model.skops"


def test_a_registered_model_predicts_as_it_did_and_keeps_its_facts(registry: Registry):
    version = registry.register(MODEL, estimator(), FACTS, {"train_rows": 200})
    loaded = registry.load(MODEL, version)
    expected = estimator().predict_proba(frame(TABLE, ["x"]))[:, 1]
    np.testing.assert_array_equal(loaded.predict(TABLE), expected)
    assert (loaded.model, loaded.version, loaded.facts) == (MODEL, version, FACTS)
    assert (loaded.features, loaded.contract) == (("x",), "c" * 64)
    assert loaded.manifest_uri == "training/1/manifest.json"


def test_what_mlflow_shows_is_enough_to_judge_a_version(registry: Registry, shops: Path):
    """Read by MLflow's own client, as its user interface does."""
    version = registry.register(MODEL, estimator(), FACTS, {"train_rows": 200})
    registry.set_champion(MODEL, version)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{shops}/data/pipeline/mlflow.db")
    found = client.get_model_version_by_alias(MODEL, "champion")
    assert found.tags["steadfeast.contract"] == FACTS.contract
    assert found.tags["steadfeast.commit"] == "abc"
    assert found.tags["steadfeast.manifest_uri"] == FACTS.manifest_uri
    assert "scikit-learn" in json.loads(found.tags["steadfeast.libraries"])
    run = client.get_run(found.run_id)
    assert run.data.metrics == {"roc_auc": 0.75, "recipe.train_rows": 200.0}
    assert run.info.status == "FINISHED"


def test_one_run_registers_once(registry: Registry):
    versions = {add(registry, "r1") for _ in range(3)}
    assert versions == {registry.find(MODEL, "r1")}
    assert add(registry, "r2") not in versions
    assert registry.find(MODEL, "r3") is None
    (experiment,) = {run.info.experiment_id for run in _mlflow_runs(registry)}
    assert experiment is not None
    assert len(_mlflow_runs(registry)) == 2


def _mlflow_runs(registry: Registry) -> list[mlflow.entities.Run]:
    experiment = registry._client.get_experiment_by_name(MODEL)
    return registry._client.search_runs([experiment.experiment_id])


def test_a_start_that_was_cut_off_before_the_version_leaves_one_mlflow_run(
    registry: Registry, monkeypatch
):
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry._client, "create_model_version", cut_off)
        with pytest.raises(KeyboardInterrupt):
            add(registry, "r1")
    add(registry, "r1")
    assert len(_mlflow_runs(registry)) == 1


def test_a_run_of_mlflow_is_opened_once_and_ends_as_it_is_told(registry: Registry):
    runs = registry.runs
    runs.end(MODEL, "r1", "FAILED", {})  # there is none, so nothing happens
    opened = [runs.open(MODEL, "r1", {"who": who}).info.run_id for who in ("ann", "bob")]
    assert len(set(opened)) == 1
    runs.end(MODEL, "r1", "FAILED", {"why": "no shop is open"})
    (found,) = _mlflow_runs(registry)
    assert (found.info.status, found.info.run_name) == ("FAILED", "r1")
    assert found.data.tags["who"] == "bob"
    assert found.data.tags["why"] == "no shop is open"
    runs.resume(MODEL, "r1", {})
    (found,) = _mlflow_runs(registry)
    assert found.info.status == "RUNNING"


def test_aliases_follow_registration_promotion_and_rollback(registry: Registry):
    assert registry.champion(MODEL) is None
    assert registry.champion_version(MODEL) is None
    with pytest.raises(NotFoundError, match="no earlier champion"):
        registry.restore_champion(MODEL)
    first, second, third = (add(registry, name) for name in ("r1", "r2", "r3"))
    assert registry._aliases(MODEL) == {"challenger": third}
    for version, before in ((first, None), (second, first), (third, second), (third, third)):
        assert registry.set_champion(MODEL, version) == before
        assert registry.champion(MODEL).version == version
    assert registry._aliases(MODEL) == {"champion": third}
    assert registry.restore_champion(MODEL) == second
    assert registry.restore_champion(MODEL) == first
    with pytest.raises(NotFoundError, match="no earlier champion"):
        registry.restore_champion(MODEL)
    assert registry.champion_version(MODEL) == first


def test_rollback_works_after_a_promotion_that_was_cut_off(registry: Registry, monkeypatch):
    """The history is written first: its last entry may be the champion itself."""
    first, second, third = (add(registry, name) for name in ("r1", "r2", "r3"))
    registry.set_champion(MODEL, first)
    registry.set_champion(MODEL, second)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_point", cut_off)
        with pytest.raises(KeyboardInterrupt):
            registry.set_champion(MODEL, third)
    assert registry.champion_version(MODEL) == second
    assert registry.restore_champion(MODEL) == first


@pytest.mark.parametrize("version", ["9", "latest", ""])
def test_a_version_that_does_not_exist_is_named(registry: Registry, version: str):
    add(registry, "r1")
    for look in (registry.load, registry.facts, registry.set_champion):
        with pytest.raises(NotFoundError, match=f"no version of model sale '{version}'"):
            look(MODEL, version)
    assert registry.champion_version(MODEL) is None


def test_a_changed_file_is_not_loaded(registry: Registry):
    version = add(registry, "r1")
    skops.io.dump(estimator(-1), model_file(registry, version))
    with pytest.raises(UntrustedModelError, match="is not the file that was registered"):
        registry.load(MODEL, version)


def test_a_file_changed_with_its_row_is_not_loaded(shops: Path, registry: Registry):
    """Whoever can write MLflow's files still does not write the run's record."""
    with RunQueue(shops / "data/pipeline/runs.db") as queue:
        run, _ = queue.accept(trigger(at(40)))
        version = add(registry, run.run_id)

        def noted(run: pb.Run) -> None:
            run.model_version = version
            run.model_files.update(registry.files(MODEL, version))

        queue.change(run.run_id, noted)
    assert registry.load(MODEL, version).version == version
    skops.io.dump(estimator(-1), model_file(registry, version))
    changed = hashlib.sha256(model_file(registry, version).read_bytes()).hexdigest()
    files = json.dumps(dict.fromkeys(registry.files(MODEL, version), changed))
    registry._client.set_model_version_tag(MODEL, version, "steadfeast.files", files)
    with pytest.raises(UntrustedModelError, match="other files than the run recorded"):
        registry.load(MODEL, version)
    registry._client.set_model_version_tag(MODEL, version, "steadfeast.run_id", "another")
    with pytest.raises(UntrustedModelError, match="other files than the run recorded"):
        registry.load(MODEL, version)


def test_with_a_key_only_what_it_signed_is_loaded(shops: Path, registry: Registry):
    path = shops / "steadfeast.yaml"
    config = load(path)[0]
    signing = config.model_copy(update={"signing_key": SecretStr("k" * 16)})
    unsigned, signed = add(registry, "r1"), add(Registry.open(signing), "r2")
    assert Registry.open(signing).load(MODEL, signed).version == signed
    other = config.model_copy(update={"signing_key": SecretStr("o" * 16)})
    for opened, version in ((Registry.open(signing), unsigned), (Registry.open(other), signed)):
        with pytest.raises(UntrustedModelError, match="has not signed it as it is"):
            opened.load(MODEL, version)
    registry._client.set_model_version_tag(MODEL, signed, "steadfeast.contract", "0" * 64)
    with pytest.raises(UntrustedModelError, match="has not signed it as it is"):
        Registry.open(signing).load(MODEL, signed)


def test_types_that_nobody_listed_are_neither_registered_nor_loaded(registry: Registry):
    odd = make_pipeline(FunctionTransformer(func=np.log1p), FunctionTransformer(func=_double))
    with pytest.raises(UntrustedModelError, match=r"holds types not listed.*_double"):
        registry.register(MODEL, odd, FACTS)
    assert registry.find(MODEL, "r1") is None

    version = add(registry, "r1")
    file = model_file(registry, version)
    skops.io.dump(odd, file)
    with pytest.raises(UntrustedModelError, match=r"trusted_types: \[.*_double"):
        formats.read({"model.skops": file.read_bytes()}, (), "the file")
    with pytest.raises(UntrustedModelError, match="not the file that was registered"):
        registry.load(MODEL, version)


def _double(rows: np.ndarray) -> np.ndarray:
    return 2 * rows


def test_a_type_that_the_configuration_lists_is_loaded(registry: Registry, shops: Path):
    odd = make_pipeline(FunctionTransformer(func=_double), LogisticRegression())
    odd.fit(frame(TABLE, ["x"]), np.arange(200) % 2)
    (name,) = skops.io.get_untrusted_types(data=skops.io.dumps(odd))
    path = f"sqlite:///{shops}/data/pipeline/mlflow.db"
    trusting = Registry(path, shops / "data/pipeline/artifacts", {MODEL: (name,)})
    version = trusting.register(MODEL, odd, FACTS)
    assert trusting.load(MODEL, version).predict(TABLE).shape == (200,)
    with pytest.raises(UntrustedModelError):
        registry.load(MODEL, version)


def test_a_backend_that_cannot_be_opened_is_one_message(tmp_path: Path):
    with warnings.catch_warnings(), pytest.raises(RegistryError, match="model registry nonsense:"):
        Registry("nonsense://here", tmp_path, {})


@pytest.mark.parametrize("how", ["cut in half", "garbled", "garbled in the middle"])
def test_a_damaged_backend_is_one_message_that_names_the_file(
    shops: Path, registry: Registry, how: str
):
    add(registry, "run-1")
    file = shops / "data/pipeline/mlflow.db"
    content = file.read_bytes()
    start = {"garbled": 16, "garbled in the middle": len(content) // 3}.get(how, 0)
    wrong = bytes(byte ^ 0x5A for byte in content[start:-16])
    half = content[: len(content) // 2]
    file.write_bytes(half if how == "cut in half" else content[:start] + wrong + content[-16:])
    with pytest.raises(RegistryError, match=r"mlflow\.db: truncated or damaged.*restore") as raised:
        Registry.open(load(shops / "steadfeast.yaml")[0])
    assert "\n" not in str(raised.value)
