"""False alarms and power: what is flagged where nothing happened, and how soon what did is seen.

    python benchmarks/detection.py [--quick] [--seed N] [--tuning]
    python benchmarks/detection.py --quiet [--features N] [--known DAYS] [--rows N] [--promised N]

Fifty features with a weekly season of .1 sd, day-to-day jitter of 0, .03 and .05 sd, and 1,000,
10,000 and 100,000 rows a day. Ours runs as the daemon runs it: a reference of eight weeks is
calibrated, every day is judged with `detect`, and `decide` opens episodes with k of n. Beside it
stand the rules of others, each on one day of one feature.

What was tuned was tuned on other seeds than those that are reported: `--tuning` chooses the former.
`--quick` holds the same bars against what so few days can tell: it fails where the truth is short
of one 99 times in 100, and not where a single episode of four days is more than .001 of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import quiet_worlds
from benchmarks.detection_peers import RULES, Peers
from benchmarks.detection_world import DAY, NAMES, NUMERIC, SHIFTS, START, World
from benchmarks.measure import table, versions
from steadfeast.monitor.config import MonitorConfig
from steadfeast.monitor.decisions import Evaluation, PolicyState, decide
from steadfeast.monitor.drift import Level, Reference, detect, reference_of
from steadfeast.monitor.profiles import Window, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.detection_world import Day
    from steadfeast.monitor.drift import Verdict

CONFIG = MonitorConfig(service="s", model="m", performance=None)
REFERENCE_DAYS, WINDOW = 56, 7
ROWS, JITTERS = (1_000, 10_000, 100_000), (0.0, 0.03, 0.05)
TUNING, REPORTING = 1_000, 2_000
HORIZON = 7
"""Days within which a shift is to be seen."""
BEST = {
    "mean +.25 sd": 1.0,
    "sd x 1.1": 0.99,
    "1 % tail x 10": 0.70,
    "1 % spike": 0.09,
    "nulls 0 -> 5 %": 0.08,
    "new category 1 %": 1.0,
}
"""Share that the best of the others' rules saw on one day without jitter, at 10,000 rows; our own
battery of looks, at .91 to 1 for spikes, tails and nulls, is asked for in `BATTERY`. A mean that
moves by .1 sd, and a swap of categories of PSI .002, are less than `smallest_change`."""
BATTERY = {"1 % tail x 10": 1.0, "1 % spike": 0.91, "nulls 0 -> 5 %": 1.0}


SURE = 0.99
"""How sure a quick run is of a shortfall before it says so."""


def fewest(found: float) -> float:
    """Return the least mean that a Poisson count of `found` or more leaves likely (Garwood, 1936).

    Over all settings the worst is looked at: each is as sure as all are to be.
    """
    settings = len(ROWS) * len(JITTERS)
    return float(special.gammaincinv(found, (1 - SURE) / settings)) if found else 0.0


def likely(hits: np.ndarray) -> float:
    """Return the largest share that such hits leave likely (Clopper and Pearson, 1934)."""
    many, found = len(hits), int(np.sum(hits))
    return 1.0 if found == many else float(special.betaincinv(found + 1, many - found, SURE))


class Run:
    """One monitor over one world, day by day."""

    def __init__(self, world: World) -> None:
        self.world = world
        days = world.days(0, REFERENCE_DAYS)
        series = [(START + i * DAY, one.profile()) for i, one in enumerate(days)]
        self.reference: Reference = reference_of(series, world.edges, CONFIG)
        self.peers = [
            Peers.fit([day.columns[i] for day in days], numeric=i < NUMERIC)
            for i in range(len(NAMES))
        ]

    def judge(self, days: Sequence[Day], first: int) -> list[tuple[list[Verdict], bool, set[str]]]:
        """Judge every window that is full.

        Returns:
            For each: verdicts, whether anybody was told, and the features whose drift stands.
        """
        state, found = PolicyState(), []
        profiles = [day.profile() for day in days]
        for i in range(WINDOW, len(days) + 1):
            end = START + (first + i) * DAY
            whole = total(profiles[i - WINDOW : i], self.world.edges)
            window = Window(end - WINDOW * DAY, end, whole.rows)
            last = (end - DAY, profiles[i - 1])
            verdicts = detect(self.reference, whole, window, CONFIG, bucket=last)
            evaluation = Evaluation("m", window, self.reference.window, tuple(verdicts))
            decision = decide(state, evaluation, CONFIG)
            state = decision.state
            lasting = {
                member.verdict.feature
                for episode in state.episodes.values()
                for member in episode.members
                if member.open
            }
            found.append((verdicts, bool(decision.opened), lasting))
        return found


def quiet(run: Run, days: int) -> dict[str, float]:
    """Return what is flagged where nothing happened: flags per feature-day by rule, episodes."""
    first = REFERENCE_DAYS + 7
    drawn = run.world.days(first - WINDOW + 1, days + WINDOW - 1)
    judged = run.judge(drawn, first - WINDOW + 1)
    many = len(judged) * len(NAMES)
    flags = np.mean(
        [peer.flags(day.columns[i]) for day in drawn for i, peer in enumerate(run.peers)], axis=0
    )
    over = sum(one.level is Level.DRIFT for verdicts, _, _ in judged for one in verdicts)
    lasts = [lasting for _, _, lasting in judged]
    begun = sum(len(now - then) for then, now in zip([set(), *lasts], lasts, strict=False))
    return {
        "begun": begun,
        "ours": sum(len(lasting) for _, _, lasting in judged) / many,
        "ours, one window": over / many,
        "episodes": sum(opened for _, opened, _ in judged),
        "days": len(judged),
        **dict(zip(RULES, flags.tolist(), strict=True)),
    }


def seen(run: Run, events: int) -> dict[str, list[tuple[float, ...]]]:
    """Return per shift and shifted feature: days until ours saw it (inf: never), each rule's."""
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for event in range(events):
        first = REFERENCE_DAYS + 3 * event
        calm = run.world.days(first, WINDOW - 1, run=event + 1)
        moved = run.world.days(first + WINDOW - 1, HORIZON, shifted=True, run=event + 1)
        judged = run.judge([*calm, *moved], first)
        for what, at in SHIFTS.items():
            for i in at:
                ours = next(
                    (day for day, one in enumerate(judged, 1) if NAMES[i] in one[2]), np.inf
                )
                flags = np.array([run.peers[i].flags(day.columns[i]) for day in moved])
                others = np.where(flags.any(axis=0), flags.argmax(axis=0) + 1, np.inf)
                found[what].append((ours, *others.tolist(), *flags[0].tolist()))
    return found


def main() -> int:
    """Run every setting and report; 0 where everything asked for is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer days and events")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuning", action="store_true", help="the seeds that limits were tuned on")
    parser.add_argument("--quiet", action="store_true", help="the quiet worlds and both promises")
    parser.add_argument("--worlds", nargs="*", help="names of some of them")
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--known", type=int, default=56, help="days of the reference")
    parser.add_argument("--rows", type=int, default=10_000, help="a day")
    parser.add_argument("--promised", type=float, default=4, help="notifications a year")
    parser.add_argument("--years", type=int, default=8, help="simulated for each world")
    arguments = parser.parse_args()
    base = (TUNING if arguments.tuning else REPORTING) + arguments.seed
    if arguments.quiet:
        return quiet_worlds.report(arguments, base)
    runs, days, events = (1, 60, 3) if arguments.quick else (4, 120, 4)
    print(versions(["numpy", "scipy"]), "\n")
    alarms, power = [], {}
    began = time.perf_counter()
    for rows in ROWS:
        for jitter in JITTERS:
            calm: dict[str, float] = defaultdict(float)
            shifts: dict[str, list[tuple[float, ...]]] = defaultdict(list)
            for number in range(runs):
                run = Run(World(rows, jitter, (base, number, rows, round(100 * jitter))))
                for key, value in quiet(run, days).items():
                    calm[key] += value
                for what, values in seen(run, events).items():
                    shifts[what] += values
            alarms.append((rows, jitter, calm))
            power[rows, jitter] = {what: np.array(values) for what, values in shifts.items()}
            print(
                f"{rows} rows, jitter {jitter}: {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
            )
    return report(alarms, power, runs, quick=arguments.quick)


def report(alarms: list[Any], power: dict[Any, Any], runs: int, *, quick: bool) -> int:
    """Print the tables and what was reached; return the exit code."""
    rules = ("ours", "ours, one window", *RULES)
    print("False flags per feature-day where nothing happened; ours after k of n.\n")
    print(
        table(
            ["rows a day", "jitter, sd", *rules, "episodes a year"],
            [
                [
                    f"{rows:,}",
                    f"{jitter:g}",
                    *(f"{calm[rule] / runs:.5f}".rstrip("0").rstrip(".") for rule in rules),
                    f"{calm['episodes'] / calm['days'] * 365.25:.1f}",
                ]
                for rows, jitter, calm in alarms
            ],
        )
    )
    print(
        f"Share of shifted features seen within {HORIZON} days (median days); ours after k of n.\n"
    )
    for rows in ROWS:
        print(
            table(
                [
                    f"{rows:,} rows a day",
                    *(f"ours, jitter {jitter:g}" for jitter in JITTERS),
                    *RULES,
                ],
                [
                    [
                        what,
                        *(
                            f"{np.isfinite(power[rows, j][what][:, 0]).mean():.2f} "
                            f"({np.median(power[rows, j][what][:, 0]):g})"
                            for j in JITTERS
                        ),
                        *(
                            f"{np.isfinite(power[rows, JITTERS[0]][what][:, 1 + k]).mean():.2f}"
                            for k in range(len(RULES))
                        ),
                    ]
                    for what in SHIFTS
                ],
            )
        )
    worst = max(calm["ours"] / runs for _, _, calm in alarms)
    years = sum(calm["days"] for _, _, calm in alarms) / 365.25
    rate = sum(calm["episodes"] for _, _, calm in alarms) / years
    promised = CONFIG.false_alarms_per_year
    quarter = [power[r, j]["mean +.25 sd"][:, 0] for r in ROWS[1:] for j in JITTERS]
    least = min(float(np.isfinite(days).mean()) for days in quarter)
    slowest = max(float(np.median(days)) for days in quarter)
    held, lowest, share = worst, rate, np.mean
    if quick:
        # Flagged days come in runs: how many runs there are is what chance decides.
        held = max(
            calm["ours"] / runs * fewest(calm["begun"]) / max(calm["begun"], 1)
            for _, _, calm in alarms
        )
        opened = sum(calm["episodes"] for _, _, calm in alarms)
        lowest, share = fewest(opened) / years, likely
    short = {
        what: float(np.isfinite(power[10_000, 0.0][what][:, 0]).mean())
        for what in BEST
        if share(np.isfinite(power[10_000, 0.0][what][:, 0]))
        < max(BEST[what], BATTERY.get(what, 0.0)) - 0.01
    }
    reached = {
        f"false alarms per feature-day at most {worst:.5f} of .001": held <= 0.001,
        f"{rate:.1f} episodes a year of {promised:g} promised": lowest <= promised,
        f".25 sd seen in {least:.2f} of .95": min(share(np.isfinite(days)) for days in quarter)
        >= 0.95,
        f"after {slowest:g} days of 4 at the median": slowest <= 4,
        f"battery short at {short or 'nothing'}": not short,
    }
    if quick:
        print("A quick run: SHORT is what so few days leave less than 1 % of doubt of.\n")
    print("; ".join(f"{what}{'' if good else ' (SHORT)'}" for what, good in reached.items()))
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
