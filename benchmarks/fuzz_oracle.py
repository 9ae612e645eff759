"""What a program of the fuzz must answer: a loop over rows in plain Python.

Shares nothing with the store: no Arrow, no SQL, no packed rows. Where two rows tie in both times,
any of them may win, but each time the same one: what won once is remembered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fuzz_program import Frame, Part, Program, Row, State, Step, View

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CHANGES = frozenset(
    [
        "rows",
        "correct",
        "drop",
        "ttl",
        "feature",
        "source",
        "remove",
        "add",
        "materialize",
        "rebuild",
        "push",
        "lose",
    ]
)


def bits(value: Any) -> Any:
    """Return what tells null, NaN, -0.0 and types apart."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, list) and value and all(map(_is_entry, value)):
        value = sorted(dict(value).items())  # a map has no order; of equal keys the last stays
    if isinstance(value, (list, tuple)):
        return tuple(bits(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, bits(item)) for name, item in value.items())
    return type(value).__name__, value


def _is_entry(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == len(("key", "value")) and type(item[0]) is str


def newest(rows: Iterable[Row], view: View, key: tuple[Any, ...], at: int) -> list[Row]:
    """Return the rows of a key that may be used at a time and of which none is newer."""
    best: list[Row] = []
    for row in rows:
        if bits(row.key) != bits(key) or None in key or row.at > at:
            continue
        if (view.created and row.made > at) or (view.ttl and at - row.at > view.ttl):
            continue
        rank = (row.at, row.made) if view.created else (row.at,)
        first = (best[0].at, best[0].made)[: len(rank)] if best else None
        if first is None or rank > first:
            best = [row]
        elif rank == first:
            best.append(row)
    return best


@dataclass
class Online:
    """What is online of one view.

    Attributes:
        exact: Whether the loop can say what is online; after an edit of the past it cannot, until
            the view is filled anew.
        mark: Up to when it was filled.
        filled: The view that it was filled for.
        pushed: The latest time of a row that was pushed.
    """

    rows: list[Row] = field(default_factory=list)
    exact: bool = True
    mark: int | None = None
    filled: View | None = None
    pushed: int = -(10**18)


@dataclass(frozen=True)
class Logged:
    """One vector that was served."""

    service: str
    parts: tuple[tuple[Part, View], ...]
    keys: dict[str, Any]
    at: int
    values: tuple[tuple[tuple[str, ...], Any], ...]


class Disagreement(Exception):  # noqa: N818 - it is no error of the fuzz
    """The store and the loop do not say the same."""


class Oracle:
    """Takes in a program step by step, and judges what the store made of each.

    Attributes:
        checks: Cells that were compared.
    """

    def __init__(self, program: Program) -> None:
        self.state = State.of(program)
        self.online: dict[str, Online] = {}
        self.checks = 0
        self._now = 0 if not program.base else 10**18
        self._trained: dict[str, tuple[Any, Any]] = {}
        self._logged: list[Logged] = []
        self._beats: set[tuple[Any, Any]] = set()
        self._smooth = True
        self._removed: dict[str, View] = {}
        for view in program.views:
            self.state.sources[view.path] = []

    def takes(self, step: Step) -> bool:
        """Take in what a step changes; say whether it can be done at all."""
        name, *given = step
        if name in {"rows", "correct", "drop", "ttl", "feature", "source", "remove", "push"}:
            subject = given[1] if name == "push" else given[0]
            if subject not in self.state.views:
                return False
        if name in {"train", "read", "audit"}:
            service = given[0] if name == "audit" else given[1]
            if not self.state.outputs(service):
                return False
        if name == "replay" and given[0] not in self._trained:
            return False
        if name == "add" and given[0] not in self._removed:
            return False
        if name in {"correct", "drop"}:
            path = self.state.views[given[0]].path
            if not self.state.sources[path]:
                return False
        if name in _CHANGES:
            getattr(self, f"_{name}")(*given)
        return True

    # what changes

    def _on(self, path: str) -> list[Online]:
        return [
            self.online[view.name]
            for view in self.state.views.values()
            if view.path == path and view.name in self.online
        ]

    def _rows(self, name: str, rows: Sequence[Row]) -> None:
        view = self.state.views[name]
        for other in self.state.views.values():
            held = self.online.get(other.name)
            if other.path != view.path or held is None or held.mark is None:
                continue
            if other.created and any(max(row.at, row.made) <= held.mark for row in rows):
                held.exact = False
        self.state.sources[view.path] = [*self.state.sources[view.path], *rows]

    def _edited(self, view: View) -> None:
        self._smooth = False
        for held in self._on(view.path):
            held.exact = False

    def _correct(self, name: str, number: int, values: tuple[Any, ...]) -> None:
        view = self.state.views[name]
        rows = list(self.state.sources[view.path])
        row = rows[number % len(rows)]
        rows[number % len(rows)] = replace(row, values=(*values, *row.values[len(values) :]))
        self.state.sources[view.path] = rows
        self._edited(view)

    def _drop(self, name: str, number: int) -> None:
        view = self.state.views[name]
        rows = list(self.state.sources[view.path])
        del rows[number % len(rows)]
        self.state.sources[view.path] = rows
        self._edited(view)

    def _ttl(self, name: str, ttl: int) -> None:
        view = self.state.views[name]
        longer = view.ttl and (not ttl or ttl > view.ttl)
        self.state.views[name] = replace(view, ttl=ttl)
        self._smooth = False
        if longer and not view.created and name in self.online:
            self.online[name].exact = False  # late rows were looked for within the shorter one

    def _feature(self, name: str, column: Any, values: tuple[Any, ...]) -> None:
        view = self.state.views[name]
        self.state.views[name] = replace(view, features=(*view.features, column))
        self.state.sources[view.path] = [
            replace(row, values=(*row.values, values[i % len(values)]))
            for i, row in enumerate(self.state.sources[view.path])
        ]
        self._redefined(name)

    def _source(self, name: str, path: str, rows: Sequence[Row]) -> None:
        self.state.views[name] = replace(self.state.views[name], path=path)
        self.state.sources[path] = list(rows)
        self._redefined(name)

    def _remove(self, name: str) -> None:
        self._removed[name] = self.state.views.pop(name)
        self.online.pop(name, None)
        self._smooth = False

    def _add(self, name: str) -> None:
        self.state.views[name] = self._removed.pop(name)
        self._smooth = False

    def _redefined(self, name: str) -> None:
        self._smooth = False
        if name in self.online:
            self.online[name].exact = False

    def _materialize(self, _: int, until: int) -> None:
        for view in self.state.views.values():
            held = self.online.setdefault(view.name, Online())
            same = held.filled is not None and held.filled.identity == view.identity
            if held.mark is None and (held.filled is None or same):
                streamed = held.rows
                self._fill(view, held, until)
                held.rows = [*streamed, *held.rows]
            elif held.mark is None or not same:
                self._fill(view, held, until)
            elif min(until, self._now) > held.mark:
                held.rows = [*held.rows, *self._known(view, until)]
                held.mark = min(until, self._now)
            elif not view.created:  # what was written late cannot be told: all is read again
                held.rows = [*held.rows, *self._known(view, until)]

    def _rebuild(self, _: int, until: int) -> None:
        self._smooth = False
        for view in self.state.views.values():
            self._fill(view, self.online.setdefault(view.name, Online()), until)

    def _fill(self, view: View, held: Online, until: int) -> None:
        mark = min(until, self._now)
        if held.mark is not None:
            mark = max(mark, held.mark)  # which never goes back
        held.rows, held.filled, held.mark = self._known(view, mark), view, mark
        held.exact = held.pushed <= mark

    def _known(self, view: View, until: int) -> list[Row]:
        rows = self.state.sources[view.path]
        return [r for r in rows if r.at <= until and (not view.created or r.made <= until)]

    def _push(self, _: int, name: str, rows: Sequence[Row]) -> None:
        view = self.state.views[name]
        held = self.online.setdefault(name, Online())
        if held.filled is None:
            held.filled = view
        held.rows = [*held.rows, *rows]
        usable = [row for row in rows if max(row.at, row.made) <= self._now]
        held.pushed = max([held.pushed, *(max(row.at, row.made) for row in rows)])
        for other in self._on(view.path):
            if other is not held and usable and other.mark is not None:
                other.exact = False
        self.state.sources[view.path] = [*self.state.sources[view.path], *usable]

    def _lose(self) -> None:
        self.online.clear()
        self._smooth = False

    # what is judged

    def may_refuse(self, step: Step) -> bool:
        """Say whether a clear refusal is an answer to a step."""
        if step[0] == "push":
            return any(max(row.at, row.made) > self._now for row in step[3])
        if step[0] == "read":
            views = {part.view for part in self.state.parts(step[2])}
            return any(
                name not in self.online or self.online[name].mark is None for name in views
            ) or any(not self._exact(name) for name in views)
        return False

    def _exact(self, name: str) -> bool:
        held, view = self.online.get(name), self.state.views[name]
        if held is None:
            return True
        return held.exact and (held.filled is None or held.filled.identity == view.identity)

    def judge(self, step: Step, got: Any) -> None:
        """Compare what a step gave back.

        Raises:
            Disagreement: It is not what the loop says.
        """
        name, *given = step
        if name == "train":
            table, features = got
            self._trained[given[0]] = (table.schema, bits(table.to_pylist()))
            rows = _rows_of(table, features)
            self._compare(given[1], given[2], [at for _, at in given[2]], rows, offline=True)
        elif name == "replay":
            if (got.schema, bits(got.to_pylist())) != self._trained[given[0]]:
                raise Disagreement("a replay gives other rows")
        elif name == "read":
            self._read(got, *given)
        elif name == "audit":
            self._audit(given[0], got)

    def _read(self, got: Any, _: int, service: str, frame: Frame, at: int, log: bool) -> None:
        rows = _rows_of(*got)
        self._compare(service, frame, [at] * len(frame), rows, offline=False)
        if not log:
            return
        outputs = self.state.outputs(service)
        parts = tuple((part, self.state.views[part.view]) for part in self.state.parts(service))
        for (keys, _at), values in zip(frame, rows, strict=True):
            named = tuple(
                ((part.view, part.alias, name), bits(value))
                for (part, name), value in zip(outputs, values, strict=True)
            )
            self._logged.append(Logged(service, parts, keys, at, named))

    def _compare(
        self, service: str, frame: Frame, times: list[int], rows: list[Any], *, offline: bool
    ) -> None:
        outputs = self.state.outputs(service)
        if len(rows) != len(frame) or any(len(row) != len(outputs) for row in rows):
            raise Disagreement(f"{len(rows)} rows for {len(frame)}, {len(outputs)} features")
        for part in self.state.parts(service):
            view = self.state.views[part.view]
            if not offline and not self._exact(view.name):
                continue
            held = self.online.get(view.name, Online())
            source = self.state.sources[view.path] if offline else held.rows
            places = [i for i, (other, _) in enumerate(outputs) if other is part]
            names = [outputs[i][1] for i in places]
            for (keys, _), at, row in zip(frame, times, rows, strict=True):
                key = tuple(keys[column] for column in part.keys)
                candidates = newest(source, view, key, at)
                self.checks += len(places)
                self._agree(view, candidates, names, [row[i] for i in places], (key, at))

    def _agree(
        self, view: View, candidates: list[Row], names: list[str], got: list[Any], where: Any
    ) -> None:
        index = {column.name: i for i, column in enumerate(view.features)}
        found = bits(got)
        wanted = {bits([row.values[index[name]] for name in names]) for row in candidates}
        wanted = wanted or {bits([None] * len(names))}
        if found not in wanted:
            said = " or ".join(map(str, sorted(wanted, key=repr)))
            raise Disagreement(
                f"view {view.name}, key and time {where}, features {names}: "
                f"the store says {found}, the loop {said}"
            )
        whole = {bits(row.values): row for row in candidates}
        won = [v for v, r in whole.items() if bits([r.values[index[n]] for n in names]) == found]
        if len(whole) > 1 and len(won) == 1:
            schema = (view.name, *(column.name for column in view.features))
            for other in whole.keys() - set(won):
                if (schema, other, won[0]) in self._beats:
                    raise Disagreement(f"view {view.name}: a tie at {where} fell both ways")
                self._beats.add((schema, won[0], other))

    def _audit(self, service: str, report: Any) -> None:
        for check in report.checks:
            wrong = dict(check.mismatches)
            if check.invariant == "I1":
                wanted = self._i1(check.subject)
            elif check.invariant == "I2":
                wanted = self._i2(service)
            elif check.invariant in {"I9", "I4"}:
                wanted = False if self._smooth else None
            else:
                wanted = False
            if wanted is not None and bool(wrong) != wanted:
                said = "nothing wrong" if not wrong else f"{wrong}: {list(check.examples)[:2]}"
                raise Disagreement(
                    f"audit {check.invariant} of {check.subject}: it says {said}, the loop "
                    f"{'that something is wrong' if wanted else 'nothing wrong'}"
                )

    def _i1(self, name: str) -> bool | None:
        """Say whether what is online differs from the source at the mark; None if unknown."""
        view, held = self.state.views[name], self.online.get(name, Online())
        if held.mark is None or not self._exact(name) or held.pushed > held.mark:
            return None
        mark = held.mark
        source = self.state.sources[view.path]
        keys = {bits(row.key): row.key for row in (*source, *held.rows)}
        sides = []
        for rows in (held.rows, source):
            best = [newest(rows, view, key, mark) for key in keys.values()]
            sides.append([{_shown(view, row) for row in some} for some in best])
        if sides[0] == sides[1]:
            return False
        tied = any(len(side) > 1 for pair in sides for side in pair)
        return None if tied else True

    def _i2(self, service: str) -> bool | None:
        """Say whether a logged vector differs from what the sources give now."""
        for vector in self._logged:
            if vector.service != service:
                continue
            said = dict(vector.values)
            for part, view in vector.parts:
                key = tuple(vector.keys[column] for column in part.keys)
                rows = newest(self.state.sources[view.path], view, key, vector.at)
                for i, column in enumerate(view.features):
                    place = (part.view, part.alias, column.name)
                    wanted = {bits(row.values[i]) for row in rows} or {bits(None)}
                    if place not in said or wanted == {said[place]}:
                        continue
                    return None if len(wanted) > 1 else True
        return False


def _shown(view: View, row: Row) -> Any:
    return bits((row.at, row.made if view.created else 0, row.values))


def _rows_of(table: Any, features: Sequence[str]) -> list[list[Any]]:
    columns = [table.column(name).to_pylist() for name in features]
    return [list(row) for row in zip(*columns, strict=True)] if columns else []
