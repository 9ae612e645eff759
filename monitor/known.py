"""Names in the configuration that have to exist: statistics, feature services, features.

Above `config` and `statistics`; `daemon` asks before a port is opened, and again at a reload. The
store is asked in a process of its own: Feast takes a hundred megabytes that a daemon that runs for
months would keep.
"""

from __future__ import annotations

import json
import subprocess
import sys
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
        services = _services(path)
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
