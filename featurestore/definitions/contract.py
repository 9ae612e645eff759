"""Everything that decides the values of a feature service, as one hash.

Above `service` and `code`. Two stores that serve under one contract compute the same values
from the same source rows: sources and field mappings, types, keys, TTLs, the tie rule, the
on-demand code with all it calls, the packed layout, and the versions of what executes it. Names
of services, descriptions, owners and tags decide nothing and are left out.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from steadfeast.featurestore.definitions.code import describe_function, libraries_of
from steadfeast.featurestore.tables import arrow_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from feast.data_source import DataSource

    from steadfeast.featurestore.definitions.plan import OnDemandView, ServicePlan, StoredView

FORMAT = 1
TIE_RULE = "the greatest (event timestamp, created timestamp, canonical row bytes)"
EXECUTING = ("duckdb", "feast", "numpy", "pandas", "pyarrow")
_UNIMPORTANT_IN_SOURCES = ("name", "description", "tags", "owner", "project", "meta")

_EFFECTS = {
    "libraries": "may change values: another version executes the joins or the code",
    "knowledge": "changes values of training sets, and none that is served",
    "layout": "does not change values by itself: the online store must be written anew",
}


@dataclass(frozen=True)
class Contract:
    """The description of a service's values.

    Attributes:
        description: Plain JSON types only.
    """

    description: Mapping[str, Any]

    def canonical(self) -> bytes:
        """Return the one encoding that is hashed: sorted keys, no spaces, UTF-8."""
        return json.dumps(
            self.description, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of `canonical()`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical()).hexdigest()


def describe(
    plan: ServicePlan,
    functions: Mapping[str, Callable[[Any], Any]],
    repo: Path,
    layout: int,
) -> Contract:
    """Return the contract of `plan`.

    Args:
        plan: The resolved service.
        functions: On-demand view -> the function that runs.
        repo: Folder of the definitions; absolute paths under it are described from there.
        layout: Version of the packed online layout.

    Raises:
        UndescribableCodeError: An on-demand function depends on what cannot be described.
    """
    libraries = {"python": ".".join(platform.python_version_tuple()[:2])}
    libraries |= {name: version(name) for name in EXECUTING}
    for function in functions.values():
        libraries |= libraries_of(function)
    return Contract(
        {
            "format": FORMAT,
            "features": [
                {
                    "view": output.view,
                    "feature": output.feature,
                    "name": output.name,
                    "type": str(output.type),
                }
                for output in plan.outputs
            ],
            "views": {view.name: _view(view, repo) for view in plan.views},
            "on_demand": {
                view.name: _on_demand(view, functions[view.name]) for view in plan.on_demand
            },
            "tie_rule": TIE_RULE,
            "layout": layout,
            "libraries": libraries,
        }
    )


def _view(view: StoredView, repo: Path) -> dict[str, Any]:
    source = view.view.batch_source
    return {
        "source": None if source is None else describe_source(source, repo),
        "keys": {
            key: {"column": column, "type": str(view.key_types[key])}
            for key, column in view.keys.items()
        },
        "features": {name: str(kind) for name, kind in view.columns.items()},
        # All that the view declares: ties go by whole rows, whichever columns are read.
        "ties": {field.name: str(arrow_type(field)) for field in view.view.features},
        "ttl_us": view.ttl_us,
    }


def describe_source(source: DataSource, repo: Path) -> dict[str, Any]:
    """Describe a source of any kind, by what Feast itself stores of it."""
    described: dict[str, Any] = MessageToDict(source.to_proto(), preserving_proto_field_name=True)
    for name in _UNIMPORTANT_IN_SOURCES:
        described.pop(name, None)
    options = described.get("file_options", {})
    if "uri" in options:  # the same repo in another folder is the same contract
        options["uri"] = options["uri"].removeprefix(f"{repo}/")
    return described


def _on_demand(view: OnDemandView, function: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "mode": view.view.mode,
        "singleton": bool(view.view.singleton),
        "inputs": [_input(name, feature) for name, feature in view.inputs],
        "requests": {name: str(kind) for name, kind in view.requests.items()},
        "outputs": {name: str(kind) for name, kind in view.outputs.items()},
        "code": describe_function(function),
    }


def _input(view: str, feature: str) -> str | list[str]:
    """Return one text per input, or a pair where that text could mean another input too."""
    pair = [view, feature]
    return pair if any("__" in name for name in pair) else "__".join(pair)


def by_event_time(contract: Contract) -> Contract:
    """Return the contract of training sets in which event times alone decide what was known."""
    return Contract({**contract.description, "knowledge": "event time alone"})


def difference(a: Contract, b: Contract) -> list[str]:
    """Say in words what differs from `a` to `b`, one line per difference.

    Each line ends with whether it changes values. Empty when the contracts are the same.
    """
    lines = []
    for path, old, new in _walk(a.description, b.description, ()):
        effect = _EFFECTS.get(path[0], "changes values")
        lines.append(f"{_subject(path)}: {_change(path, old, new)} ({effect})")
    return lines


_MISSING = object()


def _walk(
    old: object, new: object, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], object, object]]:
    whole = path[2:3] == ("code",) and len(path) > len(("on_demand", "view", "code"))
    if isinstance(old, dict) and isinstance(new, dict) and not whole:
        for key in sorted({*old, *new}):
            yield from _walk(old.get(key, _MISSING), new.get(key, _MISSING), (*path, key))
    elif path == ("features",) and isinstance(old, list) and isinstance(new, list):
        before = {item["name"]: item for item in old}
        after = {item["name"]: item for item in new}
        if before == after and old != new:
            yield (*path, "order"), list(before), list(after)
        yield from _walk(before, after, path)
    elif old != new:
        yield path, old, new


def _subject(path: tuple[str, ...]) -> str:
    names = {"views": "view", "on_demand": "on-demand view", "libraries": "library"}
    head = names.get(path[0], path[0].replace("_", " "))
    return " ".join([head, *path[1:]])


def _change(path: tuple[str, ...], old: object, new: object) -> str:
    if "code" in path:
        if old is _MISSING:
            return "is called now"
        if new is _MISSING:
            return "is no longer called"
        return "its code or a constant in it changed"
    if old is _MISSING:
        return f"added, {_short(new)}"
    if new is _MISSING:
        return f"removed, was {_short(old)}"
    return f"{_short(old)} became {_short(new)}"


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    limit = 200
    return text if len(text) <= limit else text[:limit] + "..."
