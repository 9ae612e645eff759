"""Names in the configuration that do not exist are named before a port opens."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from steadfeast.featurestore.errors import ConfigError
from steadfeast.monitor.config.schema import load
from steadfeast.monitor.evaluation.preflight import check
from support import monitor_world as world

if TYPE_CHECKING:
    from pathlib import Path


def changed(folder: Path, **changes: object) -> Path:
    path = world.configure(folder, pipeline=1)
    plain = yaml.safe_load(path.read_text())
    plain["monitor"]["monitors"]["prices"] |= changes
    path.write_text(yaml.safe_dump(plain))
    return path


def test_a_statistic_that_does_not_exist_is_named_with_its_field(tmp_path: Path):
    path = changed(tmp_path, statistic="ksi")
    with pytest.raises(ConfigError, match=r"prices\.statistic: no statistic 'ksi'.*psi"):
        check(path, *load(path))


def test_without_a_feature_repository_names_are_taken_as_they_are(tmp_path: Path):
    path = changed(tmp_path, service="anything")
    check(path, *load(path))


def test_a_process_ends_before_its_ports_open(tmp_path: Path):
    changed(tmp_path, statistic="ksi")
    daemon = world.Daemon.__new__(world.Daemon)
    daemon.config, daemon.lives = tmp_path / "steadfeast.yaml", 0
    daemon._log = tmp_path / "daemon.log"
    assert daemon.start().process.wait(60) == 2
    assert "no statistic 'ksi'" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert not (tmp_path / "data" / "monitor").exists()


TINY = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.types import Float64
item = Entity(name="item", join_keys=["item_id"])
stock = FeatureView(
    name="stock", entities=[item], ttl=timedelta(days=1), schema=[Field(name="x", dtype=Float64)],
    source=FileSource(path="stock.parquet", timestamp_field="at"),
)
prices = FeatureService(name="prices", features=[stock])
"""
STORE = """
project: tiny
provider: local
registry: registry.db
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""


def test_services_and_features_are_those_that_are_applied(tmp_path: Path):
    """Feast itself applies the repository."""
    (tmp_path / "feature_store.yaml").write_text(STORE)
    (tmp_path / "features.py").write_text(TINY)
    table = pa.table({"item_id": ["a"], "x": [1.0], "at": pa.array([world.START], world.TS)})
    pq.write_table(table, tmp_path / "stock.parquet")
    path = changed(tmp_path, features=["x"])
    command = "import sys; from feast.cli.cli import cli; cli()"
    subprocess.run([sys.executable, "-c", command, "apply"], cwd=tmp_path, check=True, timeout=120)
    plain = yaml.safe_load(path.read_text())
    monitors = plain["monitor"]["monitors"]
    monitors |= {
        "feature": monitors["prices"] | {"features": ["x", "y"]},
        "service": monitors["prices"] | {"service": "price"},
    }
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError) as caught:
        check(path, *load(path))
    assert [field for field, _ in caught.value.problems] == [
        "monitor.monitors.feature.features",
        "monitor.monitors.service.service",
    ]
    assert "no feature of service prices 'y'; did you mean x?" in str(caught.value)
    assert "no feature service 'price'; did you mean prices?" in str(caught.value)
    asked = 0

    def applied(_: Path) -> dict[str, dict[str, object]]:
        nonlocal asked
        asked += 1
        return {"services": {"prices": ["x", "y"], "price": ["x", "y"]}, "views": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steadfeast.monitor.evaluation.applied._asked", applied)
        (tmp_path / "data" / "monitor").mkdir(parents=True)
        for _ in range(3):  # kept from the first time on
            check(path, *load(path))
        assert asked == 1
        registry = tmp_path / "registry.db"
        registry.write_bytes(registry.read_bytes() + b"applied again")
        check(path, *load(path))
        assert asked == 2
        (tmp_path / "data" / "monitor" / "services.json").write_text("{")
        check(path, *load(path))
        assert asked == 3
