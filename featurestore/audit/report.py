"""What an audit says: checks, their text and JSON, and what of a person's data may be shown.

Above `notebook` alone; `compare` and `audit` fill it in. Values of features tagged `pii` in
Feast, of join keys and request fields so tagged, and of on-demand features that may have read
one, are shown as digests under a key that is made for one report and forgotten with it: two values
in a report can be told apart, and neither can be looked up. A tag `pii: "false"` on an on-demand
view says that what it computes gives nothing away. (Feast drops the tags of its fields.)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Literal

from steadfeast.featurestore import notebook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXAMPLES = 5
"""How many mismatches of each kind are shown, the worst first."""

FORMAT = 1
"""Version of the JSON report."""

Outcome = Literal["holds", "fails", "void"]
_VERDICTS = {"holds": "holds", "fails": "FAILS", "void": "void "}


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant on one subject.

    Attributes:
        invariant: "I1", "I2", "I4", "I9" or "I11".
        subject: The feature view, or the service.
        cells: Cells compared; rows for all but I1 and I2.
        mismatches: Kind -> cells.
        examples: The worst few of each kind, with both values and where each is from.
        note: What was left out, or why there was nothing to compare.
        void: Why nothing can be said, whatever was compared; empty otherwise.
        features: Of I1 and I2, each feature with mismatches: kind -> cells.
    """

    invariant: str
    subject: str
    cells: int
    mismatches: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()
    note: str = ""
    void: str = ""
    features: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it was the same."""
        return self.outcome == "holds"

    @property
    def outcome(self) -> Outcome:
        """What the check has shown: that the invariant holds, fails, or nothing at all."""
        if any(self.mismatches.values()):
            return "fails"
        return "void" if self.void or not self.cells else "holds"

    def as_dict(self) -> dict[str, Any]:
        """Return the check in plain JSON types."""
        note = "; ".join(text for text in (self.void, self.note) if text)
        return {
            "invariant": self.invariant,
            "subject": self.subject,
            "ok": self.ok,
            "outcome": self.outcome,
            "cells": self.cells,
            "mismatches": dict(self.mismatches),
            "features": {name: dict(kinds) for name, kinds in self.features.items()},
            "examples": _plain(self.examples),
            "note": note,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What one audit found.

    Attributes:
        service: The feature service.
        contract: SHA-256 of its contract.
        checks: One per invariant and subject.
    """

    service: str
    contract: str
    checks: tuple[Check, ...]

    def __repr__(self) -> str:
        """Say what came of it; `to_text` has the checks."""
        return notebook.line(
            "AuditReport", self.service, self.outcome, notebook.plural(len(self.checks), "check")
        )

    def _repr_html_(self) -> str:
        rows = []
        for check in self.as_dict()["checks"]:
            kinds = [f"{count} {kind}" for kind, count in check["mismatches"].items()]
            said = "; ".join([*kinds, *([check["note"]] if check["note"] else [])])
            rows.append(
                (check["invariant"], check["outcome"], check["subject"], check["cells"], said)
            )
        heads = ("invariant", "outcome", "subject", "cells", "notes")
        facts = [self.outcome, f"contract {self.contract[: notebook.DIGITS]}"]
        title = f"Audit of {self.service}"
        return notebook.card(title, facts, notebook.table(heads, rows))

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return all(check.ok for check in self.checks)

    @property
    def outcome(self) -> Outcome:
        """Fails when one check does, else void when one is, else holds."""
        found = {check.outcome for check in self.checks}
        return "fails" if "fails" in found else "void" if "void" in found else "holds"

    def as_dict(self) -> dict[str, Any]:
        """Return the report in plain JSON types; times are ISO 8601, NaN and infinities words."""
        return {
            "format": FORMAT,
            "service": self.service,
            "contract": self.contract,
            "ok": self.ok,
            "outcome": self.outcome,
            "checks": [check.as_dict() for check in self.checks],
        }

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False)

    def to_text(self) -> str:
        """Return the report as lines for a terminal."""
        lines = [f"{self.service} under contract {self.contract}"]
        for check in self.as_dict()["checks"]:
            parts = [f"{check['subject']}: {check['cells']} cells"]
            kinds = ", ".join(f"{count} {kind}" for kind, count in check["mismatches"].items())
            parts += [text for text in (kinds, check["note"]) if text]
            worst = sorted(check["features"].items(), key=lambda one: -sum(one[1].values()))
            parts += [f"most in {_listed(worst)}"] if worst else []
            verdict = _VERDICTS[check["outcome"]]
            lines.append(f"  {check['invariant']:<3} {verdict}  {'; '.join(parts)}")
            lines += [
                "        " + json.dumps(example, ensure_ascii=False)
                for example in check["examples"]
            ]
        return "\n".join(lines)


def _listed(features: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Name the first few features with their cells, and count the others."""
    named = ", ".join(f"{name} ({sum(kinds.values())})" for name, kinds in features[:EXAMPLES])
    return named + (f" and {len(features) - EXAMPLES} more" if len(features) > EXAMPLES else "")


class Redactor:
    """Shows values, and digests instead of a person's; one for each report."""

    def __init__(self) -> None:
        self._key = token_bytes(16)

    def show(self, value: object, *, personal: bool) -> object:
        """Return `value`, or its digest if it is personal; null stays null."""
        if value is None or not personal:
            return value
        text = f"{type(value).__name__}\0{value!r}".encode()
        return "pii:" + blake2b(text, key=self._key, digest_size=6).hexdigest()


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one per type
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
