"""Feast's own templates start here: two `type:` lines changed, nothing else.

Those that work without a network, a cluster or a warehouse; of the others `apply` says what is
missing. `feast init` writes them anew for each test.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import yaml
from feast.repo_operations import init_repo

from steadfeast import Store
from steadfeast.featurestore.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

# What Feast says of its own templates.
pytestmark = pytest.mark.filterwarnings("ignore")
# Template -> services; what imports torch or ray is a demonstration of Feast's, and left out.
OFFLINE = {"local": 3, "milvus": 3, "pytorch_nlp": 3, "rag": 2}


def feast_init(folder: Path, template: str) -> Path:
    """Make a repo as `feast init` does, with the two stores of this package."""
    init_repo("tried", template, str(folder / "tried"))
    repo = folder / "tried" / "feature_repo"
    file = repo / "feature_store.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["offline_store"] = {"type": "steadfeast.DuckDBOfflineStore"}
    settings["online_store"] = {"type": "steadfeast.SQLiteOnlineStore", "path": "data/online.db"}
    settings["registry"] = "data/registry.db"
    file.write_text(yaml.safe_dump(settings))
    (repo / ".feastignore").write_text("test_workflow.py\n")
    (repo / "steadfeast.yaml").write_text("store:\n  repo: .\n  data: data\n")
    return repo


def entities_of(repo, plan, rows=4):
    """Keys and times of the first rows of the service's first source; requests are made up."""
    view = plan.views[0]
    table = pq.read_table(repo / view.view.batch_source.path).slice(0, rows)
    columns = {column: table[key].to_pylist() for key, column in view.keys.items()}
    for name, kind in plan.requests.items():
        columns[name] = ["good" if str(kind) == "string" else 1] * rows
    for name in plan.keys:
        if name not in columns:
            columns[name] = table[name].to_pylist()
    times = table[view.view.batch_source.timestamp_field]
    return columns, times.to_pylist()


@pytest.mark.parametrize("template", OFFLINE)
def test_a_template_is_applied_trained_materialized_served_and_audited(template, tmp_path):
    repo = feast_init(tmp_path, template)
    now = dt.datetime.now(dt.UTC)  # the template's rows were created until now
    with Store.open(repo / "steadfeast.yaml") as store:
        store.apply()
        assert len(store.services()) == OFFLINE[template]
        counts = store.materialize(now)
        assert counts
        assert all(counts.values())
        for service in store.services():
            tried(store, repo, service, now)


def tried(store, repo, service, now):
    plan = store.bundle(service).plan
    columns, times = entities_of(repo, plan)
    built = store.training_set({**columns, "event_timestamp": times}, service, event_time_only=True)
    stored = [out.name for out in plan.outputs if out.view == plan.views[0].name]
    assert all(built.table[name].null_count < len(times) for name in stored)
    got = store.online_features(service, columns, request_time=now)
    assert got.features == plan.features
    ids = [f"{service}-{i}" for i in range(got.rows)]
    store.served.append(service, got, request_ids=ids, request_time=now)
    store.served.flush()
    checks = store.audit(service).checks
    # One template makes its embeddings of random numbers: what it served cannot be computed again.
    random = {"text_embedding"}
    found = {check.invariant: set(check.features) - random for check in checks if check.mismatches}
    assert not any(found.values()), found
    assert not [check.void for check in checks if check.void]


def test_a_repo_without_definitions_is_applied(tmp_path):
    repo = feast_init(tmp_path, "minimal")
    with Store.open(repo / "steadfeast.yaml") as store:
        store.apply()
        assert store.services() == []


def test_a_source_of_another_kind_is_refused_by_name(tmp_path):
    repo = feast_init(tmp_path, "spark")
    with Store.open(repo / "steadfeast.yaml") as store:
        with pytest.raises(SourceError, match=r"reads FileSource, not SparkSource"):
            store.apply()
        assert not store.feast.list_feature_views()
