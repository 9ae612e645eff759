"""References: which are to be built anew, and when the one that is held will do.

Above `references`, which reads a training set or a stretch; below `evaluation`, which commits what
is built here. Nothing here changes the ledger.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import duckdb
import structlog

from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.tables import kept_path, path_of
from steadfeast.measures import measure_named
from steadfeast.monitor.drift import VERSION, statistic
from steadfeast.monitor.drift.multivariate.detector import required
from steadfeast.monitor.references import (
    STRETCH,
    reference_from,
    reference_from_stretch,
    stretch_uri,
)
from steadfeast.monitor.sources import check as check_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from steadfeast.monitor.config import DaemonConfig, MonitorConfig
    from steadfeast.monitor.drift import Outdated, Reference
    from steadfeast.monitor.ledger import Ledger, Position
    from steadfeast.monitor.sources import Source, Sources
    from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run

log = structlog.get_logger(__name__)

STUCK_SECONDS = 3600.0
"""A build of a reference that runs for longer is stuck."""

_REFERENCE_FIELDS: dict[str, Any] = {
    **dict.fromkeys(
        ("bucket", "window", "min_rows", "statistic", "features", "false_alarms_per_year",
         "false_alarm_days_per_year", "smallest_change", "calendar", "segments", "scored"),
        True,
    ),
    "performance": {"metric"},
}  # fmt: skip
"""What of a monitor's configuration a reference depends on."""


class OutsideFolderError(UserError):
    """A pipeline's run names a file that it may not have the daemon read.

    Attributes:
        field: The field of the run.
        place: Where it leads, links resolved.
    """

    def __init__(self, field: str, place: Path, folder: Path) -> None:
        self.field, self.place = field, place
        super().__init__(
            f"{field} leads to {place}, outside the store's data folder {folder}: a run may name "
            "files in that folder alone; have the pipeline use the same folder, or name the "
            "training set as the monitor's `reference`"
        )


class OutdatedReferenceError(UserError):
    """A reference that another build stored cannot be built anew.

    Attributes:
        monitor: Whose it is.
        version: Of the stored reference.
    """

    def __init__(self, monitor: str, version: int, problem: UserError) -> None:
        self.monitor, self.version = monitor, version
        super().__init__(
            f"monitor.monitors.{monitor}: its reference was stored by another Steadfeast (version "
            f"{version}; this one reads {VERSION}) and cannot be built anew: {problem}; bring the "
            f"training set back, or name another as `reference`"
        )


class ReferenceBuilder:
    """Builds references, one at a time and always in the same thread.

    What a build allocates and frees, tens of megabytes, stays with the thread that did: in
    whichever thread has heard of a promotion it would be as much again for each.

    Args:
        ledger: Says what is held.
        data: Folder of the store, from where kept paths are seen.
    """

    def __init__(self, ledger: Ledger, data: Path) -> None:
        self._ledger, self._data = ledger, data
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="references")
        self._began: float | None = None

    def close(self) -> None:
        """Wait for a build under way."""
        self._thread.shutdown()

    def problem(self) -> str:
        """Return that a build is stuck; empty while none is."""
        began = self._began
        if began is None or monotonic() - began <= STUCK_SECONDS:
            return ""
        return f"references: a build is stuck: it runs for {monotonic() - began:.0f} s"

    def prepare(self, config: DaemonConfig, sources: Sources) -> dict[str, Reference]:
        """Build the references that `config` needs anew.

        Raises:
            UserError: The configuration does not fit what is watched, or the reference.
        """
        built: dict[str, Reference] = {}
        for name, monitor in config.monitors.items():
            statistic(monitor.statistic)
            required(monitor)
            if monitor.performance is not None:
                measure_named(monitor.performance.metric)
            held = self._ledger.held(name)
            source = sources.of(name, monitor)
            check_source(source, monitor)
            outdated = held.outdated
            try:
                found = self._anew(monitor, held, source)
            except UserError as error:
                if outdated is None:
                    raise
                raise OutdatedReferenceError(name, outdated.version, error) from error
            if found is not None:
                built[name] = found
            if outdated is not None:
                log.info(
                    "reference_outdated", monitor=name, version=outdated.version, reads=VERSION
                )
        return built

    def _anew(self, monitor: MonitorConfig, held: Position, source: Source) -> Reference | None:
        """Build the reference of one monitor, if it is not the one that is held."""
        old, pinned = held.reference or held.outdated, monitor.manifest
        if monitor.stretch is not None:
            same = old is not None and old.uri == stretch_uri(monitor)
            if same and old is not None and held.reference_key == reference_key(old, monitor):
                return None
            return self._built(reference_from_stretch, source, monitor)
        if pinned is not None and (old is None or old.uri != kept_path(pinned, self._data)):
            return self._of_manifest(
                kept_path(pinned, self._data), self._scored_of(monitor), monitor
            )
        if old is None or old.uri.startswith(STRETCH):
            return None  # the champion's comes with the next look at the pipelines
        if held.reference_key == reference_key(old, monitor):
            return None
        return self._of_manifest(
            old.uri,
            old.scored_uri if pinned is None else self._scored_of(monitor),
            monitor,
            model_version=old.model_version,
            performance=old.performance if pinned is None else None,
        )

    def of_run(self, run: Run, config: DaemonConfig) -> dict[str, Reference]:
        """Build the reference of each of the monitors of a promoted run's model.

        Monitors whose reference the configuration names keep it.

        Raises:
            OutsideFolderError: The run names a file outside the store's data folder.
            UserError: The training set is missing or cannot be a reference.
        """
        for field in ("manifest_uri", "scored_uri"):
            self._check_inside(field, getattr(run, field))
        return {
            name: self._of_manifest(
                run.manifest_uri,
                # A table has no predictions of the model to compare.
                run.scored_uri if monitor.service else "",
                monitor,
                model_version=run.model_version,
                performance=dict(run.metrics),
            )
            for name, monitor in config.monitors.items()
            if monitor.model == run.model and monitor.reference is None
        }

    def _check_inside(self, field: str, kept: str) -> None:
        """Refuse what leads out of the data folder, by dots or by links: a run is not ours.

        Raises:
            OutsideFolderError: It does.
        """
        place = path_of(kept, self._data).resolve()
        if kept and not place.is_relative_to(self._data.resolve()):
            raise OutsideFolderError(field, place, self._data)

    def _scored_of(self, monitor: MonitorConfig) -> str:
        """Return the rows that the configuration names, as a path that is kept."""
        return "" if monitor.scored is None else kept_path(monitor.scored, self._data)

    def _of_manifest(
        self, manifest: str, scored: str, monitor: MonitorConfig, **known: Any
    ) -> Reference:
        """Build the reference of a training set; both paths as they are kept, or absolute."""
        place = path_of(manifest, self._data)
        beside = path_of(scored, self._data) if scored else None
        built = self._built(reference_from, place, monitor, scored=beside, **known)
        return replace(built, uri=manifest, scored_uri=scored)

    def _built(self, build: Callable[..., Reference], *given: Any, **known: Any) -> Reference:
        return self._thread.submit(self._timed, build, *given, **known).result()

    def _timed(self, build: Callable[..., Reference], *given: Any, **known: Any) -> Reference:
        self._began = monotonic()
        try:
            return _connected(build, *given, **known)
        finally:
            self._began = None


def _connected(build: Callable[..., Reference], *given: Any, **known: Any) -> Reference:
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")  # it draws into the log
        return build(con, *given, **known)


def reference_key(reference: Reference | Outdated, config: MonitorConfig) -> str:
    """Return what changes whenever the reference, how it is built, or what for does."""
    made_for = config.model_dump_json(include=_REFERENCE_FIELDS)
    text = f"{VERSION}\n{reference.uri}\n{reference.model_version}\n{made_for}"
    if config.source is not None:
        text += f"\n{config.source.model_dump_json()}"
    if config.multivariate:
        text += "\nmultivariate"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
