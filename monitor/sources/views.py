"""What the store says of its feature views. Bottom of `monitor.sources`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ViewFacts:
    """What the store says of one feature view.

    Attributes:
        location: Path, folder or glob of its source's files.
        timestamp: Column of the event time.
        created: Column of the created time; empty without one.
        keys: Names of its join keys.
        features: Names of its features.
        columns: The source's name of each name that differs from it.
        personal: Names whose values are somebody's.
        delta: Whether the files are a Delta table's.
        problem: Why it cannot be watched; empty if it can.
    """

    location: str = ""
    timestamp: str = ""
    created: str = ""
    keys: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    personal: tuple[str, ...] = ()
    delta: bool = False
    problem: str = ""
