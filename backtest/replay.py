"""One policy, replayed: who would have served when, and how well. Above `policies`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steadfeast.backtest.policies import Calendar
from steadfeast.featurestore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from steadfeast.backtest.history import History
    from steadfeast.backtest.policies import Policy
    from steadfeast.backtest.runs import Run, Runs
    from steadfeast.measures import Floats


class NoFirstModelError(UserError):
    """The first model does not pass the gates, so there is nothing to retrain.

    Attributes:
        at: When it was trained.
        why: What its gates say.
    """

    def __init__(self, at: datetime, why: str) -> None:
        self.at, self.why = at, why
        super().__init__(f"no first model at {at:%Y-%m-%d}: {why}; give a later --from")


@dataclass(frozen=True, slots=True)
class Asked:
    """A run that a policy asked for.

    Attributes:
        at: When.
        why: What for.
        run: What came of it.
    """

    at: datetime
    why: str
    run: Run


@dataclass(frozen=True, slots=True)
class Replayed:
    """A policy and what it would have earned.

    Attributes:
        name: Of the policy.
        asked: Its runs, the first model not among them.
        served: What was predicted for each row of the replay.
        is_calendar: Whether dates alone decided.
        plain: Whether each run was the recipe alone, fitted once.
    """

    name: str
    asked: tuple[Asked, ...]
    served: Floats
    is_calendar: bool = True
    plain: bool = False

    @property
    def runs(self) -> float:
        """What its runs cost, in runs: one whose model was refused has taken half of the fits."""
        return float(sum(one.run.cost for one in self.asked))


def replay(
    history: History,
    runs: Runs,
    policy: Policy,
    start: datetime,
    end: datetime,
    bucket: timedelta,
    advance: Callable[[datetime, int], None],
) -> Replayed:
    """Replay one policy from the first model at `start` on.

    Args:
        history: What happened.
        runs: Does what the policy asks for.
        policy: When to retrain.
        start: When the first model is trained; it serves from then on.
        end: The end of the replay.
        bucket: How often the policy is asked.
        advance: Called at the end of each bucket with the time and the runs so far.

    Raises:
        NoFirstModelError: The gates refuse the first model.
    """
    live = runs.run(start, None, plain=policy.plain)
    if live.refused:
        raise NoFirstModelError(start, live.refused)
    said = runs.predictions(live)
    served = np.full(said.shape, np.nan)
    asked: list[Asked] = []
    at = start
    while at < end:
        rows = history.rows(at, min(at + bucket, end))
        served[rows] = said[rows]
        at += bucket
        if at < end and (why := policy.asks(at, live, served)):
            run = runs.run(at, live, plain=policy.plain)
            policy.told(run)
            asked.append(Asked(at, why, run))
            if not run.refused:
                live, said = run, runs.predictions(run)
        advance(at, len(asked))
    return Replayed(
        policy.name,
        tuple(asked),
        served[history.rows(start, end)],
        isinstance(policy, Calendar),
        policy.plain,
    )
