"""Programs of the fuzz as data, and as the Python text that is run.

A program is a repo and steps. Everything in it is plain data, so that a smaller one is made by
leaving things out; what is run is the text that is printed, so that the two cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Step = tuple[Any, ...]
"""The name of a step, and its arguments; see `Program`."""

Frame = list[tuple[dict[str, Any], int]]
"""Rows of an entity frame or a request: column -> key, and a time."""

SECOND, HOUR, DAY = 10**6, 3600 * 10**6, 86400 * 10**6


@dataclass(frozen=True)
class Column:
    """A join key or a feature: its name, Feast's type, and how the source holds it."""

    name: str
    type: str
    source: str
    arrow: str


@dataclass(frozen=True)
class Row:
    """One row of a source; times are microseconds from the base of the program."""

    key: tuple[Any, ...]
    at: int
    made: int
    values: tuple[Any, ...]


@dataclass(frozen=True)
class View:
    """A feature view and its source.

    Attributes:
        layout: "file", "folder", or "hive", where the text that `key[0]` is stands in the path.
        path: Of the file or folder.
    """

    name: str
    keys: tuple[Column, ...]
    features: tuple[Column, ...]
    ttl: int
    created: bool
    unit: str
    zone: str
    layout: str
    path: str

    @property
    def identity(self) -> tuple[Any, ...]:
        """Everything that decides what is online; a TTL does not."""
        return replace(self, ttl=0), self.path


@dataclass(frozen=True)
class Part:
    """What a service reads of one view: under which name, by which columns, which features."""

    view: str
    alias: str
    keys: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A repo and what is done with it.

    Steps, each a tuple: `rows view rows`, `correct view n values`, `drop view n`, `ttl view us`,
    `feature view column values`, `source view path rows`, `remove view`, `add view`, `apply`,
    `materialize store until`, `rebuild store until`, `push store view rows`, `lose`, `restart`,
    `train name service frame`, `replay name`, `read store service frame at log`, `audit service`.
    """

    seed: int
    redis: bool
    base: str
    zone: str
    views: tuple[View, ...]
    services: tuple[tuple[str, tuple[Part, ...]], ...]
    steps: tuple[Step, ...]


@dataclass
class State:
    """What the definitions and sources of a program are at one of its steps."""

    views: dict[str, View]
    services: dict[str, tuple[Part, ...]]
    sources: dict[str, list[Row]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program) -> State:
        """Return the state before the first step."""
        return cls({view.name: view for view in program.views}, dict(program.services))

    def parts(self, service: str) -> list[Part]:
        """Return what a service reads of views that are there."""
        return [part for part in self.services.get(service, ()) if part.view in self.views]

    def columns(self, service: str) -> dict[str, Column]:
        """Return the columns of an entity frame of a service."""
        found = {}
        for part in self.parts(service):
            keys = self.views[part.view].keys
            found |= dict(zip(part.keys, keys, strict=True))
        return found

    def outputs(self, service: str) -> list[tuple[Part, str]]:
        """Return the features of a service, in order."""
        return [
            (part, name)
            for part in self.parts(service)
            for name in part.features
            if name in {column.name for column in self.views[part.view].features}
        ]


def text_of(value: Any) -> str:
    """Return a value as Python source."""
    if isinstance(value, datetime):
        return f"datetime.fromisoformat({value.astimezone(UTC).isoformat()!r})"
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(text_of, value))},)"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {text_of(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _array(values: list[Any], arrow: str) -> str:
    listed = text_of(values)
    if arrow.startswith("dictionary"):
        return f"pa.array({listed}, pa.string()).dictionary_encode()"
    return f"pa.array({listed}, {arrow})"


def _columns(
    view: View, rows: list[Row], *, partitioned: bool = False, pushed: bool = False
) -> dict[str, str]:
    """Return columns of rows as text: under the source's names, or the view's where pushed."""
    if pushed:
        keys, features = (
            tuple(replace(column, source=column.name) for column in some)
            for some in (view.keys, view.features)
        )
        view = replace(view, keys=keys, features=features)
    shown = {}
    for i, key in enumerate(view.keys):
        if not (partitioned and i == 0):
            shown[key.source] = _array([row.key[i] for row in rows], key.arrow)
    zone = f"{view.unit!r}, {view.zone!r}"
    shown["at"] = f"r.times({[row.at for row in rows]}, {zone})"
    if view.created:
        shown["made"] = f"r.times({[row.made for row in rows]}, {zone})"
    for i, feature in enumerate(view.features):
        shown[feature.source] = _array([row.values[i] for row in rows], feature.arrow)
    return shown


def _table(columns: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: {text}" for name, text in columns.items()) + "}"


def source_text(view: View, rows: list[Row]) -> list[str]:
    """Return lines that write a source anew."""
    if view.layout == "file":
        files = [(view.path, rows)]
    elif view.layout == "folder":
        files = [(f"{view.path}/{i}.parquet", rows[i::2]) for i in range(2)]
    else:
        names = sorted({row.key[0] for row in rows}) or ["none"]
        column = view.keys[0].source
        files = [
            (f"{view.path}/{column}={name}/0.parquet", [r for r in rows if r.key[0] == name])
            for name in names
        ]
    hive = view.layout == "hive"
    gone = [f"r.forget({view.path!r})"] if hive else []  # a folder whose last row is deleted
    return gone + [
        f"r.write({path!r}, {_table(_columns(view, some, partitioned=hive))})"
        for path, some in files
    ]


def definitions_text(state: State) -> str:
    """Return the definitions as the text of features.py."""
    lines = [
        "from datetime import timedelta",
        "from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType",
        "from feast.types import *",
    ]
    keys = {key.name: key for view in state.views.values() for key in view.keys}
    lines += [
        f"{name}_entity = Entity(name={name + '_entity'!r}, join_keys=[{name!r}], "
        f"value_type=ValueType.{_VALUE_TYPES[key.type]})"
        for name, key in sorted(keys.items())
    ]
    for view in state.views.values():
        lines += _view_text(view)
    for name, parts in state.services.items():
        there = [part for part in parts if part.view in state.views]
        if there:
            listed = ", ".join(_part_text(state.views[part.view], part) for part in there)
            lines.append(f"{name} = FeatureService(name={name!r}, features=[{listed}])")
    return "\n".join(lines) + "\n"


_VALUE_TYPES = {
    "Int64": "INT64",
    "Int32": "INT32",
    "String": "STRING",
    "Bytes": "BYTES",
    "UnixTimestamp": "UNIX_TIMESTAMP",
    "Bool": "BOOL",
}


def _view_text(view: View) -> list[str]:
    mapping = {c.source: c.name for c in (*view.keys, *view.features) if c.source != c.name}
    fields = ", ".join(f"Field(name={c.name!r}, dtype={c.type})" for c in view.features)
    options = [f"name={view.name + '_source'!r}", f"path={view.path!r}", "timestamp_field='at'"]
    options += ["created_timestamp_column='made'"] if view.created else []
    options += [f"field_mapping={mapping}"] if mapping else []
    entities = ", ".join(f"{key.name}_entity" for key in view.keys)
    given = f"name={view.name!r}, entities=[{entities}], schema=[{fields}]"
    given += f", ttl=timedelta(microseconds={view.ttl}), source=FileSource({', '.join(options)})"
    return [f"{view.name} = FeatureView({given})"]


def _part_text(view: View, part: Part) -> str:
    text = view.name
    names = [column.name for column in view.features]
    chosen = [name for name in part.features if name in names]
    if chosen != names:
        text += f"[{chosen}]"
    renamed = {
        key.name: column
        for key, column in zip(view.keys, part.keys, strict=True)
        if key.name != column
    }
    if part.alias:
        text += f".with_name({part.alias!r})"
    return text + (f".with_join_key_map({renamed})" if renamed else "")


def frame_text(state: State, service: str, frame: Frame) -> str:
    """Return an entity frame, or the entities of a request, as text."""
    columns = {
        name: _array([keys[name] for keys, _ in frame], _KEY_ARROW[key.type])
        for name, key in state.columns(service).items()
    }
    return columns_text(columns, [at for _, at in frame])


_KEY_ARROW = {
    "Int64": "pa.int64()",
    "Int32": "pa.int32()",
    "String": "pa.string()",
    "Bytes": "pa.binary()",
    "Bool": "pa.bool_()",
    "UnixTimestamp": "pa.timestamp('us', tz='UTC')",
}


def columns_text(columns: dict[str, str], times: list[int]) -> str:
    """Return columns and event times as the text of a table."""
    return f"pa.table({_table({**columns, 'event_timestamp': f'r.times({times})'})})"


def step_text(state: State, step: Step) -> list[str]:
    """Return the lines that do a step, in a state that has already taken it in.

    What a step gives back is `got`.
    """
    name, *given = step
    lines: list[str] = _TEXTS[name](state, *given)
    return lines


def _written(state: State, name: str, *_: Any) -> list[str]:
    view = state.views[name]
    return source_text(view, state.sources[view.path])


def _pushed(state: State, store: int, name: str, rows: list[Row]) -> list[str]:
    table = _table(_columns(state.views[name], rows, pushed=True))
    pushed = f"r.store({store}).write_online({name!r}, pa.table({table}))"
    return [*_written(state, name), pushed]


def _trained(state: State, name: str, service: str, frame: Frame) -> list[str]:
    built = f"r.store().training_set({frame_text(state, service, frame)}, {service!r})"
    return [f"{name} = got = {built}", "got = got.table, got.features"]


def _audited(_: State, service: str) -> list[str]:
    flushed = "for n in list(r.stores): r.store(n).served.flush()"
    return [flushed, f"got = r.store().audit({service!r})"]


def _define(state: State, *_: Any) -> list[str]:
    refreshed = "for n in r.stores: r.store(n).refresh()"
    return [f"r.define({definitions_text(state)!r})", "r.store().apply()", refreshed]


def _read(
    state: State,
    store: int,
    service: str,
    frame: Frame,
    at: int,
    log: bool,
) -> list[str]:
    asked = frame_text(state, service, frame)
    lines = [
        f"got = r.store({store}).online_features({service!r}, {asked}, request_time=r.at({at}))"
    ]
    if log:
        ids = "request_ids=[uuid4().hex for _ in range(got.rows)]"
        given = f"{service!r}, got, request_time=r.at({at}), {ids}"
        lines.append(f"r.store({store}).served.append({given})")
    return [*lines, "got = got.table, got.features"]


_TEXTS: dict[str, Callable[..., list[str]]] = {
    "rows": _written,
    "correct": _written,
    "drop": _written,
    "source": lambda state, name, *_: [*_written(state, name), *_define(state)],
    "feature": lambda state, name, *_: [*_written(state, name), *_define(state)],
    "ttl": _define,
    "remove": _define,
    "add": _define,
    "apply": lambda _: ["r.store().apply()"],
    "materialize": lambda _, n, until: [f"r.store({n}).materialize(r.at({until}))"],
    "rebuild": lambda _, n, until: [f"r.store({n}).materialize(r.at({until}), rebuild=True)"],
    "push": _pushed,
    "lose": lambda _: ["r.lose()"],
    "restart": lambda _: ["r.close()"],
    "train": _trained,
    "replay": lambda _, name: [f"got = r.store().replay({name}.path / 'manifest.json')"],
    "read": _read,
    "audit": _audited,
}
