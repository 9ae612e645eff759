"""Names in the configuration that have to exist: statistics, feature services, features.

Above `config` and `statistics`; `daemon` asks before a port is opened, and again at a reload. The
store is asked in a process of its own: Feast takes a hundred megabytes that a daemon that runs for
months would keep.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
import yaml

from featurestore.errors import ConfigError, NotFoundError
from monitor.measures import MeasureError, measure_named
from monitor.statistics import statistic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from featurestore.config import StoreConfig
    from monitor.config import DaemonConfig

log = structlog.get_logger(__name__)

ASK_SECONDS = 120.0
KEPT = "services.json"
"""File of the state folder with what the store said last; a process for it takes seconds."""

_SERVICES = """
import json, sys
from pathlib import Path
from featurestore import Store
with Store.open(Path(sys.argv[1])) as store:
    found = {}
    for name in store.services():
        found[name] = [one["name"] for one in store.contract(name).description["features"]]
print(json.dumps(found))
"""


def check(path: Path, config: DaemonConfig, store: StoreConfig) -> None:
    """Refuse names that do not exist.

    Before the first `feast apply`, and where the repo folder is no feature repository, nothing is
    known of services and features, so only statistics are checked.

    Raises:
        ConfigError: With a problem for each.
    """
    services: Mapping[str, Sequence[str]] = {}
    problems = list(_problems(config, services))
    if not problems and (store.repo / "feature_store.yaml").exists():
        services = _kept(path, config.state / KEPT, store)
        problems = list(_problems(config, services))
    if problems:
        raise ConfigError(path, problems)


def project(store: StoreConfig) -> str:
    """Return the name of the Feast project; empty where the repo folder has no readable one."""
    try:
        found = yaml.safe_load((store.repo / "feature_store.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return ""
    return str(found.get("project", "")) if isinstance(found, dict) else ""


def _problems(
    config: DaemonConfig, services: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    for name, monitor in config.monitors.items():
        field = f"monitor.monitors.{name}"
        try:
            statistic(monitor.statistic)
        except NotFoundError as error:
            yield f"{field}.statistic", str(error)
        if monitor.performance is not None:
            try:
                measure_named(monitor.performance.metric)
            except (NotFoundError, MeasureError) as error:
                yield f"{field}.performance.metric", str(error)
        if not services:
            continue
        if monitor.service not in services:
            yield (
                f"{field}.service",
                str(NotFoundError("feature service", monitor.service, services)),
            )
            continue
        served = services[monitor.service]
        for feature in monitor.features:
            if feature not in served:
                what = f"feature of service {monitor.service}"
                yield f"{field}.features", str(NotFoundError(what, feature, served))


def _kept(path: Path, kept: Path, store: StoreConfig) -> Mapping[str, Sequence[str]]:
    """Return the features of every applied service, as kept while the registry is the same."""
    registry = _registry(store)
    if registry and kept.exists():
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(kept.read_text(encoding="utf-8"))
            if said["registry"] == registry:
                return dict(said["services"])
    found = _services(path)
    if registry and found and kept.parent.exists():
        with suppress(OSError):  # without it the next start takes longer, and no more
            aside = kept.with_suffix(".new")
            aside.write_text(json.dumps({"registry": registry, "services": found}), "utf-8")
            aside.rename(kept)
    return found


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


def _services(path: Path) -> dict[str, list[str]]:
    """Return the features of every applied service; empty when the store cannot say."""
    try:
        done = subprocess.run(  # noqa: S603 - our own code, and a path the user runs us with
            [sys.executable, "-c", _SERVICES, str(path)],
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            check=True,
        )
        found: dict[str, list[str]] = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        # A definition that is broken now does not keep the daemon from watching.
        log.warning("services_unknown", reason=error.stderr.strip().rpartition("\n")[2])
        return {}
    except subprocess.TimeoutExpired:
        log.warning("services_unknown", reason=f"no answer within {ASK_SECONDS:.0f} s")
        return {}
    return found
