"""Frozen dataclasses to JSON text and back, for what the ledger keeps.

Above `state`, whose values it knows. Their own annotations are the schema; a text that does not
fit them is a ValidationError, because only this program writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from steadfeast.monitor import profiles
from steadfeast.monitor.decisions import model
from steadfeast.monitor.drift import data_quality, detector, segments
from steadfeast.monitor.ledger import state
from steadfeast.monitor.performance import realized
from steadfeast.monitor.profiles import distribution
from steadfeast.monitor.sources import quarantine

if TYPE_CHECKING:
    from types import ModuleType

_T = TypeVar("_T")


def _names(*modules: ModuleType) -> dict[str, Any]:
    """Return the types that `modules` have, by name; not those whose name means two of them.

    Most modules import the types of their fields for typing only, so they are looked up here.
    A name that two modules define is not: it means what the module that declares the field
    defines, and the order of `modules` decides nothing.
    """
    names: dict[str, Any] = {"Mapping": Mapping, "datetime": datetime}
    ambiguous: set[str] = set()
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, type) and names.setdefault(name, value) is not value:
                ambiguous.add(name)
    return {name: value for name, value in names.items() if name not in ambiguous}


_NAMES = _names(
    quarantine,
    profiles,
    distribution,
    detector,
    data_quality,
    realized,
    segments,
    state,
    model,
)
_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kept: Any) -> TypeAdapter[Any]:
    if kept not in _adapters:
        adapter: TypeAdapter[Any] = TypeAdapter(kept)
        adapter.rebuild(_types_namespace=_NAMES, raise_errors=True)
        _adapters[kept] = adapter
    return _adapters[kept]


def dump(value: Any, kept: Any = None) -> str:
    """Return `value` as JSON text; `kept` is its type where the value does not say it."""
    return _adapter(kept or type(value)).dump_json(value).decode()


def from_json(kept: type[_T], text: str) -> _T:
    """Return what `dump` was called on."""
    value: _T = _adapter(kept).validate_json(text)
    return value
