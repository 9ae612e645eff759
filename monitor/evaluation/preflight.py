"""Names in the configuration that have to exist: statistics, feature services, features.

Above `config` and `applied`; `daemon` asks before a port is opened, and again at a reload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from steadfeast.featurestore.errors import ConfigError, NotFoundError
from steadfeast.measures import MeasureError
from steadfeast.monitor.drift import statistic
from steadfeast.monitor.evaluation.applied import Applied, applied
from steadfeast.monitor.performance import figures_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from steadfeast.featurestore.config import StoreConfig
    from steadfeast.monitor.config import DaemonConfig
    from steadfeast.monitor.sources import ViewFacts


def check(path: Path, config: DaemonConfig, store: StoreConfig) -> Mapping[str, ViewFacts]:
    """Refuse names that do not exist, and return what the store says of its feature views.

    Before the first `feast apply`, and where the repo folder is no feature repository, nothing is
    known of services and features, so only statistics are checked; and no view can be watched.

    Raises:
        ConfigError: With a problem for each.
    """
    known = Applied()
    problems = list(_problems(config, known))
    if not problems and (store.repo / "feature_store.yaml").exists():
        known = applied(path, config.state, store)
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


def _problems(config: DaemonConfig, known: Applied) -> Iterator[tuple[str, str]]:
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
    config: DaemonConfig, known: Applied, store: StoreConfig
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
