"""How far a view's rows go and where they are kept: written into the store that has the rows.

Pure. What is lost with the rows is lost with them: a store without a `Head` has never been
filled, or has lost what it had. A view that is filled anew gets rows of a new generation beside
those that are served; when they are complete its head names them, in one step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST = "0"


class Place(NamedTuple):
    """Where the rows of one generation of a view are.

    Attributes:
        space: Names the view, see `space_of`.
        generation: 16 hexadecimal digits that no other generation has, of any store.
        name: Names the rows.
    """

    space: str
    generation: str
    name: str

    @classmethod
    def of(cls, space: str, generation: str) -> Place:
        """Return the place of a generation; the first one's rows are named as the view is."""
        first = generation.startswith(_FIRST)
        return cls(space, generation, space if first else f"{space}@{generation}")

    @classmethod
    def new(cls, space: str, *, first: bool) -> Place:
        """Return the place of a generation that has never been."""
        return cls.of(space, (_FIRST if first else "1") + uuid4().hex[:15])


class Head(NamedTuple):
    """Which generation is served, and which is being filled beside it."""

    served: Place
    filling: Place | None = None

    def to_bytes(self) -> bytes:
        """Return what a store keeps; it begins with the generation that is served."""
        names = [place.generation for place in self if place is not None]
        return " ".join(names).encode()

    @classmethod
    def of(cls, space: str, kept: bytes) -> Head:
        """Read what `to_bytes` returned."""
        return cls(*(Place.of(space, name) for name in kept.decode().split()))

    @property
    def places(self) -> tuple[Place, ...]:
        """Every place that has rows."""
        return tuple(place for place in self if place is not None)


@dataclass(frozen=True)
class Progress:
    """What the rows of one generation are.

    Attributes:
        definition: Everything that decides them; None when nobody said.
        until: They are the newest known at that time, in µs; None before they were filled.
        source: The state of the source's files then, where that is known.
        left_out: Rows that were not taken: too far ahead of the clock, or one too many ahead.
    """

    definition: Mapping[str, Any] | None = None
    until: int | None = None
    source: str | None = None
    left_out: int = 0

    def to_bytes(self) -> bytes:
        """Return what a store keeps."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def of(cls, kept: bytes | None) -> Progress:
        """Read what `to_bytes` returned."""
        return cls() if kept is None else cls(**json.loads(kept))
