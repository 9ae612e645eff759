"""Frozen dataclasses to JSON text and back, for what the ledger keeps.

Above `state`, whose values it knows. Their own annotations are the schema; a text that does not
fit them is a ValidationError, because only this program writes it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from monitor import detect, episodes, performance, profile, quality, state

_T = TypeVar("_T")

# What the annotations refer to: most modules import these names for typing only.
_NAMES: dict[str, Any] = {"Mapping": Mapping, "datetime": datetime}
for _module in (profile, detect, quality, performance, state, episodes):
    _NAMES |= {name: kept for name, kept in vars(_module).items() if isinstance(kept, type)}


@cache
def _adapter(kept: Hashable) -> TypeAdapter[Any]:
    adapter: TypeAdapter[Any] = TypeAdapter(kept)
    adapter.rebuild(_types_namespace=_NAMES, raise_errors=True)
    return adapter


def dump(value: Any, kept: Any = None) -> str:
    """Return `value` as JSON text; `kept` is its type where the value does not say it."""
    return _adapter(kept or type(value)).dump_json(value).decode()


def load(kept: type[_T], text: str) -> _T:
    """Return what `dump` was called on."""
    key: Any = kept
    value: _T = _adapter(key).validate_json(text)
    return value
