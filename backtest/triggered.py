"""The monitor's own decision as a policy, taken by its own code. Bottom of `policies`.

Its evidence is the measured performance, and how much has become known since the model was trained.
Drift is not replayed here: `steadfeast monitor backtest` shows its alarms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from steadfeast.backtest.history import instant
from steadfeast.measures import OneClassError, measure_named
from steadfeast.monitor.decisions import (
    Evaluation,
    ModelHistory,
    Outcome,
    PastRun,
    PolicyState,
    decide,
    move_reference,
)
from steadfeast.monitor.performance import Performance
from steadfeast.monitor.profiles import Window

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.backtest.history import History
    from steadfeast.backtest.runs import Run
    from steadfeast.measures import Floats
    from steadfeast.monitor.config import MonitorConfig

TRIGGERED = "triggered"


@dataclass(slots=True)
class Triggered:
    """Retrain when the monitor would.

    Attributes:
        history: What is replayed.
        config: Of the monitor.
        name: As given.
        state: What the monitor remembers.
        runs: That it asked for, and what they cost and brought.
        refused: Requests whose run was refused.
        pending: The request that a run was asked for by.
        plain: See `Policy`.
    """

    history: History
    config: MonitorConfig
    name: str = TRIGGERED
    state: PolicyState = field(default_factory=PolicyState)
    runs: list[PastRun] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    pending: str = ""
    plain: bool = False

    def asks(self, at: datetime, live: Run, served: Floats) -> str:
        """Return the monitor's reason to fire."""
        window = Window(at - self.config.window, at, 0)
        evaluation = Evaluation(
            monitor=self.name,
            window=window,
            reference_window=Window(live.known_since, live.known_until, 0),
            verdicts=(),
            performance=self._performance(at, served),
            expected=live.metrics,
            model_version=live.as_of.isoformat(),
            history=ModelHistory(runs=tuple(self.runs), without_promotion=frozenset(self.refused)),
        )
        decision = decide(self.state, evaluation, self.config)
        self.state = decision.state
        fired = [one for one in decision.triggers if one.outcome is Outcome.FIRED]
        if not fired:
            return ""
        self.pending = fired[0].request_id
        self.runs.append(PastRun(at))
        return fired[0].episodes[0].summary

    def told(self, run: Run) -> None:
        """Begin anew with a promoted model; note what a refused one has cost."""
        self.runs[-1] = PastRun(self.runs[-1].at, run.cost, not run.refused, run.gain, run.error)
        if run.refused:
            self.refused.add(self.pending)
        else:
            self.state = move_reference(self.state, self.name, "the model was promoted").state

    def _performance(self, at: datetime, served: Floats) -> Performance | None:
        """Measure the newest window whose labels are in, as the daemon does."""
        wanted = self.config.performance
        if wanted is None:
            return None
        end = at - wanted.label_delay
        rows = self.history.rows(end - self.config.window, end)
        places = np.arange(rows.start, rows.stop)[self.history.known[rows] <= instant(at)]
        said = served[places]
        judged = ~np.isnan(said if said.ndim == 1 else said[:, 0])
        places, said = places[judged], said[judged]
        if len(places) < wanted.min_labels:
            return None
        measure = measure_named(wanted.metric)
        table = self.history.training.table.take(places)
        try:
            value = measure.value(self.history.target.sample(table, said))
        except OneClassError:
            return None
        window = Window(end - self.config.window, end, len(places))
        return Performance({measure.name: value}, len(places), None, window)
