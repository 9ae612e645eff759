"""Policies of retraining: at the end of each bucket, whether to retrain.

Above `triggered`, the monitor's own decision. A calendar looks at the date alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from steadfeast.backtest.triggered import TRIGGERED, Triggered
from steadfeast.featurestore.config import duration
from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.config import latest, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.backtest.history import History
    from steadfeast.backtest.runs import Run
    from steadfeast.measures import Floats
    from steadfeast.monitor.config import MonitorConfig

_CALENDARS = {
    "daily": "0 0 * * *",
    "weekly": "0 0 * * mon",
    "monthly": "0 0 1 * *",
    "quarterly": "0 0 1 1,4,7,10 *",
    "yearly": "0 0 1 1 *",
}


PLAIN = "plain "
"""Before a calendar's name: the recipe as it stands, fitted once on everything known, no gates."""


class PolicyError(UserError):
    """A policy that is none.

    Attributes:
        text: What was given.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        names = ", ".join(("never", *_CALENDARS, TRIGGERED))
        super().__init__(
            f"{text!r} is no policy; give {names}, a length of time (14d) or a cron line, and "
            "'plain monthly' for a calendar that fits the recipe once, with no gates"
        )


class Policy(Protocol):
    """When to retrain.

    Attributes:
        name: As given.
        plain: Whether its runs fit the recipe once, on everything, with no gates.
    """

    name: str
    plain: bool

    def asks(self, at: datetime, live: Run, served: Floats) -> str:
        """Return why to retrain at `at`, or nothing.

        Args:
            at: End of a bucket; what became known later does not count.
            live: The run whose model serves.
            served: What was predicted for each row of the history that lies before `at`.
        """

    def told(self, run: Run) -> None:
        """Take what became of a run that was asked for."""


@dataclass(slots=True)
class Calendar:
    """Retrain at fixed dates, or every so often.

    Attributes:
        name: As given.
        rule: A cron line, or the time between two runs; None is never.
        last: When it last asked, or when it began.
        plain: Whether its runs fit the recipe once, on everything, with no gates.
    """

    name: str
    rule: str | timedelta | None
    last: datetime
    plain: bool = False

    def asks(self, at: datetime, live: Run, served: Floats) -> str:  # noqa: ARG002 - see Policy
        """Return the policy's name when a date of its has come."""
        if self.rule is None:
            return ""
        if isinstance(self.rule, timedelta):
            due = at >= self.last + self.rule
        else:
            due = latest(self.rule, self.last, at) is not None
        if not due:
            return ""
        self.last = at
        return self.name

    def told(self, run: Run) -> None:
        """A calendar does not care."""


def policies(
    names: Sequence[str], history: History, config: MonitorConfig, start: datetime
) -> list[Policy]:
    """Return the policies of these names.

    Args:
        names: See `PolicyError`.
        history: What is replayed.
        config: What `triggered` decides by.
        start: When the first model begins to serve.

    Raises:
        PolicyError: A name is none.
    """
    # Nobody approves in a backtest, and whoever has no pipeline yet asks what one would earn.
    free = config.model_copy(update={"approval": "auto", "pipeline": config.pipeline or "backtest"})
    return [
        Triggered(history, free)
        if name == TRIGGERED
        else Calendar(name, _rule(name), start, name.startswith(PLAIN))
        for name in dict.fromkeys(names)
    ]


def _rule(given: str) -> str | timedelta | None:
    name = given.removeprefix(PLAIN)
    if name == "never":
        return None
    if name in _CALENDARS:
        return _CALENDARS[name]
    try:
        if " " in name:
            parse(name)
            return name
        return duration(name)
    except (ValueError, UserError) as error:
        raise PolicyError(given) from error
