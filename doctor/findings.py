"""One thing that is missing or risky, and the checks that there are. Bottom of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from steadfeast.featurestore.plain_text import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping


class Level(StrEnum):
    """How bad: `missing` does not work, `risk` works until it hurts, `note` is worth knowing."""

    MISSING = "missing"
    RISK = "risk"
    NOTE = "note"


CHECKS: Mapping[str, Level] = MappingProxyType(
    {
        "configuration": Level.MISSING,
        "definitions": Level.MISSING,
        "no-service": Level.MISSING,
        "foreign-store": Level.MISSING,
        "source": Level.MISSING,
        "not-applied": Level.MISSING,
        "online-store": Level.MISSING,
        "not-materialized": Level.MISSING,
        "unknown-name": Level.MISSING,
        "examples": Level.MISSING,
        "recipe": Level.MISSING,
        "port-taken": Level.MISSING,
        "state-not-writable": Level.MISSING,
        "no-created-column": Level.RISK,
        "no-ttl": Level.RISK,
        "short-ttl": Level.RISK,
        "long-ttl": Level.RISK,
        "stale": Level.RISK,
        "max-age": Level.RISK,
        "pipeline-address": Level.RISK,
        "eviction": Level.RISK,
        "label-delay": Level.RISK,
        "holdout": Level.RISK,
        "plaintext": Level.RISK,
        "no-tokens": Level.RISK,
        "state-readable": Level.RISK,
        "secret-readable": Level.RISK,
        "secret-in-file": Level.NOTE,
        "no-alerts": Level.NOTE,
        "no-audit": Level.NOTE,
    }
)
"""Name of each check, for `--accept`, and how bad it is; `docs/guide/doctor.md` explains them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it.

    Attributes:
        check: A name of `CHECKS`.
        subject: Where: `feature view 'sales'`, `pipeline.models.demand`, a file.
        problem: What is wrong, and why it matters.
        remedy: What to do.
    """

    check: str
    subject: str
    problem: str
    remedy: str

    @property
    def level(self) -> Level:
        """How bad it is."""
        return CHECKS[self.check]

    def as_dict(self) -> dict[str, str]:
        """Return it for JSON."""
        return {
            "level": self.level.value,
            "check": self.check,
            "subject": self.subject,
            "problem": self.problem,
            "remedy": self.remedy,
        }

    def line(self) -> str:
        """Return it as one line for a terminal."""
        said = f"{self.check}  {self.subject}: {self.problem}. To do: {self.remedy}"
        return f"{self.level.value:<7}  {escaped(said)}"
