"""Frozen dataclasses to JSON text and back, for what the ledger keeps.

Above `state`, whose values it knows. Their own annotations are the schema; a text that does not
fit them is a ValidationError, because only this program writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic import TypeAdapter

from steadfeast.monitor.decisions import model
from steadfeast.monitor.drift import data_quality, detector, segments
from steadfeast.monitor.ledger import state
from steadfeast.monitor.performance import realized
from steadfeast.monitor.profiles import distribution, profile
from steadfeast.monitor.sources import quarantine

_T = TypeVar("_T")

# What the annotations refer to: most modules import these names for typing only.
_NAMES: dict[str, Any] = {"Mapping": Mapping, "datetime": datetime}
for _module in (
    quarantine,
    profile,
    distribution,
    detector,
    data_quality,
    realized,
    segments,
    state,
    model,
):
    _NAMES |= {name: kept for name, kept in vars(_module).items() if isinstance(kept, type)}


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
