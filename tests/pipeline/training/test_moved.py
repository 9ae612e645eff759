"""The whole state is moved to another path, and everything goes on from there."""

from __future__ import annotations

import shutil
from datetime import timedelta
from types import SimpleNamespace

import pyarrow as pa

from steadfeast import Store, TrainingSet
from steadfeast.featurestore.tables.hashing import content_sha256
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.evaluation.reference_builder import ReferenceBuilder
from steadfeast.pipeline.training.promotion import By, rollback
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.shop_world import MODEL, at
from tests.pipeline.conftest import Pipeline

NOON = at(40) + timedelta(hours=12)


def serve(config, moment, prefix):
    with Store.open(config) as store:
        store.materialize(moment)
        asked = pa.table({"shop": ["s1", "s2", "s3"]})
        got = store.online_features("sale", asked, request_time=moment)
        ids = [f"{prefix}{n}" for n in range(3)]
        store.served.append("sale", got, request_ids=ids, request_time=moment, model=MODEL)


def test_train_replay_promote_and_audit_go_on_where_the_state_is_now(shops, tmp_path):
    before = Pipeline(shops / "steadfeast.yaml")
    first = before.run(at(40))
    assert first.state == pb.RUN_STATE_PROMOTED
    serve(before.path, NOON, "a")
    before.queue.close()
    table = TrainingSet.load(before.place(first.manifest_uri)).table

    moved = tmp_path / "another disk" / "shops"
    moved.parent.mkdir()
    shutil.move(shops, moved)
    kept = [path for path in (moved / "data").rglob("*") if path.suffix in {".json", ".jsonl"}]
    assert [path for path in kept if str(shops) in path.read_text()] == []

    after = Pipeline(moved / "steadfeast.yaml")
    run = after.queue.get(first.run_id)
    assert after.registry.champion(MODEL).version == "1"
    restored = TrainingSet.load(after.place(run.manifest_uri))
    assert restored.table.equals(table)
    with Store.open(after.path) as store:
        again = store.replay(after.place(run.manifest_uri))
        assert content_sha256(again) == restored.manifest.sha256
    serve(after.path, NOON + timedelta(hours=1), "b")
    with Store.open(after.path) as store:
        report = store.audit("sale")
        assert report.ok, report.to_text()
    second = after.run(at(80))
    assert second.state == pb.RUN_STATE_PROMOTED, second.reason
    assert after.registry.champion(MODEL).version == "2"
    rollback(after.queue, after.registry, MODEL, By("ann"))
    assert after.registry.champion(MODEL).version == "1"
    after.queue.close()
    assert not shops.exists()


def test_the_daemon_finds_what_a_moved_run_names(pipeline, tmp_path):
    """It builds its reference from the training set and the scored rows where they are."""
    run = pipeline.run(at(40))
    pipeline.queue.close()
    moved = tmp_path / "moved"
    shutil.move(pipeline.path.parent, moved)
    monitor = MonitorConfig(service="sale", model=MODEL, min_rows=10, false_alarms_per_year=1e9)

    builder = ReferenceBuilder(None, moved / "data")
    try:
        reference = builder.of_run(run, SimpleNamespace(monitors={"sale": monitor}))["sale"]
    finally:
        builder.close()
    assert (reference.uri, reference.scored_uri) == (run.manifest_uri, run.scored_uri)
    assert not run.manifest_uri.startswith("/")
    assert not run.scored_uri.startswith("/")
    assert reference.profile.rows == pipeline_rows(moved, run)


def pipeline_rows(folder, run):
    return TrainingSet.load(folder / "data" / run.manifest_uri).table.num_rows
