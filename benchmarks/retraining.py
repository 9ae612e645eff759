"""When to retrain: the monitor's own decision beside calendars, on real data.

    python benchmarks/retraining.py [--quick] [--seed N] [--sets A,B] [--delay 30d] [--kept FOLDER]

Each set is a Feast repo of its own (`retraining_world.py`); `steadfeast backtest` replays it with
the pipeline's own code. One configuration of defaults decides for all of them: nothing is set by
the name of a set but its task and its metric. Plain calendars fit the recipe once on everything, as
a script under cron does; `monthly` has the pipeline's gates and its blend of stretches too. Every
set is replayed twice: with labels as they come, and with labels that come 30 days late. Exit code 1
when a promise does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import table, versions
from benchmarks.retraining_world import SETS, flights
from steadfeast.backtest import compare
from steadfeast.backtest.report import as_dict
from steadfeast.featurestore import Store
from steadfeast.featurestore.config import duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steadfeast.backtest import Earned, Verdict

CALENDARS = ("plain quarterly", "plain monthly", "plain weekly")
POLICIES = ("never", *CALENDARS, "monthly", "triggered")
QUICK = ("never", *CALENDARS[:2], "monthly", "triggered")
DELAYS = ("0d", "30d")


def replays(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Verdict]]:
    """Replay every set with every delay."""
    wanted = arguments.sets.split(",") if arguments.sets else ["flights", *(s.name for s in SETS)]
    for name in wanted:
        place = folder / name
        first_days = None
        if name == "flights":
            path = flights(place, arguments.seed)
            model, first_days = "late_arrival", 59
        else:
            world = next(one for one in SETS if one.name == name)
            days = world.quick_days if arguments.quick else None
            path = world.write(place, seed=arguments.seed, days=days)
            model, first_days = "model", world.first_days
        with Store.open(path) as store:
            store.apply()
        for text in [arguments.delay] if arguments.delay else DELAYS:
            delay = duration(text)
            kept = None if arguments.kept is None else arguments.kept / name
            names = QUICK if arguments.quick else POLICIES
            verdict = compare(
                path, names, model=model, label_delay=delay, kept=kept,
                first=timedelta(days=first_days) + delay,
            )[model]  # fmt: skip
            yield name, text, verdict


def judged(verdict: Verdict) -> dict[str, bool]:
    """Return which promises hold."""
    by_name = {one.replayed.name: one for one in verdict.earned}
    ours, monthly = by_name["triggered"], by_name["plain monthly"]
    sign = -1 if verdict.measure.lower_is_better else 1
    against = ours.against_never
    return {
        "not below never": against is None or against.high >= 0,
        "on the frontier": ours.frontier is None or sign * (ours.figure - ours.frontier) >= 0,
        "at least monthly": sign * (ours.figure - monthly.figure) >= 0,
        "runs at most monthly's": ours.replayed.runs <= monthly.replayed.runs,
    }


def main() -> int:
    """Run it, print it, and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="the first years of each set, and no weekly calendar"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    parser.add_argument("--sets", default="", help="only these, with commas")
    parser.add_argument("--delay", default="", help="only this delay of labels: 0d, 30d")
    parser.add_argument("--kept", type=Path, help="folder for runs that were done: goes on there")
    parser.add_argument("--report", type=Path, help="write everything here, as JSON")
    arguments = parser.parse_args()
    print(versions(("scikit-learn", "numpy", "duckdb")))
    rows, found, all_hold = [], {}, True
    head = ("set", "labels", "measure", *(QUICK if arguments.quick else POLICIES), "holds")
    with tempfile.TemporaryDirectory() as folder:
        for name, delay, verdict in replays(arguments, Path(folder)):
            held = judged(verdict)
            all_hold &= all(held.values())
            rows.append(_row(name, delay, verdict, held))
            found[f"{name}, labels {delay} late"] = as_dict(verdict)
            print(table(head, [rows[-1]]), flush=True)
    print(table(head, rows))
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all_hold else 1


def _row(name: str, delay: str, verdict: Verdict, held: dict[str, bool]) -> tuple[str, ...]:
    missed = ", ".join(what for what, holds in held.items() if not holds)
    cells = [_cell(one) for one in verdict.earned]
    return (name, delay, verdict.measure.name, *cells, (missed and f"not: {missed}") or "all")


def _cell(one: Earned) -> str:
    return f"{one.figure:.4f} ({one.replayed.runs:g})"


if __name__ == "__main__":
    raise SystemExit(main())
