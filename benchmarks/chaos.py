"""Everything at once, and everything goes wrong: what survives, what heals, what needs a person?

    python benchmarks/chaos.py [--quick] [--seed N] [--only WORDS]

A project of `steadfeast init` runs as five real processes on loopback: daemon, pipeline, model
edge, store edge and Redis. A client serves day after day through them and keeps what it was told.
At random moments of a day one fault happens. Then a checker that shares no code with ours reads the
files: no trigger is lost or doubled, every alert is told once, buckets follow without a gap,
snapshots hold what the log holds, nothing was served that the source does not say, labels that were
taken are there. What was lost must be what an audit says was lost; what was damaged must be named.

A fault is healed by itself where a supervisor's restart is enough, and needs a person where a file
or the content of Redis has to be put back: then somebody must have been told, by name.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import chaos_check
from chaos_faults import Fault, faults
from chaos_world import ChaosError, World, redis_server
from measure import table, versions


@dataclass(frozen=True)
class Came:
    """What came of one fault."""

    fault: str
    told: str
    problems: tuple[str, ...]
    seconds: float


def suffer(world: World, fault: Fault, moment: float) -> Came:
    """Serve a day, have the fault happen in it, and look at what is left."""
    began, errors, over = time.monotonic(), list[BaseException](), threading.Event()
    world.refused = ""

    def serve() -> None:
        try:
            world.serve_day()
            while not over.wait(1):
                world.serve_day()
            world.serve_day()
        except BaseException as error:  # noqa: BLE001 - raised again below, by the one who waits
            errors.append(error)

    client, told = threading.Thread(target=serve), ""
    client.start()
    try:
        time.sleep(moment)
        told = fault.happen(world)
        over.set()
        client.join()
        if errors:
            raise errors[0]
        world.settle()
        found, lost = chaos_check.problems(world, told=bool(told))
        stated = lost and chaos_check.stated(world.audit())
        if lost > stated:
            found.append(f"{lost} rows are not in the log; an audit says {stated}")
    except ChaosError as error:
        found = [str(error)]
        found += [f"{world.behind()}"]
    finally:
        over.set()
        client.join()
    return Came(fault.name, told, tuple(found), time.monotonic() - began)


def run(chosen: list[Fault], seed: int) -> list[Came]:
    """Have the faults happen one after the other; a world that does not come back is replaced."""
    moments, came = random.Random(seed), list[Came]()
    left = list(chosen)
    while left:
        with ExitStack() as opened:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            world = opened.enter_context(World(folder, seed, redis_server()))
            while left:
                came.append(suffer(world, left.pop(0), moments.uniform(0, 0.5)))
                last = came[-1]
                if sys.stderr.isatty() or last.problems:
                    print(f"{len(came)}/{len(chosen)} {last.fault}: "
                          f"{last.problems or last.told or 'ok'}", file=sys.stderr)  # fmt: skip
                if last.problems:
                    break
    return came


def main() -> int:
    """Have everything go wrong; 1 if something did not survive it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="some of the faults, in two minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name has these words")
    given = parser.parse_args()
    chosen = [one for one in faults(quick=given.quick) if given.only in one.name]
    if given.quick and not given.only:
        chosen = [one for one in chosen if one.quick]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and leave no server behind
    came = run(chosen, given.seed)
    print(versions(["duckdb", "grpcio", "pyarrow"]))
    print()
    rows = [
        [
            one.fault,
            "yes" if not one.problems else "NO",
            "a person" if one.told else "by itself",
            (one.told or "; ".join(one.problems))[:150].replace("|", "/"),
            f"{one.seconds:.0f}",
        ]
        for one in came
    ]
    print(table(["fault", "survived", "healed", "what was said", "s"], rows))
    bad = [one.fault for one in came if one.problems]
    said = "; ".join(bad) or "all survived"
    print(f"{len(came) - len(bad)} of {len(came)} faults survived; to reach: all: {said}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
