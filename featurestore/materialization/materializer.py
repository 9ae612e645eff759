"""From sources to the online store: each key's newest row among those that became known.

Above `offline`, `online` and `definitions`, below `store` and `engine`, which is `feast
materialize`: both move views by `Materializer.step`. A row is known from the later of its event
time and its created time. Reading by event time alone, as Feast does, never sees a row that was
written late; reading by either finds it, and the online store's order keeps it from undoing what
is newer. Without a created column lateness cannot be seen: then a source that has changed is read
again as far back as its rows can still be used, which is the TTL.

How far a view has come is kept in the online store, with everything that decided its rows. What
no longer matches is filled again from the start, beside what is served until it is complete.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from feast import StreamFeatureView
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from steadfeast.featurestore.errors import SourceError, StoreUnavailableError
from steadfeast.featurestore.materialization.columns import as_online
from steadfeast.featurestore.materialization.definition import changes, definition_of
from steadfeast.featurestore.materialization.source_rows import BATCH_ROWS, SourceRows, state_of
from steadfeast.featurestore.offline import reading
from steadfeast.featurestore.online import progress as online_progress
from steadfeast.featurestore.online import space_of
from steadfeast.featurestore.tables import instant, micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from feast import FeatureView
    from feast.repo_config import RepoConfig

    from steadfeast.featurestore.online import PackedOnlineStore, Place

_TRIES = 3
_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[rows]:,} rows"),
    TimeElapsedColumn(),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a view was materialized when somebody looked.

    Attributes:
        until: Up to when; None before the first time.
        source: The state of its source then, where that is known.
        moving: Whether any process was moving views forward.
        generation: Which filling its rows are of; empty without any.
        left_out: Rows that the store did not take: too far ahead of the clock, or one too many.
    """

    until: datetime | None
    source: str | None
    moving: bool
    generation: str = ""
    left_out: int = 0


class Materialized(dict[str, int]):
    """Feature view -> entities that changed.

    Attributes:
        notes: Feature view -> why so many or so few, where there is more to say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, str] = {}


class _Plan(NamedTuple):
    """What one step does.

    Attributes:
        since: Rows that became known from then on, in µs; None for all.
        until: Up to then, in µs.
        anew: Whether all rows are written to a generation of their own.
        note: What is unusual about it.
    """

    since: int | None
    until: int
    anew: bool
    note: str


class Materializer:
    """Moves feature views forward.

    Keeps one DuckDB session, so that a small step costs its rows and not its set-up. Safe to
    share between threads; calls wait for each other.

    Args:
        config: Feast's configuration.
        online: Where to write; it remembers how far each view has come.
        lock: File by which others see that a process moves views; none when absent.
    """

    def __init__(self, config: RepoConfig, online: PackedOnlineStore, lock: Path | None) -> None:
        self._config, self._online, self._path = config, online, lock
        self._lock = RLock()
        self._source = SourceRows(config, sort=online.embedded)

    def standing(self, view: FeatureView) -> Standing:
        """Return where `view` stands, by whichever process it was moved.

        What Feast's own engine has moved stands in the registry alone.
        """
        moving, found = self._is_moving(), self._online.progress(self._config, view)
        if found is None or found[1].until is None:
            by_feast = getattr(view, "most_recent_end_time", None)
            place, left_out = ("", 0) if found is None else (found[0].generation, found[1].left_out)
            until = None if by_feast is None else instant(micros(by_feast))
            return Standing(until, None, moving, place, left_out)
        place_of, progress = found
        until = None if progress.until is None else instant(progress.until)
        generation = place_of.generation
        return Standing(until, progress.source, moving, generation, progress.left_out)

    def _is_moving(self) -> bool:
        if self._path is None or not self._path.is_file():
            return False
        with self._path.open("rb") as tried:
            try:
                fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Let others see that what is online changes; the kernel ends it with the process."""
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            yield

    def close(self) -> None:
        """Close the session; the next call opens another."""
        with self._lock:
            self._source.close()

    def run(
        self,
        views: Sequence[FeatureView],
        since: int | None,
        until: int,
        *,
        rebuild: bool = False,
        progress: bool = False,
    ) -> Materialized:
        """Move `views` to `until`; without `since`, from where each was.

        Args:
            views: The feature views.
            since: See `step`.
            until: See `step`.
            rebuild: See `step`.
            progress: Show a bar.
        """
        done = Materialized()
        columns = Progress(*_COLUMNS, transient=True, disable=not progress)
        with self._lock, self._moving(), columns as bar:
            task = bar.add_task("materialize", total=len(views), rows=0)
            for view in views:
                bar.update(task, description=view.name, rows=0)
                done[view.name], note = self.step(
                    view,
                    since,
                    until,
                    rebuild=rebuild,
                    tell=lambda rows: bar.update(task, rows=bar.tasks[0].fields["rows"] + rows),
                )
                if note:
                    done.notes[view.name] = note
                bar.advance(task)
        return done

    def step(
        self,
        view: FeatureView,
        since: int | None,
        until: int,
        *,
        rebuild: bool = False,
        tell: Callable[[int], object],
        known_by: int | None = None,
    ) -> tuple[int, str]:
        """Write each key's greatest row of those that became known up to `until`.

        Args:
            view: The feature view.
            since: Read only what became known from then on, in µs, inclusive; where the view
                was, when absent. From before the first row on, what is online is replaced.
            until: Microseconds, inclusive; now, if that is earlier.
            rebuild: Replace what is online by what the source says.
            tell: Called with the number of rows of each batch.
            known_by: Take rows of before `until` that were created later, up to this time.

        Returns:
            Entities that changed, and what is unusual about it.

        Raises:
            SourceError: The source cannot be read, or a transformation stands before the view.
            StoreUnavailableError: The store does not answer, or others replace the view as well.
        """
        if getattr(view, "feature_transformation", None) is not None and not _streams(view):
            location = getattr(view.batch_source, "name", "")
            raise SourceError(view.name, location, "has a transformation; run it beforehand")
        with self._lock, reading(view.name, getattr(view.batch_source, "name", "")):
            definition = definition_of(view, Path(self._config.repo_path or "."))
            for _ in range(_TRIES):
                state = state_of(self._config, view)
                place = self._online.open_space(self._config, space_of(self._config, view)).served
                held = self._online.progress_at(self._config, place)
                plan = self._plan(view, held, definition, state, since, until, rebuild=rebuild)
                after = online_progress.Progress(definition, plan.until, state)
                if plan.anew:
                    changed = self._replace(view, plan, after, tell)
                    if changed is not None:
                        return changed, plan.note
                    continue
                if held.definition is None:
                    self._declare(place, definition)
                changed = self._pull(view, plan, place, tell)
                if known_by is not None:
                    changed += self._pull_created_later(view, plan, known_by, tell)
                head = self._online.head(self._config, place.space)
                if head is not None and head.served == place:
                    self._online.advance(self._config, place, after)
                    return changed, plan.note
        problem = f"feature view {view.name!r} is being replaced by others"
        raise StoreUnavailableError("the online store", problem)

    def _plan(
        self,
        view: FeatureView,
        held: online_progress.Progress,
        definition: Mapping[str, Any],
        state: str | None,
        since: int | None,
        until: int,
        *,
        rebuild: bool,
    ) -> _Plan:
        now, mark = time_ns() // 1000, held.until
        notes = []
        if until > now:
            notes.append(f"{instant(until).isoformat()} is yet to come: up to now, no further")
            until = now
        by_feast = getattr(view, "most_recent_end_time", None) is not None
        if mark is None:
            # Rows of a push go on being served. Those of other definitions do not, whether a
            # fill was cut off or Feast's own engine wrote them, which says of no row what it was.
            other = by_feast if held.definition is None else held.definition != definition
            anew = rebuild or other
            return _Plan(None, until, anew=anew, note=_said("filled from the start", notes))
        why = ""
        if held.definition != definition:
            why = f"filled anew from the start: {changes(held.definition or {}, definition)}"
        elif rebuild:
            why = "replaced by what the source says, as asked"
        elif since is not None and since < mark <= until and self._source.covers(view, since):
            why = "replaced by what the source says: all of it was asked for"
        if why:
            return _Plan(None, max(until, mark), anew=True, note=_said(why, notes))
        start = mark if since is None else min(since, mark)
        if until < start:
            notes.append(f"nothing to do: it is materialized to {instant(mark).isoformat()}")
        bound = self._source.bound(view).view
        if bound.created is None and (state is None or state != held.source):
            # What was written late cannot be told: read again all that can still be used.
            again = min(start, until - bound.ttl) if bound.ttl else None
            return _Plan(again, until, anew=False, note=_said("", notes))
        return _Plan(start, until, anew=False, note=_said("", notes))

    def declare(self, view: FeatureView) -> None:
        """Say of which definition the rows are that are about to be written, unless that is said.

        A fill that is cut off, or a push before the first one, leaves rows; what is filled next
        must know whether they are of the same definition.
        """
        place = self._online.open_space(self._config, space_of(self._config, view)).served
        if self._online.progress_at(self._config, place).definition is None:
            self._declare(place, definition_of(view, Path(self._config.repo_path or ".")))

    def _declare(self, place: Place, definition: Mapping[str, Any]) -> None:
        self._online.advance(self._config, place, online_progress.Progress(definition))

    def _replace(
        self,
        view: FeatureView,
        plan: _Plan,
        after: online_progress.Progress,
        tell: Callable[[int], object],
    ) -> int | None:
        """Fill a generation and serve it from then on; None when others replaced it meanwhile."""
        place, done = self._online.begin(self._config, space_of(self._config, view)), False
        try:
            changed = self._pull(view, plan, place, tell)
            done = self._online.commit(self._config, place, after)
        finally:
            if not done:
                self._online.abandon(self._config, place)
        return changed if done else None

    def _pull(
        self, view: FeatureView, plan: _Plan, place: Place, tell: Callable[[int], object]
    ) -> int:
        rows = self._source.newly_known(view, plan.since, plan.until)
        where = place if plan.anew else None
        return self.write(view, _told(rows, tell), plan.until, where)

    def _pull_created_later(
        self,
        view: FeatureView,
        plan: _Plan,
        known_by: int,
        tell: Callable[[int], object],
    ) -> int:
        rows = self._source.created_later(view, plan.until, known_by)
        return self.write(view, _told(rows, tell), plan.until, None)

    def write(
        self,
        view: FeatureView,
        rows: Iterable[pa.RecordBatch],
        settled: int | None,
        place: Place | None,
    ) -> int:
        """Write rows under the source's names; return how many entities changed.

        Args:
            view: The feature view.
            rows: Of its source.
            settled: See `PackedOnlineStore.write_batch`.
            place: The generation that is filled; what is served, when absent.
        """
        waiting: list[pa.RecordBatch] = []
        changed = size = 0
        for batch in rows:
            waiting.append(batch)
            size += batch.num_rows
            if size >= BATCH_ROWS:
                changed += self._write(view, waiting, settled, place)
                waiting, size = [], 0
        return changed + (self._write(view, waiting, settled, place) if size else 0)

    def _write(
        self,
        view: FeatureView,
        batches: list[pa.RecordBatch],
        settled: int | None,
        place: Place | None,
    ) -> int:
        table = as_online(view, pa.Table.from_batches(batches))
        return self._online.write_batch(self._config, view, table, settled=settled, place=place)


def _streams(view: FeatureView) -> bool:
    """Say whether a view's transformation is of its stream: its batch source has the outcome."""
    return isinstance(view, StreamFeatureView)


def _said(first: str, notes: Sequence[str] = ()) -> str:
    return "; ".join([*([first] if first else []), *notes])


def _told(
    rows: Iterable[pa.RecordBatch], tell: Callable[[int], object]
) -> Iterable[pa.RecordBatch]:
    for batch in rows:
        yield batch
        tell(batch.num_rows)
