"""What the served log says of itself: I4, I9 and I11, with nothing joined or replayed.

Above `report` and `logfiles`, below `audit`. I4 and I9 are one pass of DuckDB over the columns that
they need; where the log says nothing of them, as where no model is named, there is no such check.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from steadfeast.featurestore.audit.report import EXAMPLES, Check, Redactor
from steadfeast.featurestore.definitions import personal_columns
from steadfeast.featurestore.offline import session
from steadfeast.featurestore.served_log import Intake, Lineage, Run
from steadfeast.featurestore.tables import EPOCH, identifier, parquet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from steadfeast.featurestore.audit.served import Replayed, Window
    from steadfeast.featurestore.definitions import StoredView

_IN_FLIGHT_US = 60_000_000
"""Requests so close to each other may be logged in another order than they were read in."""


def log_is_complete(
    service: str,
    files: Mapping[Path, Lineage],
    collected: Sequence[Run],
    intakes: Sequence[Intake],
    ids: RequestIds,
) -> Check:
    """I11: each writer's files, in order, hold all rows that it says it logged, each once.

    Nor may a process have ended with vectors that it never wrote. What was collected on purpose
    counts as there: it was, and was remembered. Where vectors are not there any more, or never
    were, an id that nothing is known of is no mismatch.
    """
    lost, written, examples = _lost(files, collected)
    waiting = unwritten = 0
    for intake in intakes:
        missing = max(0, intake.rows - intake.dropped - written.get(intake.writer, 0))
        if intake.alive:
            waiting += missing
        elif missing:
            unwritten += missing
            until = EPOCH + timedelta(microseconds=intake.last_time)
            examples.append({"writer": intake.writer, "unwritten": missing, "until": until})
    dropped = sum(told.dropped for told in files.values())
    gone = sum(run.rows for run in collected)
    excused = bool(dropped or waiting or collected)
    notes = [
        (dropped, f"{dropped} more were dropped and counted"),
        (waiting, f"{waiting} more wait in the memory of a process that serves"),
        (collected, f"{gone} more were collected"),
        (
            excused and ids.unknown,
            f"{ids.unknown} labels and predictions are of requests that are not there",
        ),
        (not (files or collected or intakes), "nothing was logged"),
    ]
    kinds = {
        "lost": lost,
        "unwritten": unwritten,
        "repeated": ids.repeated,
        "unknown request": 0 if excused else ids.unknown,
    }
    return Check(
        "I11",
        service,
        sum(told.holds for told in files.values()),
        {kind: count for kind, count in kinds.items() if count},
        [*examples, *ids.examples][:EXAMPLES],
        "; ".join(note for holds, note in notes if holds),
    )


def _lost(
    files: Mapping[Path, Lineage], collected: Sequence[Run]
) -> tuple[int, dict[str, int], list[dict[str, Any]]]:
    """Return rows that were written and are not there, rows written by writer, and examples."""
    writers: dict[str, list[tuple[Lineage, str]]] = {}
    written: dict[str, int] = {}
    lost, examples = 0, []
    for run in collected:
        told = Lineage(run.writer, run.first, run.rows, run.rows, run.before, 0)
        writers.setdefault(run.writer, []).append((told, ""))
    for path, told in files.items():
        if any(r.writer == told.writer and r.first <= told.number <= r.last for r in collected):
            continue  # a collection that was cut short left it
        if told.said != told.holds:
            lost += abs(told.said - told.holds)
            examples.append({"file": path.name, "said": told.said, "holds": told.holds})
        writers.setdefault(told.writer, []).append((told, path.name))
    for writer, pieces in writers.items():
        expected = 0
        for told, name in sorted(pieces, key=lambda piece: piece[0].number):
            if told.before != expected:
                gone = told.before - expected
                lost += gone
                examples.append({"before": name, "file_number": told.number, "lost": gone})
            expected = told.before + told.said
        written[writer] = expected
    return lost, written, examples


@dataclass(frozen=True, slots=True)
class RequestIds:
    """What the request ids of a log refer to.

    Attributes:
        repeated: Vectors, and other predictions of one version, beyond the first of their request
            id. The same prediction sent again is none.
        unknown: Labels and predictions of requests that have no vector.
        examples: A few of both.
    """

    repeated: int
    unknown: int
    examples: list[dict[str, Any]]


def request_ids(
    store: Replayed, served: Sequence[Path], labels: Sequence[Path], predictions: Sequence[Path]
) -> RequestIds:
    """Count request ids that stand for more than one vector, and those that stand for none."""
    queries = []
    one = f"{_ID}, model, model_version"
    for files, count, key in ((served, "*", _ID), (predictions, "DISTINCT prediction", one)):
        if files:
            counted = f"SELECT {_ID}, count({count}) - 1 AS n FROM {_scan(files)} GROUP BY {key}"
            queries.append(("repeated", f"({counted}) WHERE n > 0"))
    known = _scan(served) if served else f"(SELECT NULL::VARCHAR AS {_ID})"
    for files in (labels, predictions):
        if files:
            scan = f"SELECT {_ID}, 1 AS n FROM {_scan(files)}"
            queries.append(("unknown", f"({scan}) ANTI JOIN {known} AS known USING ({_ID})"))
    counts, examples = {"repeated": 0, "unknown": 0}, []
    with session(store.feast.config) as connection:
        for kind, query in queries:
            few = f"SELECT coalesce(sum(n), 0)::BIGINT, min({_ID}, {EXAMPLES}) FROM {query}"
            count, worst = connection.execute(few).fetchall()[0]
            counts[kind] += count
            said = "repeated" if kind == "repeated" else "unknown request"
            examples += [{"kind": said, "request_id": name} for name in worst or ()]
    return RequestIds(counts["repeated"], counts["unknown"], examples)


_ID = "request_id"


def one_contract_each(
    store: Replayed, service: str, files: Sequence[Path], window: Window
) -> Check | None:
    """I4: a version of a model was served under one contract; None where no model is named."""
    with session(store.feast.config) as connection:
        found = connection.execute(
            f"""SELECT model, model_version, contract, count(*), min(request_time)
            FROM {_scan(files)} WHERE model <> '' AND {_within(window)}
            GROUP BY ALL ORDER BY model, model_version, count(*) DESC, contract"""
        ).fetchall()
    most: dict[tuple[str, str], str] = {}
    rows = mixed = 0
    examples = []
    for model, version, contract, count, since in found:
        rows += count
        if most.setdefault((model, version), contract) == contract:
            continue
        mixed += count
        told = {"kind": "mixed", "model": model, "version": version, "since": since}
        told |= {"contract": contract, "mostly": most[model, version], "rows": count}
        examples.append(told)
    mismatches = {"mixed": mixed} if mixed else {}
    return Check("I4", service, rows, mismatches, examples[:EXAMPLES]) if rows else None


def never_back(
    store: Replayed,
    service: str,
    view: StoredView,
    files: Mapping[Path, Lineage],
    window: Window,
    redactor: Redactor,
) -> Check | None:
    """I9: no key of a view was served an older row after a newer one; None without any row.

    Told from the order in which each writer logged its requests. Left out are requests for a
    time before that of an earlier one, and what is in flight together.
    """
    order = pa.table(
        {
            "filename": [str(path) for path in files],
            "writer": [told.writer for told in files.values()],
            "number": [told.number for told in files.values()],
        }
    )
    keys = [identifier(column) for column in view.keys.values()]
    event = identifier(f"{view.name}__event_timestamp")
    by = ", ".join(["writer", "contract", *keys])
    with session(store.feast.config) as connection:
        connection.register("written", order)
        relation = connection.sql(
            f"""WITH logged AS (SELECT writer, contract, request_id, request_time, {event} AS event,
                epoch_us(request_time) AS t, max(request_time) OVER (
                    PARTITION BY writer ORDER BY number, file_row_number) AS latest
                {"".join(f", {key}" for key in keys)}
                FROM {_scan(list(files), places=True)} JOIN written USING (filename)
                WHERE {_within(window)}),
            judged AS (SELECT *, max(event) OVER (PARTITION BY {by} ORDER BY t RANGE BETWEEN
                UNBOUNDED PRECEDING AND {_IN_FLIGHT_US} PRECEDING) AS best
                FROM logged WHERE request_time = latest AND event IS NOT NULL)
            SELECT count(*) AS rows, count(*) FILTER (WHERE event < best) AS back,
            min_by({{'request_id': request_id, 'request_time': request_time, 'event': event,
                'best': best{"".join(f", 'k{i}': {key}" for i, key in enumerate(keys))}}},
                request_time, {EXAMPLES}) FILTER (WHERE event < best) AS worst FROM judged"""
        )
        rows, back, worst = relation.fetchall()[0]
    if not rows:
        return None
    personal = personal_columns(store.bundle(service).plan)
    examples = [
        {
            "kind": "went back",
            "request_id": one["request_id"],
            "request_time": one["request_time"],
            "key": {
                column: redactor.show(one[f"k{i}"], personal=column in personal)
                for i, column in enumerate(view.keys.values())
            },
            "served_event_time": one["event"],
            "served_before": one["best"],
        }
        for one in worst or ()
    ]
    return Check("I9", view.name, rows, {"went back": back} if back else {}, examples)


def _scan(files: Sequence[Path], *, places: bool = False) -> str:
    scan = parquet([str(path) for path in files])
    united = ", union_by_name=true" if len(files) == 1 else ""
    more = ", filename=true, file_row_number=true" if places else ""
    return scan[:-1] + united + more + ")"


def _within(window: Window) -> str:
    bounds = [
        f"request_time {sign} '{bound.isoformat()}'::TIMESTAMPTZ"
        for sign, bound in zip((">=", "<"), window, strict=True)
        if bound is not None
    ]
    return " AND ".join(bounds) or "true"
