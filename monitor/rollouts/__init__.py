"""Whether the newer of two models is better, while it is still harmless."""

from steadfeast.monitor.rollouts.evidence import (
    Budget,
    Counts,
    Evidence,
    Finding,
    Limits,
    Verdict,
    paired,
    split,
)
from steadfeast.monitor.rollouts.judgement import judge

__all__ = [
    "Budget",
    "Counts",
    "Evidence",
    "Finding",
    "Limits",
    "Verdict",
    "judge",
    "paired",
    "split",
]
