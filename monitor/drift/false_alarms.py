"""How far a window of pure noise strays: false episodes a year to a factor, and back.

Bottom of `monitor`, beside `monitor.drift.distances`; pure. A monitor looks at overlapping windows
and speaks of episodes, so neither the number of looks nor the number of separate windows says
how many chances noise has. It is simulated instead, seeded: a distance is the mean of the
squares of `directions` averages of white noise over a window, looked at several times within
the window's length, and counted by the rule that opens and closes episodes.

Averages of noise that remembers, such as one day's weather the next day's, exceed a level several
times in a row, which persistence does not hold back: `memory` is the correlation of one step with
the next.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import optimize, signal, special

if TYPE_CHECKING:
    from steadfeast.monitor.config.schema import MonitorConfig

Floats = npt.NDArray[np.float64]

CLOSE_BELOW = 0.8

_YEARS, _STEPS = 1000, 2_000_000
_MEMORIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98)
_DIRECTIONS = (1, 2, 3, 5, 8, 13, 21, 34)
_YEAR = timedelta(days=365.25)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a monitor looks.

    Attributes:
        per_window: Looks within one window; at most 24, as more hardly differ.
        per_year: Looks in a year.
        k: See `EpisodeConfig`, like the next two.
        n: Windows looked at.
        close: Windows that close an episode.
    """

    per_window: int
    per_year: float
    k: int
    n: int
    close: int

    @classmethod
    def of(cls, config: MonitorConfig) -> Plan:
        """Return how `config` looks at its windows."""
        episode = config.episode
        per_window = min(config.window // config.bucket, 24)
        return cls(
            per_window,
            _YEAR / config.window * per_window,
            episode.k,
            episode.n,
            episode.close,
        )

    @classmethod
    def of_latest(cls, config: MonitorConfig, length: timedelta) -> Plan:
        """Return how `config` looks at the last `length` of its windows."""
        per_window = min(length // config.bucket, 24)
        episode = config.episode
        return cls(per_window, _YEAR / length * per_window, episode.k, episode.n, episode.close)

    def part(self, weight: float) -> float:
        """Return the share of the false episodes of one look that is `weight` of all looks.

        Where looks do not overlap, k of them must exceed: so many chances make an episode of any
        looks that the chances of each may be `weight` of the whole, and its episodes the k-th
        power. Overlapping windows exceed together, so that episodes add up.
        """
        return float(weight**self.k) if self.per_window == 1 else weight


def factor(
    *,
    directions: float,
    freedom: float,
    alarms_per_year: float,
    plan: Plan,
    memory: float = 0.0,
) -> float:
    """Return how many times its mean a squared distance may be, for so many false episodes a year.

    Args:
        directions: In which blocks of the reference differ, at least 1. Simulated are some whole
            numbers up to 34; between two the factor is interpolated.
        freedom: Of the estimated mean, in the sense of chi-square; above 0.
        alarms_per_year: Episodes that are accepted where nothing happened; above 0.
        plan: How the monitor looks.
        memory: Correlation of one step with the next, 0 to 1; taken in steps.

    Returns:
        1 to 1000.
    """
    above = min(bisect_right(_DIRECTIONS, directions), len(_DIRECTIONS) - 1)
    ends = _DIRECTIONS[above - 1 : above + 1]
    found = [_factor(one, freedom, alarms_per_year, plan, _coarse(memory)) for one in ends]
    return math.exp(float(np.interp(math.log(directions), np.log(ends), np.log(found))))


def tail(alarms_per_year: float, plan: Plan, memory: float = 0.0) -> float:
    """Return the chance that one look may exceed its limit, for so many false episodes a year.

    For limits on something whose spread is known. Arguments as in `factor`.
    """
    return _tail(alarms_per_year, plan, _coarse(memory))


@lru_cache(maxsize=256)
def _tail(alarms_per_year: float, plan: Plan, memory: float) -> float:
    known = 1e9
    return float(special.chdtrc(1, _factor(1, known, alarms_per_year, plan, memory)))


def _coarse(memory: float) -> float:
    return min(_MEMORIES, key=lambda one: abs(one - memory))


def _factor(
    directions: int, freedom: float, alarms_per_year: float, plan: Plan, memory: float
) -> float:
    levels, rates = _episode_rates(directions, plan, memory)
    slope = (rates[-1] - rates[-2]) / (levels[-1] - levels[-2])
    # The mean is uncertain: average the rate over what the true mean may be.
    scales = _scales(freedom)

    def excess(log_factor: float) -> float:
        at = np.exp(log_factor) * scales
        # Beyond the simulated levels the logarithm of the rate goes on in a straight line.
        rate = np.interp(at, levels, rates) + slope * np.maximum(at - levels[-1], 0)
        highest = float(rate.max())
        mean = highest + math.log(float(np.mean(np.exp(rate - highest))))
        return mean - math.log(alarms_per_year)

    low, high = 0.0, math.log(1e3)
    if excess(low) <= 0:
        return 1.0
    return math.exp(high if excess(high) > 0 else optimize.brentq(excess, low, high, xtol=1e-3))


@lru_cache(maxsize=256)
def _scales(freedom: float) -> Floats:
    """Return 400 quantiles of chi-square(f) / f, evenly spread; shape (400,)."""
    found: Floats = 2 * special.gammaincinv(freedom / 2, (np.arange(400) + 0.5) / 400) / freedom
    return found


@lru_cache(maxsize=256)
def _episode_rates(directions: int, plan: Plan, memory: float) -> tuple[Floats, Floats]:
    """Simulate looks at pure noise: levels from 1 up, and log episodes a year at each."""
    generator = np.random.default_rng(20130101)
    years = min(_YEARS, _STEPS / plan.per_year)
    steps = int(years * plan.per_year)
    noise = np.zeros(steps)
    for _ in range(directions):
        steady = generator.standard_normal(steps + plan.per_window)
        if memory:
            steady = signal.lfilter([1.0], [1.0, -memory], steady)
        sums = np.cumsum(steady)
        noise += (sums[plan.per_window :] - sums[: -plan.per_window]) ** 2
    noise /= noise.mean()
    levels, rates = [], []
    for level in np.geomspace(1, 40, 40):
        episodes = _episodes(noise, level, plan)
        levels.append(level)
        rates.append(math.log(episodes / years))
        if episodes < 30 and len(levels) > 1:  # noqa: PLR2004 - fewer are too noisy to go on from
            break
    return np.array(levels), np.array(rates)


def _episodes(values: Floats, level: float, plan: Plan) -> int:
    """Count episodes, at least 1, by the rule that the policy applies."""
    opens = _in_last(values > level, plan.n) >= plan.k
    closes = (_in_last(values < CLOSE_BELOW * level, plan.close) >= plan.close) & ~opens
    # What came last decides; an episode begins where an opening follows a closing.
    open_then = opens[opens | closes]
    return max(1, int(np.count_nonzero(open_then[1:] & ~open_then[:-1]) + open_then[:1].sum()))


def _in_last(flags: npt.NDArray[np.bool_], many: int) -> npt.NDArray[np.int32]:
    """Return for each step how many of the last `many` flags are set."""
    sums = np.cumsum(flags, dtype=np.int32)
    sums[many:] -= sums[:-many].copy()
    return sums
