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
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog
import yaml

from steadfeast.featurestore.errors import ConfigError, NotFoundError
from steadfeast.measures import MeasureError
from steadfeast.monitor.drift.distances import statistic
from steadfeast.monitor.performance.realized import figures_of
from steadfeast.monitor.sources.views import ViewFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from steadfeast.featurestore.config import StoreConfig
    from steadfeast.monitor.config.schema import DaemonConfig

log = structlog.get_logger(__name__)

ASK_SECONDS = 120.0
KEPT = "services.json"
"""File of the state folder with what the store said last; a process for it takes seconds."""

_ASK = """
import json, sys
from pathlib import Path
from steadfeast import Store
from steadfeast.featurestore.offline.binding import described
with Store.open(Path(sys.argv[1])) as store:
    services = {}
    for name in store.services():
        services[name] = [one["name"] for one in store.contract(name).description["features"]]
    views = [*store.feast.list_feature_views(), *store.feast.list_stream_feature_views()]
    told = {one.name: described(store.repo, one) for one in views}
print(json.dumps({"services": services, "views": told}))
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What is applied: the features of each service, and every feature view."""

    services: Mapping[str, Sequence[str]] = field(default_factory=dict)
    views: Mapping[str, ViewFacts] = field(default_factory=dict)


def check(path: Path, config: DaemonConfig, store: StoreConfig) -> Mapping[str, ViewFacts]:
    """Refuse names that do not exist, and return what the store says of its feature views.

    Before the first `feast apply`, and where the repo folder is no feature repository, nothing is
    known of services and features, so only statistics are checked; and no view can be watched.

    Raises:
        ConfigError: With a problem for each.
    """
    known = Known()
    problems = list(_problems(config, known))
    if not problems and (store.repo / "feature_store.yaml").exists():
        known = _kept(path, config.state / KEPT, store)
        problems = list(_problems(config, known))
    if not problems:
        problems = list(_unknown_views(config, known, store))
    if problems:
        raise ConfigError(path, problems)
    return known.views


def project(store: StoreConfig) -> str:
    """Return the name of the Feast project; empty where the repo folder has no readable one."""
    try:
        found = yaml.safe_load((store.repo / "feature_store.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return ""
    return str(found.get("project", "")) if isinstance(found, dict) else ""


def _problems(config: DaemonConfig, known: Known) -> Iterator[tuple[str, str]]:
    services = known.services
    for name, monitor in config.monitors.items():
        field = f"monitor.monitors.{name}"
        try:
            statistic(monitor.statistic)
        except NotFoundError as error:
            yield f"{field}.statistic", str(error)
        if monitor.performance is not None:
            try:
                figures_of(monitor.performance)
            except (NotFoundError, MeasureError) as error:
                yield f"{field}.performance.metric", str(error)
        if not services or monitor.source is not None:
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


def _unknown_views(
    config: DaemonConfig, known: Known, store: StoreConfig
) -> Iterator[tuple[str, str]]:
    for name, monitor in config.monitors.items():
        if monitor.source is None or not monitor.source.view:
            continue
        field, view = f"monitor.monitors.{name}", monitor.source.view
        if view not in known.views:
            problem = str(NotFoundError("feature view", view, known.views))
            if not known.views:
                problem = (
                    f"no feature view {view!r}: nothing is applied in {store.repo}; "
                    "run `steadfeast store apply` first"
                )
            yield f"{field}.source.view", problem
            continue
        facts = known.views[view]
        if facts.problem:
            yield (
                f"{field}.source.view",
                f"feature view {view!r} cannot be watched: {facts.problem}",
            )
        for feature in monitor.features:
            if feature not in facts.features:
                problem = str(NotFoundError(f"feature of view {view}", feature, facts.features))
                yield f"{field}.features", problem


def _kept(path: Path, kept: Path, store: StoreConfig) -> Known:
    """Return what is applied, as kept while the registry is the same."""
    registry = _registry(store)
    if registry and kept.exists():
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(kept.read_text(encoding="utf-8"))
            if said["registry"] == registry:
                return _known(said)
    found = _asked(path)
    if registry and any(found.values()) and kept.parent.exists():
        with suppress(OSError):  # without it the next start takes longer, and no more
            aside = kept.with_suffix(".new")
            aside.write_text(json.dumps({"registry": registry, **found}), "utf-8")
            aside.rename(kept)
    return _known(found)


def _known(said: Mapping[str, Any]) -> Known:
    views = {}
    for name, facts in said["views"].items():
        plain: dict[str, Any] = {
            key: tuple(one) if isinstance(one, list) else one for key, one in facts.items()
        }
        views[name] = ViewFacts(**plain)
    return Known(dict(said["services"]), views)


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
            [sys.executable, "-P", "-c", _ASK, str(path)],
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
