"""What is applied in the store: the features of each service, and the feature views.

Below `preflight`. The store is asked in a process of its own, which runs this module: Feast takes a
hundred megabytes that a daemon that runs for months would keep.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import yaml

from steadfeast.featurestore.command_line import reserved_stdout
from steadfeast.monitor.sources import ViewFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steadfeast.featurestore.config import StoreConfig

log = structlog.get_logger(__name__)

ASK_SECONDS = 120.0
KEPT = "services.json"
"""File of the state folder with what the store said last; a process for it takes seconds."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What is applied: the features of each service, and every feature view."""

    services: Mapping[str, Sequence[str]] = field(default_factory=dict)
    views: Mapping[str, ViewFacts] = field(default_factory=dict)


def applied(path: Path, state: Path, store: StoreConfig) -> Applied:
    """Return what is applied; the store is asked again when its registry has changed.

    Args:
        path: The configuration file.
        state: The daemon's folder, where the last answer is kept.
        store: The store's configuration.
    """
    kept = state / KEPT
    registry = _registry(store)
    if registry and kept.exists():
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(kept.read_text(encoding="utf-8"))
            if said["registry"] == registry:
                return _read(said)
    found = _asked(path)
    if registry and any(found.values()) and kept.parent.exists():
        with suppress(OSError):  # without it the next start takes longer, and no more
            aside = kept.with_suffix(".new")
            aside.write_text(json.dumps({"registry": registry, **found}), "utf-8")
            aside.rename(kept)
    return _read(found)


def _read(said: Mapping[str, Any]) -> Applied:
    views = {}
    for name, facts in said["views"].items():
        plain: dict[str, Any] = {
            key: tuple(one) if isinstance(one, list) else one for key, one in facts.items()
        }
        views[name] = ViewFacts(**plain)
    return Applied(dict(said["services"]), views)


def _registry(store: StoreConfig) -> str:
    """Return a hash of what is applied; empty where the registry is no local file."""
    try:
        text = (store.repo / "feature_store.yaml").read_bytes()
        said = yaml.safe_load(text)["registry"]
        file = store.repo / (said["path"] if isinstance(said, dict) else said)
        parts = (version("steadfeast").encode(), text, file.read_bytes())
    except (OSError, KeyError, TypeError, yaml.YAMLError, UnicodeDecodeError):
        return ""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _asked(path: Path) -> dict[str, dict[str, Any]]:
    """Return what is applied, by `services` and `views`; empty when the store cannot say."""
    try:
        done = subprocess.run(  # noqa: S603 - our own code, and a path the user runs us with
            [sys.executable, "-P", "-m", __name__, str(path)],
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            check=True,
        )
        found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        # A definition that is broken now does not keep the daemon from watching.
        log.warning("services_unknown", reason=error.stderr.strip().rpartition("\n")[2])
        return {"services": {}, "views": {}}
    except subprocess.TimeoutExpired:
        log.warning("services_unknown", reason=f"no answer within {ASK_SECONDS:.0f} s")
        return {"services": {}, "views": {}}
    return found


def describe(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the store of a configuration file says is applied, as plain JSON values."""
    from steadfeast.featurestore import Store  # noqa: PLC0415 - only the process that asks needs Feast
    from steadfeast.featurestore.offline import described  # noqa: PLC0415 - the same

    with Store.open(path) as store:
        services = {
            name: [one["name"] for one in store.contract(name).description["features"]]
            for name in store.services()
        }
        views = [*store.feast.list_feature_views(), *store.feast.list_stream_feature_views()]
        return {
            "services": services,
            "views": {one.name: described(store.repo, one) for one in views},
        }


if __name__ == "__main__":
    with reserved_stdout():  # definitions may print
        _found = describe(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(_found))
