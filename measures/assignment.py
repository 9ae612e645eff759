"""Which units a share of the traffic takes in: the same on every machine, for good.

Bottom of `measures`: values in, booleans out. The edge routes by it, and whoever judges a rollout
can tell afterwards which units were meant to be where.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def place_of(rollout: str, unit: object) -> float:
    """Return the place of a unit in a rollout, uniform in [0, 1) over units.

    Places of one unit in two rollouts have nothing to do with each other. Times count as instants:
    a zone makes no difference.

    Args:
        rollout: Id of the rollout.
        unit: A key or a request id; not null.
    """
    if isinstance(unit, datetime) and unit.tzinfo is not None:
        unit = unit.astimezone(UTC).isoformat()
    digest = hashlib.sha256(f"{len(rollout)}:{rollout}:{unit}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def takes_in(rollout: str, units: Iterable[object], weight: float) -> NDArray[np.bool_]:
    """Return which units are within the share `weight` of a rollout, in their order.

    A unit that is in at one weight is in at every greater one. None is in only at weight 1.

    Args:
        rollout: Id of the rollout.
        units: One per row.
        weight: From 0, nobody, to 1, everybody.
    """
    if weight >= 1:
        return np.array([True for _ in units], np.bool_)
    return np.array([u is not None and place_of(rollout, u) < weight for u in units], np.bool_)
