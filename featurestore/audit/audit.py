"""The invariants that can be checked on live data, over every key and every logged vector.

Above `compare`, `logaudit` and `logchecks`, below `store`, which offers it. Set at a time, within a
bound of memory: both sides of I1 stream into DuckDB and meet in one full join. A check that had
nothing to compare is void: it has shown nothing, and says so.

- I1: the online store against the newest offline row at the watermark, TTL applied to both.
  Kinds: missing online, missing offline, stale (an older row than offline's), ahead (one from
  after the watermark, or that offline does not have), value.
- I2: each logged vector against the join of its keys at its request time, by the definitions of
  its contract. Kinds: type, leaked (the served row was not known at the request's time), stale (a
  newer one was known and not yet materialized), missing online, missing offline, value. A feature
  computed on demand takes the first of leaked and stale that holds for a view it reads.
- I4: what the log says of each version of a model. Kind: mixed (served under two contracts).
- I9: what the log says of each key, in the order of each writer. Kind: went back.
- I11: what writers say that they logged against what the files hold. Kinds: lost, unwritten (a
  process ended with it in memory), repeated (a request id that stands for a second vector),
  unknown request (a label, or another version's prediction, of a request that is not there). What
  a writer dropped, and counted, is not lost; it makes I2 void for that window.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Protocol

import duckdb
import pyarrow as pa

from steadfeast.featurestore import offline
from steadfeast.featurestore.audit.log import (
    log_is_complete,
    never_back,
    one_contract_each,
    request_ids,
)
from steadfeast.featurestore.audit.online import compare
from steadfeast.featurestore.audit.report import AuditReport, Check, Redactor
from steadfeast.featurestore.audit.served import Replayed, served_against_offline
from steadfeast.featurestore.definitions import registered_views
from steadfeast.featurestore.errors import DamagedFilesError
from steadfeast.featurestore.materialization import as_online
from steadfeast.featurestore.offline import at_most, session
from steadfeast.featurestore.served_log import damaged, lineage
from steadfeast.featurestore.tables import micros

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from feast import FeatureView

    from steadfeast.featurestore.audit.online import Compared
    from steadfeast.featurestore.audit.served import Window
    from steadfeast.featurestore.materialization import Standing
    from steadfeast.featurestore.online import PackedOnlineStore
    from steadfeast.featurestore.served_log import ServedLog

__all__ = ["AuditReport", "Check", "audit"]

_MEMORY = "2GiB"
"""What a query of an audit may hold, where `offline_store.memory_limit` does not say."""

LOOKS = 3
"""Comparisons of a view that is being materialized, until one of them says something."""

WAIT_SECONDS = 60.0
"""How long each waits for a materialization to end."""

_POLL_SECONDS = 0.1

_MINIMUM = datetime(1970, 1, 1, tzinfo=UTC)
_MAXIMUM = datetime(9999, 1, 1, tzinfo=UTC)


class Audited(Replayed, Protocol):
    """What an audit needs of a store."""

    served: ServedLog

    @property
    def online(self) -> PackedOnlineStore:
        """The online store."""

    def standing(self, view: str) -> Standing:
        """Return how far a view was materialized, and whether some process is at it."""


def audit(
    store: Audited, service: str, *, start: datetime | None = None, end: datetime | None = None
) -> AuditReport:
    """Check I1 on each view of `service`; I2, I4, I9 and I11 on its log.

    Args:
        store: The store.
        service: The feature service.
        start: Served rows from this request time on.
        end: Served rows before this request time.

    Raises:
        NotFoundError: There is no such service.
        DamagedFilesError: Files of the log or of the labels cannot be read.
    """
    try:
        with at_most(_MEMORY):
            return AuditReport(
                service,
                store.bundle(service).contract.sha256,
                tuple(_checks(store, service, (start, end), Redactor())),
            )
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        # The engine does not always name the file that it could not read.
        problems = damaged(_logged(store, service))
        if not problems:
            raise
        raise DamagedFilesError(problems) from error


def _logged(store: Audited, service: str) -> list[Path]:
    kinds = (store.served.files, store.served.label_files, store.served.prediction_files)
    return [path for kind in kinds for path in kind(service, _MINIMUM, _MAXIMUM)]


def _checks(store: Audited, service: str, window: Window, redactor: Redactor) -> Iterator[Check]:
    plan = store.bundle(service).plan
    names = {view.view.name for view in plan.views}
    for view in registered_views(store.feast):
        if view.name in names and view.online:
            yield online_against_offline(store, view, redactor)
    intakes = store.served.intakes(service)  # first: what is written meanwhile is then no loss
    every = {path: lineage(path) for path in store.served.files(service, _MINIMUM, _MAXIMUM)}
    files = store.served.files(service, window[0] or _MINIMUM, window[1] or _MAXIMUM)
    chosen = {path: every[path] for path in files if path in every}
    dropped = sum(told.dropped for told in chosen.values())
    yield served_against_offline(store, service, files, window, dropped, redactor)
    chosen = {path: told for path, told in chosen.items() if told.holds}
    if chosen:
        found = [one_contract_each(store, service, list(chosen), window)]
        found += [never_back(store, service, view, chosen, window, redactor) for view in plan.views]
        yield from (check for check in found if check is not None)
    others = (
        store.served.label_files(service, _MINIMUM, _MAXIMUM),
        store.served.prediction_files(service, _MINIMUM, _MAXIMUM),
    )
    ids = request_ids(store, list(every), *others)
    yield log_is_complete(service, every, store.served.collected(service), intakes, ids)


def online_against_offline(store: Audited, view: FeatureView, redactor: Redactor) -> Check:
    """I1: compare every key of one view at its watermark, both ways.

    What differs while some process materializes may be that process's next rows: it counts only
    if the view stood still from before the comparison to after it.
    """
    for _ in range(LOOKS):
        before = _at_rest(store, view.name)
        if before.until is None:
            return Check("I1", view.name, 0, note="never materialized")
        waiting: Counter[str] = Counter()
        found = _compared(store, view, before.until, redactor, waiting)
        if not found.mismatches or (not before.moving and store.standing(view.name) == before):
            break
    else:
        void = f"void: something differed, and rows came online each of {LOOKS} times meanwhile"
        return Check("I1", view.name, found.rows * len(view.features), void=void)
    note = f"at {before.until.isoformat()}"
    if not found.rows:
        note += "; neither side holds a usable row"
    if waiting.total():
        note += f"; {waiting.total()} rows online are due later, and hide nothing before"
    if before.left_out:
        note += f"; {before.left_out} rows were left out: ahead of the clock"
    cells = found.rows * len(view.features)
    return Check(
        "I1",
        view.name,
        cells,
        found.mismatches,
        found.examples,
        note,
        features=found.features,
    )


def _at_rest(store: Audited, view: str) -> Standing:
    """Return where a view stands, once nothing moves or `WAIT_SECONDS` have passed."""
    deadline = monotonic() + WAIT_SECONDS
    while (found := store.standing(view)).moving and monotonic() < deadline:
        sleep(_POLL_SECONDS)
    return found


def _compared(
    store: Audited,
    view: FeatureView,
    until: datetime,
    redactor: Redactor,
    waiting: Counter[str],
) -> Compared:
    config = store.feast.config
    newest = offline.latest(config, view, None, until)
    with session(config) as connection:
        return compare(
            connection,
            view,
            store.online.scan(config, view, micros(until), waiting),
            (as_online(view, batch) for batch in newest),
            micros(until),
            redactor,
        )
