"""Random repos and random lives of the fuzz: one number, one program."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from fuzz_program import DAY, HOUR, SECOND, Column, Part, Program, Row, Step, View

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BIG = 2**53 + 1


def _moment(seconds: int) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


_TEXT = ["", "a", "Zürich", "a'b\"c", "\U0001f600", "a\x00b", " "]
_INTS = [0, 1, -1, BIG, 2**63 - 1, -(2**63)]
_DOUBLES = [0.0, -0.0, math.nan, math.inf, -math.inf, 0.1, 5e-324, 1.7976931348623157e308]
_MOMENTS = [_moment(s) for s in (0, -1, 1729990800, 1729994400, 4102444800)]
_UUIDS = ["123e4567-e89b-12d3-a456-426614174000", "00000000-0000-0000-0000-000000000000"]
_UTC = "pa.timestamp('us', tz='UTC')"

VALUES: dict[str, tuple[list[str], list[Any]]] = {
    "Int64": (["pa.int64()"], _INTS),
    "Int32": (["pa.int32()", "pa.int64()"], [0, 1, -1, 2**31 - 1, -(2**31)]),
    "Float64": (["pa.float64()"], _DOUBLES),
    "Float32": (["pa.float32()"], [0.0, -0.0, math.nan, math.inf, 0.5, 3.4028234663852886e38]),
    "String": (["pa.string()", "pa.large_string()", "dictionary"], _TEXT),
    "Bytes": (["pa.binary()", "pa.large_binary()"], [b"", b"\x00", b"\xff\xfe", b"a"]),
    "Bool": (["pa.bool_()"], [True, False]),
    "UnixTimestamp": ([_UTC, "pa.timestamp('s')", "pa.timestamp('ms', tz='Asia/Tokyo')"], _MOMENTS),
    "Json": (["pa.string()"], ['{"a": 1}', "[]", "null", ""]),
    "Uuid": (["pa.string()"], _UUIDS),
    "Decimal": (["pa.string()"], ["1.10", "-0", "123456789012345678901234567890.5"]),
    "Map": (["pa.map_(pa.string(), pa.string())"], [[], [("a", "1")], [("b", None), ("a", "")]]),
    "Struct({'x': Int64, 'y': String})": (
        ["pa.struct([('x', pa.int64()), ('y', pa.string())])"],
        [{"x": BIG, "y": ""}, {"x": None, "y": "a"}, {"x": 0, "y": None}],
    ),
}
_ELEMENTS = ("Int64", "Int32", "Float64", "Float32", "String", "Bool", "UnixTimestamp", "Uuid")
KEYS: dict[str, tuple[str, list[str], list[Any]]] = {
    "k": ("Int64", ["pa.int64()"], [1, 2, BIG, -(2**63)]),
    "m": ("Int32", ["pa.int32()"], [1, -1, 2**31 - 1]),
    "s": ("String", ["pa.string()", "pa.large_string()", "dictionary"], ["", "a", "b'c", "Zü"]),
    "h": ("String", ["pa.string()"], ["a", "b", "x y"]),
    "d": ("String", ["pa.string()"], ["1", "02", "2024-01-01"]),
    "t": ("UnixTimestamp", [_UTC], _MOMENTS[:3]),
}
_BASES = ("2024-10-27T00:30:00+00:00", "2024-03-31T00:30:00+00:00", "2013-01-01T00:00:00+00:00")
_ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Asia/Kathmandu")


EVENTS = {
    "materialize": 5, "some_rows": 5, "reading": 5, "train": 2, "replay": 2, "push": 2,
    "restart": 1, "audit": 2, "lose": 1, "correct": 1, "drop": 1, "ttl": 1, "feature": 1,
    "source": 1, "readd": 1, "ahead": 1, "century": 1, "late": 1,
}  # fmt: skip
"""What may happen, and how often."""


def _type(rng: Random) -> tuple[str, str, list[Any]]:
    """Choose a Feast type; return it, how the source holds it, and its values."""
    name = rng.choice([*VALUES, *("Array", "Set", "Nested") * 2, "Int64", "Float64"])
    if name in VALUES:
        arrows, values = VALUES[name]
        return name, rng.choice(arrows), values
    element = rng.choice(_ELEMENTS)
    arrows, values = VALUES[element]
    arrow = arrows[0]
    if name == "Set":
        sets = [[], values[:1], sorted(values[:3], key=repr)]
        return f"Set({element})", f"pa.list_({arrow})", sets
    lists = [[], values[:1], [values[-1], None, values[0]], values]
    if name == "Array":
        return f"Array({element})", f"pa.list_({arrow})", lists
    nested = [[], [[]], [lists[1], None, lists[2]], [lists[3]]]
    return f"Array(Array({element}))", f"pa.list_(pa.list_({arrow}))", nested


@dataclass
class _Made:
    """A view, and what values its columns may have."""

    view: View
    pools: list[list[Any]]


class Life:
    """Makes one program.

    Args:
        seed: What decides it.
        redis: Whether a Redis is there.
        rebuild: Whether the store knows `materialize(rebuild=True)`.
        without: Events that are left out.
    """

    def __init__(
        self, seed: int, *, redis: bool, rebuild: bool, without: Collection[str] = ()
    ) -> None:
        self._rng = Random(seed)
        rng = self._rng
        self._seed, self._rebuild, self._without = seed, rebuild, without
        self._redis = redis and rng.random() < 0.4
        self._base = "" if rng.random() < 0.35 else rng.choice(_BASES)
        self._zone = rng.choice(_ZONES)
        self._step = rng.choice([1, 1, SECOND, HOUR // 2])
        self._keys = rng.sample(sorted(KEYS), 3)
        self._made = {}
        for name in ("v", "w")[: rng.choice([1, 1, 2])]:
            made = self._view(name)
            self._made[made.view.name] = made
        self._services = {"svc": self._parts()}
        self._clock = -30 * DAY
        self._names = iter(f"t{i}" for i in range(99))
        self._latest = self._clock

    def program(self) -> Program:
        """Return the program."""
        views = tuple(made.view for made in self._made.values())
        steps: list[Step] = [("apply",), *(self._rows(name, 6) for name in self._made)]
        for _ in range(self._rng.randint(3, 12)):
            steps += self._next()
        services = tuple(self._services.items())
        steps += [self._read(), ("audit", "svc")]
        return Program(
            self._seed, self._redis, self._base, self._zone, views, services, tuple(steps)
        )

    # the repo

    def _view(self, name: str) -> _Made:
        rng = self._rng
        keys = []
        for key in rng.sample(self._keys, rng.choice([0, 1, 1, 1, 2])):
            kind, arrows, _ = KEYS[key]
            source = key if rng.random() < 0.7 else f"{key}_{rng.choice(['of', 'id'])}"
            keys.append(Column(key, kind, source, rng.choice(arrows)))
        pools, features = [], []
        for i in range(rng.choice([1, 1, 2, 3])):
            kind, arrow, values = _type(rng)
            feature = f"{name}{i}" if rng.random() < 0.9 else f"{name}{i}_y"
            source = feature if rng.random() < 0.8 else f"of_{feature}"
            features.append(Column(feature, kind, source, arrow))
            pools.append(values)
        unit = rng.choice(["us", "us", "us", "ns", "ms", "s"])
        layout = rng.choice(["file", "file", "folder"])
        if keys and keys[0].type == "String" and keys[0].name in "hd" and rng.random() < 0.6:
            layout = "hive"
        path = f"data/{name}" if layout != "file" else f"data/{name}.parquet"
        zone = rng.choice(["UTC", "UTC", "", "Europe/Berlin", "America/New_York"])
        ttl = rng.choice([0, 0, HOUR, DAY, 40 * DAY])
        made = rng.random() < 0.5
        view = View(name, tuple(keys), tuple(features), ttl, made, unit, zone, layout, path)
        return _Made(view, pools)

    def _parts(self) -> tuple[Part, ...]:
        rng, parts = self._rng, []
        for made in self._made.values():
            view = made.view
            names = [column.name for column in view.features]
            chosen = names if rng.random() < 0.7 else rng.sample(names, rng.randint(1, len(names)))
            own = tuple(key.name for key in view.keys)
            parts.append(Part(view.name, "", own, tuple(chosen)))
            if own and rng.random() < 0.25:
                alias = f"{view.name}_other"
                parts.append(Part(view.name, alias, tuple(f"other_{k}" for k in own), tuple(names)))
        return tuple(parts)

    # lives

    def _next(self) -> list[Step]:
        """Choose what happens next."""
        rng = self._rng
        events = {event: n for event, n in EVENTS.items() if event not in self._without}
        what = rng.choices([*events], [*events.values()])[0]
        does: Callable[[str, int], list[Step]] = getattr(self, f"_{what}")
        return does(rng.choice(list(self._made)), rng.choice([0, 0, 0, 1]))

    def _some_rows(self, name: str, _: int) -> list[Step]:
        return [self._rows(name, 3)]

    def _late(self, name: str, _: int) -> list[Step]:
        return [("rows", name, [self._row(name, late=True)])]

    def _materialize(self, _: str, store: int) -> list[Step]:
        return [("materialize", store, self._tick())]

    def _reading(self, _: str, store: int) -> list[Step]:
        return [self._read(store)]

    def _train(self, _: str, __: int) -> list[Step]:
        return [("train", next(self._names), "svc", self._frame(spread=True))]

    def _replay(self, _: str, __: int) -> list[Step]:
        return [("replay", f"t{self._rng.randint(0, 2)}")]

    def _audit(self, _: str, __: int) -> list[Step]:
        return [("audit", "svc")]

    def _push(self, name: str, store: int) -> list[Step]:
        row = self._row(name)
        self._tick()
        return [("push", store, name, [row]), self._read(store)]

    def _ahead(self, name: str, store: int) -> list[Step]:
        """A row of the future is pushed, in a life that reaches to now."""
        if self._base:
            return []
        row = self._row(name)
        grain = self._grain(self._made[name].view)
        ahead = self._rng.choice([HOUR, 60 * DAY, 60 * 365 * DAY]) // grain * grain
        pushed = Row(row.key, ahead, ahead, row.values)
        return [("push", store, name, [pushed]), self._read(store)]

    def _century(self, _: str, store: int) -> list[Step]:
        if self._base:
            return []
        return [("materialize", store, 75 * 365 * DAY), self._read(store)]

    def _restart(self, _: str, __: int) -> list[Step]:
        return [("restart",)]

    def _lose(self, _: str, __: int) -> list[Step]:
        return [("restart",), ("lose",)] if self._rng.random() < 0.5 else [("lose",)]

    def _correct(self, name: str, _: int) -> list[Step]:
        pools = self._made[name].pools
        values = tuple(self._rng.choice([None, *pool]) for pool in pools)
        return [("correct", name, self._rng.randrange(9), values), *self._anew()]

    def _drop(self, name: str, _: int) -> list[Step]:
        return [("drop", name, self._rng.randrange(9)), *self._anew()]

    def _anew(self) -> list[Step]:
        return [("rebuild", 0, self._tick()), self._read()] if self._rebuild else []

    def _ttl(self, name: str, _: int) -> list[Step]:
        return [("ttl", name, self._rng.choice([0, HOUR, DAY])), *self._then()]

    def _feature(self, name: str, _: int) -> list[Step]:
        kind, arrow, values = _type(self._rng)
        pools = self._made[name].pools
        column = f"{name}{len(pools)}"
        pools.append(values)
        given = tuple(self._rng.choice([None, *values]) for _ in range(5))
        return [("feature", name, Column(column, kind, column, arrow), given), *self._then()]

    def _source(self, name: str, _: int) -> list[Step]:
        path = f"data/{name}_{self._rng.randrange(10**6)}"
        path += ".parquet" if self._made[name].view.layout == "file" else ""
        rows = [self._row(name) for _ in range(4)]
        return [("source", name, path, rows), *self._then()]

    def _readd(self, name: str, _: int) -> list[Step]:
        return [("remove", name), ("add", name), *self._then()]

    def _then(self) -> list[Step]:
        """What follows a change of the definitions: mostly it is materialized."""
        filled: list[Step] = [("materialize", 0, self._tick())]
        return [*(filled if self._rng.random() < 0.8 else []), self._read()]

    def _tick(self) -> int:
        """Let some time pass; return what it is then."""
        step = self._rng.choice([1, 7, self._step * 5, HOUR, DAY, 3 * DAY])
        self._clock = max(self._clock + step, self._latest + 1)
        if not self._base:
            self._clock = min(self._clock, -SECOND)
        return self._clock

    def _rows(self, name: str, most: int) -> Step:
        rows = [self._row(name) for _ in range(self._rng.randint(1, most))]
        self._tick()
        return "rows", name, rows

    def _grain(self, view: View) -> int:
        return {"s": SECOND, "ms": 1000}.get(view.unit, 1)

    def _row(self, name: str, *, late: bool = False) -> Row:
        """Make a row that became known since the last tick; or one that should have been before."""
        rng, made = self._rng, self._made[name]
        grain = self._grain(made.view)
        written = self._clock + rng.choice([1, 1, 2, 5]) * max(self._step, grain)
        if late:
            written = self._clock - rng.choice([HOUR, 3 * DAY])
        at = written - rng.choice([0, 0, 0, self._step, HOUR, DAY, 2 * DAY])
        if not made.view.created and not late:
            at = written - rng.choice([0, 0, 0, self._step, HOUR])
        if not self._base:
            at, written = min(at, -2 * SECOND), min(written, -2 * SECOND)
        at, written = (-(-moment // grain) * grain for moment in (at, written))
        self._latest = max(self._latest, at, written)
        key = tuple(rng.choice(KEYS[column.name][2]) for column in made.view.keys)
        values = tuple(rng.choice([None, *pool]) for pool in made.pools)
        return Row(key, at, written, values)

    def _frame(self, *, spread: bool = False) -> list[tuple[dict[str, Any], int]]:
        rng, frame = self._rng, []
        parts = self._services["svc"]
        for _ in range(rng.randint(1, 5)):
            keys = {}
            for part in parts:
                view = self._made[part.view].view
                for key, column in zip(view.keys, part.keys, strict=True):
                    pool = KEYS[key.name][2]
                    keys[column] = rng.choice(pool)
            at = self._clock
            if spread:
                at -= rng.choice([0, 1, self._step, HOUR, HOUR + 1, DAY, 5 * DAY])
            frame.append((keys, at))
        return frame

    def _read(self, store: int = 0) -> Step:
        later = self._rng.choice([0, 0, 1, self._step, HOUR, DAY])
        self._clock += later if self._base else 0
        log = self._rng.random() < 0.7
        return "read", store, "svc", self._frame(), self._clock, log
