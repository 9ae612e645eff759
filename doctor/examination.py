"""All checks of one configuration file, in order. Above all but `cli`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from steadfeast.doctor.files import folder_findings, secret_findings
from steadfeast.doctor.findings import Finding, Level
from steadfeast.doctor.models import model_findings
from steadfeast.doctor.servers import monitor_findings, server_findings
from steadfeast.doctor.store import configuration_findings, store_findings
from steadfeast.featurestore import Store
from steadfeast.featurestore.config import StoreConfig, load_section, read_mapping, sections
from steadfeast.featurestore.errors import ConfigError
from steadfeast.featurestore.security import SecurityConfig, load_security
from steadfeast.monitor.config import load as load_monitor
from steadfeast.pipeline.config import load as load_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from steadfeast.featurestore.definitions import Defined

_Section = TypeVar("_Section")
_ORDER = list(Level)


def examine(path: Path) -> list[Finding]:
    """Return what is missing or risky of a configuration and the repo that it leads to.

    The worst first. Nothing is applied or repaired; opening the store makes its folder and Feast's
    registry file where they are missing, and the folder private, as every command does.

    Raises:
        ConfigError: The file cannot be read, or its section `store` is wrong.
    """
    there, config = sections(path), load_section(path, "store", StoreConfig)
    found: list[Finding] = []
    defined: Defined | None = None
    try:
        with Store(config, file=path) as store:
            some, defined = store_findings(store)
            found += some
    except ConfigError as error:
        found += configuration_findings(error)
    security = _section(found, path, load_security) or SecurityConfig()
    monitor = pipeline = None
    if "monitor" in there:
        monitor = _section(found, path, lambda file: load_monitor(file)[0])
    if "pipeline" in there:
        pipeline = _section(found, path, lambda file: load_pipeline(file)[0])
    if monitor is not None:
        found += monitor_findings(monitor, pipeline, defined)
    if pipeline is not None:
        found += model_findings(path.resolve().parent, pipeline, monitor, defined)
    found += server_findings(monitor, pipeline, security)
    folders = {"store.data": config.data}
    folders |= {} if monitor is None else {"monitor.state": monitor.state}
    folders |= {} if pipeline is None else {"pipeline.state": pipeline.state}
    for field, folder in folders.items():
        found += folder_findings(field, folder)
    for file in (path, config.repo / "feature_store.yaml"):
        if file.is_file():
            found += secret_findings(file, read_mapping(file, "settings"))
    return sorted(dict.fromkeys(found), key=lambda one: _ORDER.index(one.level))


def _section(found: list[Finding], path: Path, load: Callable[[Path], _Section]) -> _Section | None:
    """Return a section, or add what is wrong with it."""
    try:
        return load(path)
    except ConfigError as error:
        found += configuration_findings(error)
        return None
