"""Quiet worlds, and what a running monitor says in them; for `benchmarks/detection.py`.

In each world nothing happens, in another way. Day means of features are drawn in standard
deviations with a weekly season of .1 sd; the rows of a day are drawn as counts over the bins of a
normal feature. Ours judges every day with `detect` and decides with `decide`, as the daemon does,
for a year after its reference. Two questions are then asked of a monitor whose first feature moved
by .5 sd for good on the thirtieth day: is a shift of .25 sd seen within seven days, and is another
feature that breaks by 3 sd told within three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import signal, stats
from scipy.special import ndtr

from benchmarks.measure import table
from steadfeast.monitor.config import CalendarConfig, MonitorConfig
from steadfeast.monitor.decisions import AlertKind, EpisodeKind, Evaluation, PolicyState, decide
from steadfeast.monitor.drift import Reference, detect, reference_of
from steadfeast.monitor.profiles import ColumnEdges, ColumnProfile, Edges, Profile, Window, edges_of

if TYPE_CHECKING:
    from argparse import Namespace

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Floats]

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
YEAR = 365
WEEK = 0.1
BROKEN_ON, EVERY, HORIZON, TOLD_WITHIN = 30, 58, 7, 3
SMALL, LARGE, STANDING = 0.25, 3.0, 0.5
SALES = ((45, 3), (95, 4), (140, 3), (185, 3), (245, 3), (325, 4), (355, 10))
"""First day of the year and length of what the world of holidays has."""


def _remembering(memory: float, sd: float = 0.05) -> Draw:
    def draw(rng: np.random.Generator, features: int, days: int) -> Floats:
        fresh = rng.standard_normal((features, days))
        fresh[:, 1:] *= np.sqrt(1 - memory**2)
        return np.asarray(sd * signal.lfilter([1.0], [1.0, -memory], fresh, axis=1))

    return draw


def _independent(sd: float) -> Draw:
    return lambda rng, features, days: sd * rng.standard_normal((features, days))


def _heavy(freedom: float) -> Draw:
    return lambda rng, features, days: 0.03 * rng.standard_t(freedom, (features, days))


def _groups(rng: np.random.Generator, features: int, days: int) -> Floats:
    common = np.repeat(0.05 * rng.standard_normal((2, days)), features // 2, axis=0)
    return common + 0.01 * rng.standard_normal((features, days))


def _regimes(rng: np.random.Generator, features: int, days: int) -> Floats:
    flips = np.cumsum(rng.random((features, days)) > 0.95, axis=1)
    now = (flips + rng.integers(0, 2, (features, 1))) % 2
    return 0.1 * (now - 0.5) + 0.02 * rng.standard_normal((features, days))


def _holidays(rng: np.random.Generator, features: int, days: int) -> Floats:
    means, side = _independent(0.03)(rng, features, days), rng.choice([-1, 1], (features, 1))
    for year in range(0, days, YEAR):
        for first, length in SALES:
            means[:, year + first : year + first + length] += 0.5 * side
    return means


def _pay_days(rng: np.random.Generator, features: int, days: int) -> Floats:
    first = np.array([(START + day * DAY).day <= 3 for day in range(days)])
    side = rng.choice([-1, 1], (features, 1))
    return _independent(0.03)(rng, features, days) + 0.3 * side * first


def _year(rng: np.random.Generator, features: int, days: int) -> Floats:
    turn = 2 * np.pi * np.arange(days) / 365.25 + rng.uniform(0, 2 * np.pi, (features, 1))
    return 0.3 * np.sin(turn) + _independent(0.03)(rng, features, days)


WORLDS: dict[str, Draw] = {
    "independent, sd .03": _independent(0.03),
    "independent, sd .05": _independent(0.05),
    "AR(1) .5, sd .05": _remembering(0.5),
    "AR(1) .8, sd .05": _remembering(0.8),
    "AR(1) .9, sd .05": _remembering(0.9),
    "AR(1) .95, sd .05": _remembering(0.95),
    "t(3), scale .03": _heavy(3),
    "t(2.2), scale .03": _heavy(2.2),
    "two groups, sd .05": _groups,
    "two regimes, .1 apart": _regimes,
    "volume 10x, sd .03": _independent(0.03),
    "holidays, declared": _holidays,
    "pay days": _pay_days,
    "yearly season .3": _year,
}
CALM = frozenset(
    name for name in WORLDS if not name.startswith(("AR(1) .9", "t(2.2)", "yearly", "AR(1) .8"))
)
"""Worlds whose day effects stay at .05 sd or below and do not wander."""


@dataclass
class Outcome:
    """What a monitor did in a world, over several years.

    Attributes:
        years: That were simulated.
        told: Notifications that something drifts.
        standing: Days on which a drift stood.
        seen: For each feature that moved by .25 sd, whether it was told within seven days.
        quick: Days until a second feature that broke by 3 sd was told; infinite if it never was.
    """

    years: float = 0.0
    told: int = 0
    standing: int = 0
    seen: list[bool] = field(default_factory=list)
    quick: list[float] = field(default_factory=list)

    def keeps(self, told: float, days: float) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """Say of both promises whether what was seen can be chance, at one in a hundred."""
        runs = self.standing / HORIZON  # days stand in runs of about a week
        return (
            ("notifications", self.told <= stats.poisson.isf(0.01, told * self.years)),
            ("days", runs <= stats.poisson.isf(0.01, days * self.years / HORIZON)),
        )


@lru_cache
def _normal() -> ColumnEdges:
    rows = np.random.default_rng(0).standard_normal(50_000)
    return edges_of(pa.table({"x": rows}), ["x"]).columns["x"]


class Running:
    """One monitor in one world.

    Args:
        name: Of the world.
        features: How many.
        known: Days of its reference.
        rows: A day.
        promised: Notifications a year; days with one standing are 4.5 times as many.
        seed: Everything follows from it.
    """

    def __init__(
        self, name: str, features: int, known: int, rows: int, promised: float, seed: int
    ) -> None:
        self.rng = np.random.default_rng([seed, features, known, rows, sum(map(ord, name))])
        days = known + YEAR + HORIZON
        week = WEEK * np.sin(2 * np.pi * np.arange(days) / 7)
        self.means = WORLDS[name](self.rng, features, days) + week
        self.rows = np.full(days, rows)
        if name.startswith("volume"):
            drawn = np.exp(self.rng.normal(np.log(0.3 * rows), 0.75, days))
            self.rows = np.clip(drawn, 0.03 * rows, 6 * rows).astype(int)
        self.known, self.names = known, [f"f{i:03d}" for i in range(features)]
        self.edges = Edges(dict.fromkeys(self.names, _normal()))
        calendar = CalendarConfig()
        if name.startswith("holidays"):
            self.rows[[d for d in range(days) if self._is_holiday(d)]] //= 2
            calendar = CalendarConfig.model_validate({"days": {"holidays": self._periods(days)}})
        self.config = MonitorConfig(
            service="s",
            model="m",
            performance=None,
            false_alarms_per_year=promised,
            false_alarm_days_per_year=4.5 * promised,
            calendar=calendar,
        )
        series = [(START + day * DAY, self.day(day)) for day in range(known)]
        self.reference: Reference = reference_of(series, self.edges, self.config)

    @staticmethod
    def _is_holiday(day: int) -> bool:
        return any(first <= day % YEAR < first + length for first, length in SALES)

    @staticmethod
    def _periods(days: int) -> list[dict[str, str]]:
        starts = [(year + first, n) for year in range(0, days, YEAR) for first, n in SALES]
        return [
            {"from": f"{START + day * DAY:%Y-%m-%d}", "to": f"{START + (day + n) * DAY:%Y-%m-%d}"}
            for day, n in starts
        ]

    def day(self, number: int, by: Floats | float = 0.0) -> Profile:
        """Draw the rows of a day, with the means moved by `by`."""
        cuts = np.array(_normal().cuts)
        below = ndtr(cuts - (self.means[:, number] + by)[:, None])
        shares = np.maximum(np.diff(below, prepend=0, append=1, axis=1), 0)
        rows = int(self.rows[number])
        drawn = self.rng.multinomial(rows, shares / shares.sum(axis=1, keepdims=True))
        columns = {
            name: ColumnProfile(rows, 0, 0, 0, 0, None, None, 0.0, 0.0, drawn[i])
            for i, name in enumerate(self.names)
        }
        return Profile(self.edges, rows, columns, {})

    def decide(
        self, state: PolicyState, number: int, by: Floats | float = 0.0
    ) -> tuple[PolicyState, set[str], int]:
        """Judge a day; return the state after it, the features that are told, and how often."""
        profile, start = self.day(number, by), START + number * DAY
        window = Window(start - 6 * DAY, start + DAY, profile.rows)
        verdicts = detect(self.reference, profile, window, self.config, bucket=(start, profile))
        evaluation = Evaluation("m", window, self.reference.window, tuple(verdicts))
        decision = decide(state, evaluation, self.config)
        alerts = [
            one for one in decision.alerts if one.kind is AlertKind.EPISODE and not one.resolved
        ]
        return decision.state, {v.feature for one in alerts for v in one.features}, len(alerts)

    def quiet(self, found: Outcome) -> None:
        """Live through a year in which nothing happens."""
        state = PolicyState()
        for number in range(self.known, self.known + YEAR):
            state, _, told = self.decide(state, number)
            found.told += told
            found.standing += any(one.kind is EpisodeKind.DRIFT for one in state.episodes.values())
        found.years += YEAR / 365.25

    def moved(self, found: Outcome) -> None:
        """Live through a year in which one feature moved, and see what else is seen."""
        state, first = PolicyState(), np.zeros(len(self.names))
        alternate = np.where(np.arange(len(self.names)) % 2, SMALL, -SMALL)
        alternate[0] = 0
        last = np.zeros(len(self.names))
        last[-1] = LARGE
        for day in range(YEAR):
            first[0] = STANDING if day >= BROKEN_ON else 0.0
            number = self.known + day
            if day > BROKEN_ON and day % EVERY == 0 and day + HORIZON < YEAR:
                self._see(state, number, first, alternate, last, found)
            state, _, _ = self.decide(state, number, first)

    def _see(
        self,
        state: PolicyState,
        number: int,
        first: Floats,
        small: Floats,
        large: Floats,
        found: Outcome,
    ) -> None:
        before = {v.feature for e in state.episodes.values() for v in e.features}
        after = state
        for ahead in range(HORIZON):
            after, _, _ = self.decide(after, number + ahead, first + small)
        standing = {v.feature for e in after.episodes.values() for v in e.features}
        found.seen += [name in standing for name in self.names[1:] if name not in before]
        after, told = state, np.inf
        if self.names[-1] in before:
            return
        for ahead in range(TOLD_WITHIN):
            after, names, _ = self.decide(after, number + ahead, first + large)
            if self.names[-1] in names:
                told = ahead + 1
                break
        found.quick.append(told)


def run(
    name: str,
    *,
    features: int,
    known: int,
    rows: int,
    promised: float,
    years: int,
    seed: int,
    power: bool = True,
) -> Outcome:
    """Return what a monitor does in a world; one year in four is also one in which things move."""
    found = Outcome()
    for number in range(years):
        monitor = Running(name, features, known, rows, promised, seed + number)
        monitor.quiet(found)
        if power and number % 4 == 0:
            monitor.moved(found)
    return found


def report(arguments: Namespace, base: int) -> int:
    """Run every world that is asked for, print a table, and return 0 where all is as promised."""
    rows, short = [], []
    promised, days = arguments.promised, 4.5 * arguments.promised
    for name in arguments.worlds or WORLDS:
        found = run(
            name,
            features=arguments.features,
            known=arguments.known,
            rows=arguments.rows,
            promised=promised,
            years=arguments.years,
            seed=base,
        )
        seen, quick = float(np.mean(found.seen or [np.nan])), np.array(found.quick)
        rows.append(
            [
                name,
                f"{found.told / found.years:.1f}",
                f"{found.standing / found.years:.1f}",
                f"{seen:.2f}",
                f"{np.mean(quick <= 1):.2f}",
                f"{np.mean(np.isfinite(quick)):.2f}",
            ]
        )
        # To a reference of weeks the time of the year is drift, which is told as such.
        if not (name.startswith("yearly") and arguments.known < YEAR):
            short += [f"{name}: {what}" for what, kept in found.keeps(promised, days) if not kept]
        hits = [len(found.seen), sum(found.seen)]
        if name in CALM and hits[1] < stats.binom.ppf(0.01, hits[0], 0.9):
            short.append(f"{name}: power")
        if not np.isfinite(quick).all():
            short.append(f"{name}: second feature")
        print(f"{name}: done", file=sys.stderr)
    print(
        f"{arguments.features} features, {arguments.rows:,} rows a day, {arguments.known} days of "
        f"reference; at most {promised:g} notifications and {days:g} days a year promised, "
        f"{arguments.years} years a world\n"
    )
    heads = ["world", "told a year", "days a year", ".25 sd in 7 days"]
    print(table([*heads, "3 sd in one day", "in three"], rows))
    print(f"SHORT: {'; '.join(short)}" if short else "As promised, in every world.")
    return 1 if short else 0
