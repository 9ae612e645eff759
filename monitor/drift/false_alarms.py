"""How far days stray by themselves: from a reference's own days and two promises to a multiple.

Bottom of `monitor.drift`, beside `monitor.drift.persistence`; pure, and seeded, so that a
reference built twice is the same.

Two things make a limit that eight weeks suggest too narrow for a year. Days *remember* the day
before, so that eight weeks hold fewer than 56 observations, and hide what wanders slowly. And some
days are far out: *tails* are heavier than a normal distribution's. Neither has a formula that holds
in all cases, so a year is simulated (a sieve bootstrap: Buehlmann, 1997, Bernoulli 3:123):

1. The correlation of one day with the next is measured over all features. It comes out too low
   where there are few days; by how much is seen by simulating references with a known one, and
   turned round. Features share one memory unless their own differ by more than chance.
2. What is new each day is drawn from what was new on the reference's days: whole days, all
   features together, so that tails come with it, and what moves together.
3. Years are made of both, each after a reference of its own; that is measured as the real one
   was, and judged by `monitor.drift.persistence`. The multiple is the smallest at which
   notifications and days with a false alarm standing come to what was promised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from steadfeast.monitor.drift.persistence import DECISIVE, LADDER, NEAR, RECENT, STILL_NEAR

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MEMORIES = np.array([0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.87, 0.91, 0.94, 0.96, 0.975, 0.985, 0.99])
LEAST, MOST = 2.0, 9.0
"""Multiples between which one is sought."""

JUMP = 3.0
"""Times a feature's own limit that a single bucket must at least be off to be decisive."""

_ALLOWANCE = 0.6
"""Standard errors by which memory is taken to be above its estimate."""
_SHARE = 0.8
"""Of what is promised, what the multiple is set for."""
_TAIL_SHARE = 0.25
"""Of the notifications, those that single days may be."""
_MIDDLE, _NORMAL = 0.86, 1.476
"""What six days of seven stay within is the scale: of normal days so many standard deviations."""
_STEPS, _FEATURES, _VALUES, _REFERENCES = 1_000, 256, 4_000_000, 400_000
_AHEAD = 60
_START = 30
_HALVINGS = 7


@dataclass(frozen=True, slots=True)
class Promise:
    """What a user was promised, of the features that are judged here.

    Attributes:
        notifications: A year that are false, at most.
        days: A year with a false alarm standing, at most.
        buckets_per_year: So many are judged.
    """

    notifications: float
    days: float
    buckets_per_year: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How buckets are compared with their like.

    Attributes:
        past: Design of the reference's buckets, shape (n, k).
        operator: Makes coefficients of values of those buckets, shape (k, n).
        ahead: Design of buckets that come after it, shape (m, k).
    """

    past: Floats
    operator: Floats
    ahead: Floats

    @property
    def leverage(self) -> Floats:
        """How much each bucket of the reference decides what it is compared with, 0 to .9."""
        found: Floats = np.clip(np.einsum("nk,kn->n", self.past, self.operator), 0, 0.9)
        return found

    def residuals(self, values: Floats) -> Floats:
        """Return what the calendar leaves over of values of the reference, shape (..., n)."""
        return values - (values @ self.operator.T) @ self.past.T

    def beyond(self, past: Floats, ahead: Floats) -> Floats:
        """Return how far values that come later are from their like, shape (..., m)."""
        return ahead - (past @ self.operator.T) @ self.ahead.T


@dataclass(frozen=True, slots=True)
class Wandering:
    """How far features stray.

    Attributes:
        spread: Of each feature's buckets, corrected for what so few hide, in sd, shape (features,).
        multiple: Of `spread`, at the limit, shape (features,).
        memory: Correlation of one bucket with the next, shape (features,).
        farthest: Times `spread` that a single bucket goes about as often as is promised.
    """

    spread: Floats
    multiple: Floats
    memory: Floats
    farthest: float


def scale(deviations: Floats) -> Floats:
    """Return a standard deviation that outliers do not decide, over the last axis."""
    found: Floats = np.quantile(np.abs(deviations), _MIDDLE, axis=-1) / _NORMAL
    return found


def wandering(
    effects: Floats,
    spread: Floats,
    counting: Floats,
    how: Comparison,
    floor: Floats,
    promise: Promise,
) -> Wandering:
    """Return how far features stray in a year, for limits that keep a promise.

    Args:
        effects: How far each feature of the reference's buckets was from its like, in sd, as
            `Comparison.residuals` leaves it, shape (features, n).
        spread: Of them, beyond what counting rows adds, shape (features,).
        counting: Share of their variance that counting rows adds, 0 to 1, shape (features,).
        how: What buckets are compared with.
        floor: Least limit of each feature in sd, shape (features,).
        promise: To keep.
    """
    chosen = np.unique(np.linspace(0, len(effects) - 1, _FEATURES).astype(int))
    share = len(chosen) / len(effects)
    moving = np.flatnonzero(effects.std(axis=1) > 1e-9)  # noqa: PLR2004 - rounding
    if not len(moving):
        nothing = np.zeros(len(effects))
        return Wandering(spread, nothing + LEAST, nothing, DECISIVE)
    rng = np.random.default_rng(20130101)
    own, held = _correlations(effects, counting)
    new = _innovations(effects[moving], np.clip(own[moving], 0, 0.95), how)
    known = _Known.simulated(rng, new, how)
    memory = known.memory(own, held, moving)
    new = _innovations(effects[moving], memory[moving], how)
    hidden, doubt, stray = (
        known.at(memory, one) for one in (known.hidden, known.doubt, known.stray)
    )
    true, shrunk = _pooled(np.log(np.maximum(spread, 1e-4)) - hidden, doubt)
    farthest = _farthest(effects[moving], promise, len(effects))
    year = _Years.simulated(rng, new, memory[chosen], how, promise)
    sd = true[chosen] + np.sqrt(shrunk[chosen]) * doubt[chosen] * rng.standard_normal(
        year.spread.shape
    )
    seen, _ = _pooled(
        np.log(year.spread) - hidden[chosen] + sd, doubt[chosen], true, shrunk[chosen]
    )
    rest = Promise(share * promise.notifications, share * promise.days, promise.buckets_per_year)

    def kept(multiple: float) -> bool:
        limit = np.maximum(floor[chosen], multiple * stray[chosen] * np.exp(seen))
        return year.keeps(rest, np.exp(sd), limit, floor[chosen], farthest * np.exp(seen))

    return Wandering(np.exp(true), stray * _least(kept), memory, farthest)


def decisive(limit: Floats, floor: Floats, farthest: Floats) -> Floats:
    """Return from which effect on a single bucket is an alarm, all in sd."""
    return np.maximum(np.maximum(DECISIVE * floor, JUMP * limit), farthest)


def _least(kept: Callable[[float], bool]) -> float:
    low, high = LEAST, MOST
    if kept(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


def _correlations(effects: Floats, counting: Floats) -> tuple[Floats, Floats]:
    """Return each feature's correlation of one bucket with the next, and how much it tells."""
    power = np.maximum((effects**2).sum(axis=1), 1e-18)
    next_ = (effects[:, 1:] * effects[:, :-1]).sum(axis=1)
    held = np.clip(1 - counting, 0.2, 1)
    return next_ / power / held, held


def _innovations(effects: Floats, memory: Floats, how: Comparison) -> Floats:
    """Return what was new on each of the reference's buckets, scale 1, shape (features, n - 1)."""
    even = effects / np.sqrt(1 - how.leverage)
    new = even[:, 1:] - memory[:, None] * even[:, :-1]
    return new / np.maximum(scale(new)[:, None], 1e-12)


def _paths(rng: np.random.Generator, new: Floats, memory: Floats, steps: int, many: int) -> Floats:
    """Simulate features that remember, of scale about 1, shape (many, features, steps)."""
    features, days = np.arange(len(memory)) % len(new), new.shape[1]
    at = rng.integers(0, days, (_START + steps, many))
    sides = rng.choice([-1.0, 1.0], at.shape)
    made = np.empty((steps, many, len(memory)))
    drawn = new.T[:, features]
    # What came before is the sum of many days, as if each had been remembered alike.
    before = (drawn[at[:_START]] * sides[:_START, :, None]).sum(axis=0) / np.sqrt(_START)
    for step in range(steps):
        fresh = drawn[at[_START + step]] * sides[_START + step, :, None]
        before = before if step == 0 else memory * before + np.sqrt(1 - memory**2) * fresh
        made[step] = before
    return made.transpose(1, 2, 0)


def _measured(past: Floats, how: Comparison) -> tuple[Floats, Floats]:
    """Return the spread of simulated references, and their residuals."""
    left = how.residuals(past)
    return np.maximum(scale(left / np.sqrt(1 - how.leverage)), 1e-9), left


@dataclass(frozen=True, slots=True)
class _Known:
    """What a reference shows of features whose memory is known; each shape (memories,).

    Attributes:
        shown: Mean correlation of one bucket with the next, over all features.
        error: Its standard deviation between references.
        single: That of one feature's.
        hidden: Mean logarithm of the spread that is seen, of features whose scale is 1.
        doubt: Its standard deviation.
        stray: Scale of what comes after the reference.
    """

    shown: Floats
    error: Floats
    single: Floats
    hidden: Floats
    doubt: Floats
    stray: Floats

    @classmethod
    def simulated(cls, rng: np.random.Generator, new: Floats, how: Comparison) -> _Known:
        new = new[:_FEATURES]
        past, ahead = len(how.past), min(_AHEAD, len(how.ahead))
        how = Comparison(how.past, how.operator, how.ahead[:ahead])
        many = int(np.clip(_REFERENCES / (len(new) * past), 2, 60))
        rows = []
        for memory in MEMORIES:
            paths = _paths(rng, new, np.full(len(new), memory), past + ahead, many)
            spread, left = _measured(paths[..., :past], how)
            one = (left[..., 1:] * left[..., :-1]).sum(axis=-1) / (left**2).sum(axis=-1)
            later = how.beyond(paths[..., :past], paths[..., past:])
            mean = one.mean(axis=1)
            log = np.log(spread)
            rows.append(
                (mean.mean(), mean.std(), one.std(), log.mean(), log.std(), scale(later.ravel()))
            )
        return cls(*np.array(rows).T)

    def at(self, memory: Floats, values: Floats) -> Floats:
        """Return one of the attributes for features of any memory."""
        found: Floats = np.interp(memory, MEMORIES, values)
        return found

    def memory(self, own: Floats, held: Floats, moving: npt.NDArray[np.int64]) -> Floats:
        """Return the memory of each feature, of what the reference shows of it."""
        weight = held[moving]
        mean = float((own[moving] * weight).sum() / weight.sum())
        rising = np.maximum.accumulate(self.shown - _ALLOWANCE * self.error)
        chance = np.interp(mean, np.maximum.accumulate(self.shown), self.single) ** 2 / held**2
        apart = max(0.0, float(own[moving].var() - chance[moving].mean()))
        seen = mean + apart / (apart + chance + 1e-12) * (own - mean)
        found: Floats = np.interp(seen, rising, MEMORIES)
        return found


def _pooled(
    logs: Floats,
    doubt: Floats,
    center: Floats | None = None,
    weight: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Draw logarithms of spreads together as far as chance has driven them apart (Smyth, 2004).

    Returns:
        The logarithms, and the weight of each feature's own.
    """
    if weight is None:
        apart = max(0.0, float(np.var(logs) - np.mean(doubt**2))) if len(logs) > 1 else np.inf
        weight = np.ones(len(logs)) if apart == np.inf else apart / (apart + doubt**2 + 1e-12)
    middle = np.mean(logs if center is None else center)
    return middle + weight * (logs - middle), weight


def _farthest(effects: Floats, promise: Promise, features: int) -> float:
    """Return how far single buckets go as often as is promised (Hill, 1975), in spreads."""
    sizes = np.sort((np.abs(effects) / np.maximum(scale(effects), 1e-12)[:, None]).ravel())
    many = min(len(sizes) - 1, max(10, len(sizes) // 50))
    top = np.maximum(sizes[-many:], 1e-9)
    slope = float(np.mean(np.log(top / top[0])))
    chance = _TAIL_SHARE * promise.notifications / (promise.buckets_per_year * features)
    return float(top[0] * max(1.0, many / len(sizes) / chance) ** min(slope, 1.0))


@dataclass(frozen=True, slots=True)
class _Years:
    """Simulated years, each after a reference of its own.

    Attributes:
        effects: Of features of scale 1, shape (years, features, steps).
        spread: As each reference shows it, shape (years, features).
        length: Of `steps`, in years.
    """

    effects: Floats
    spread: Floats
    length: float

    @classmethod
    def simulated(
        cls,
        rng: np.random.Generator,
        new: Floats,
        memory: Floats,
        how: Comparison,
        promise: Promise,
    ) -> _Years:
        past, steps = len(how.past), len(how.ahead)
        many = int(np.clip(_VALUES / (len(memory) * (past + steps)), 2, 40))
        paths = _paths(rng, new, memory, past + steps, many)
        spread, _ = _measured(paths[..., :past], how)
        effects = how.beyond(paths[..., :past], paths[..., past:])
        return cls(effects, spread, many * steps / promise.buckets_per_year)

    def keeps(
        self, promise: Promise, sd: Floats, limit: Floats, floor: Floats, farthest: Floats
    ) -> bool:
        """Say whether such limits keep a promise."""
        effects = self.effects * sd[..., None]
        sizes = np.abs(effects)
        times = sizes / limit[..., None]
        single = sizes > decisive(limit, floor, farthest)[..., None]
        times = np.where(single, np.maximum(times, 1.001 * DECISIVE), np.minimum(times, DECISIVE))
        opened, standing = episodes(np.sign(effects) * times)
        told = np.count_nonzero(opened.any(axis=1)) / self.length
        days = np.count_nonzero(standing.any(axis=1)) / self.length
        of_days = promise.days * promise.buckets_per_year / 365.25
        return bool(told <= _SHARE * promise.notifications and days <= _SHARE * of_days)


def episodes(ratios: Floats) -> tuple[Flags, Flags]:
    """Apply `monitor.drift.persistence` to many features at once.

    Args:
        ratios: Signed, shape (..., steps).

    Returns:
        Where a drift begins, and where one stands, of that shape.
    """
    hit = np.zeros(ratios.shape, np.bool_)
    for many, last, times in LADDER:
        for side in (1, -1):
            hit |= _in_last(side * ratios > times, last) >= many
    calm = (_in_last(np.abs(ratios) > NEAR, RECENT) < STILL_NEAR) & ~hit
    steps = np.arange(ratios.shape[-1])
    decided = np.maximum.accumulate(np.where(hit | calm, steps, -1), axis=-1)
    standing = np.take_along_axis(hit, np.maximum(decided, 0), axis=-1) & (decided >= 0)
    opened = standing.copy()
    opened[..., 1:] &= ~standing[..., :-1]
    return opened, standing


def _in_last(flags: Flags, many: int) -> npt.NDArray[np.int16]:
    """Return for each step how many of the last `many` flags are set."""
    sums = np.cumsum(flags, axis=-1, dtype=np.int16)
    sums[..., many:] -= sums[..., :-many].copy()
    return sums
