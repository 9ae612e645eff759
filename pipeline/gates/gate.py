"""A gate: one thing that must hold before a challenger serves. Bottom of `gates`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing that was measured, and whether it may pass.

    Attributes:
        name: Of the gate.
        passed: Whether it lets the challenger through.
        value: What was measured.
        limit: What it was compared with, in the same unit.
        detail: One line for a person.
        metric: Name of the measure; empty where it is none.
        champion: What the champion measured on the same rows, where it is compared with it.
        difference: How much better the challenger is, in the measure's unit; below 0 is worse.
        low: Lower end of the interval of the difference, or of the value if there is none.
        high: Its upper end.
        undecided: The rows cannot tell: the interval holds the limit.
    """

    name: str
    passed: bool
    value: float = 0.0
    limit: float = 0.0
    detail: str = ""
    metric: str = ""
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    undecided: bool = False

    def message(self) -> pb.Gate:
        """Return it as it is kept with the run."""
        return pb.Gate(
            name=self.name,
            passed=self.passed,
            value=self.value,
            limit=self.limit,
            detail=self.detail,
            metric=self.metric,
            champion=self.champion,
            difference=self.difference,
            low=self.low,
            high=self.high,
            undecided=self.undecided,
        )


def refusal(gates: Iterable[Gate | pb.Gate]) -> str:
    """Return in one line why `gates` refuse, empty if all passed."""
    return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates if not gate.passed)
