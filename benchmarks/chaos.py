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
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import chaos_check
from chaos_world import FAKETIME, MODEL, ChaosError, Part, World, redis_server, wait_for
from measure import table, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FROZEN_SECONDS = {True: 3.0, False: 60.0}
"""How long a process is stopped, of a quick run and of a whole one."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: For the table.
        happen: Does it, undoes what a supervisor would, and returns what a person was told that
            they then had to do; empty where nobody was needed.
        quick: Whether it is part of a quick run.
    """

    name: str
    happen: Callable[[World], str]
    quick: bool = False


@dataclass(frozen=True)
class Came:
    """What came of one fault."""

    fault: str
    told: str
    problems: tuple[str, ...]
    seconds: float


# -- faults ------------------------------------------------------------------------------------


def killed(name: str, world: World) -> str:
    """Kill -9, and start again as a supervisor would."""
    part = world.parts[name]
    part.kill()
    part.start()
    return ""


def frozen(name: str, seconds: float, world: World) -> str:
    """SIGSTOP: the port takes calls and nobody answers."""
    part = world.parts[name]
    part.signal(signal.SIGSTOP)
    time.sleep(seconds)
    part.signal(signal.SIGCONT)
    return ""


def limited(name: str, what: int, soft: Callable[[Part], int], world: World) -> str:
    """A limit of the kernel for three seconds: no file may grow, no more descriptors or memory."""
    part = world.parts[name]
    part.limit(what, soft(part))
    time.sleep(3)
    if part.alive():
        part.limit(what, -1)
    _revive(part)
    return ""


def read_only(name: str, folder: str, world: World) -> str:
    """The file system under a state folder cannot be written for three seconds."""
    place = world.folder / "data" / folder
    with mounted_read_only(place):
        time.sleep(3)
    _revive(world.parts[name])
    return ""


def stopped_clock(world: World) -> str:
    """The daemon's wall clock is set back by two hours, and then forward by four."""
    clock, part = world.folder / "clock", world.parts["daemon"]
    clock.write_text("+0s")
    faked = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    part.kill()
    part.start(**faked)
    for step in ("-2h", "+2h"):
        wait_for(world.status, "the daemon answers")
        mark = part.mark()
        clock.write_text(step)
        wait_for(partial(_has, part, mark, "clock_stepped"), "it notices its clock")
    part.kill()
    part.start()
    return ""


def flushed(world: World) -> str:
    """Redis loses all it held, or is put up anew: what it held must be filled again."""
    redis = world.parts["redis"]
    redis.kill()
    redis.start()
    told = wait_for(lambda: "materialize" in world.refused and world.refused, "the client is told")
    world.run("store", "materialize", world.filled.isoformat())
    return str(told)


def second(name: str, words: list[str], world: World) -> str:
    """Start a second process on the same state; the first goes on."""
    aside = world.folder / "second.yaml"
    text = (world.folder / "steadfeast.yaml").read_text()
    for port in ("http", "grpc", "pipeline"):
        text = text.replace(f"127.0.0.1:{world.ports[port]}", "127.0.0.1:0")
    aside.write_text(
        text.replace("training: 127.0.0.1:0", f"training: 127.0.0.1:{world.ports['pipeline']}")
    )
    part = Part(f"second {name}", [*world.steadfeast, *words, "-c", str(aside)], world.folder)
    part.start()
    try:
        if name == "daemon":
            wait_for(lambda: not part.alive(), "the second one ends")
            if "held by another daemon" not in part.said():
                raise ChaosError(f"the second daemon does not say why it ends: {part.said()}")
        else:
            wait_for(lambda: "listens" in part.said(), "the second one stands by")
            time.sleep(3)
    finally:
        if part.alive():
            part.kill()
    return ""


def damaged(name: str, pattern: str, how: str, world: World) -> str:
    """Cut off or garble a file while its process is down; put back a copy when somebody is told."""
    wait_for(lambda: world.newest(pattern), f"there is a {pattern}")
    part = world.parts[name]
    part.kill()
    file = world.newest(pattern)
    if file is None:
        raise ChaosError(f"there is no {pattern} any more")
    logs = [file, *file.parent.glob(f"{file.name}[-.]wal"), *file.parent.glob(f"{file.name}-shm")]
    content = {one: one.read_bytes() for one in logs}
    for one in logs[1:]:
        one.unlink()
    damage(file, how)
    marks = {one.name: one.mark() for one in world.parts.values()}
    part.start()
    try:
        told = wait_for(lambda: _told_of(world, file, marks), f"somebody is told of {file.name}")
    finally:
        part.kill()
        for one in logs:
            if one.parent.is_dir():
                one.write_bytes(content[one])
        part.start()
    return str(told)


def damage(file: Path, how: str) -> None:
    """Do it."""
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = bytes(byte ^ 0x5A for byte in content[16:-16])
        file.write_bytes(content[:16] + middle + content[-16:])


def _told_of(world: World, file: Path, marks: dict[str, int]) -> str:
    """Return the line that names a file, wherever a person would look."""
    texts = [part.said(marks[part.name]) for part in world.parts.values()]
    texts.append(world.get("/readyz"))
    done = subprocess.run(
        [*world.steadfeast, "store", "audit", MODEL],
        cwd=world.folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    texts.append(done.stderr + done.stdout)
    for text in texts:
        for line in text.splitlines():
            if file.name in line and "Traceback" not in text:
                return line.strip()
    return ""


def _revive(part: Part) -> None:
    """Start a process that ended, as a supervisor would."""
    if not part.alive():
        part.start()


def _has(part: Part, mark: int, word: str) -> bool:
    return word in part.said(mark)


@contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    """Have a folder on a file system that cannot be written.

    Raises:
        ChaosError: It cannot be mounted.
    """
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChaosError(f"mount {' '.join(words)}: {done.stderr}")


def _thousand(_part: Part) -> int:
    """So many bytes."""
    return 1000


def _descriptors(part: Part) -> int:
    """As many as it has open."""
    return max(int(one.name) for one in Path(f"/proc/{part.pid}/fd").iterdir()) + 1


def _memory(part: Part) -> int:
    """What it has, and little more."""
    (pages, *_) = Path(f"/proc/{part.pid}/statm").read_text().split()
    return int(pages) * resource.getpagesize() + 2**22


def faults(*, quick: bool) -> list[Fault]:
    """Return what is tried here, in order."""
    seconds = FROZEN_SECONDS[quick]
    some = [Fault(f"kill -9: {name}", partial(killed, name), name != "store edge")
            for name in ("daemon", "pipeline", "model edge", "store edge")]  # fmt: skip
    some += [
        Fault(
            f"{seconds:.0f} s SIGSTOP: {name}", partial(frozen, name, seconds), name == "pipeline"
        )
        for name in ("daemon", "pipeline", "model edge", "store edge")
    ]
    if redis_server():
        some += [
            Fault(f"{seconds:.0f} s SIGSTOP: Redis", partial(frozen, "redis", seconds)),
            Fault("Redis killed, and empty again", flushed, True),
        ]
    for name in ("daemon", "pipeline", "model edge", "store edge"):
        some += [
            Fault(f"no file may grow (RLIMIT_FSIZE): {name}",
                  partial(limited, name, resource.RLIMIT_FSIZE, _thousand), name == "daemon"),
            Fault(f"no more descriptors: {name}",
                  partial(limited, name, resource.RLIMIT_NOFILE, _descriptors)),
            Fault(f"no more memory: {name}",
                  partial(limited, name, resource.RLIMIT_AS, _memory)),
        ]  # fmt: skip
    places = (("daemon", "monitor"), ("pipeline", "pipeline"), ("model edge", "served"))
    for name, folder in places if os.geteuid() == 0 else ():  # only root may mount
        some.append(Fault(f"read-only: {folder}", partial(read_only, name, folder)))
    if FAKETIME:
        some.append(Fault("clock of the daemon: -2 h, +4 h", stopped_clock))
    some += [
        Fault("two daemons", partial(second, "daemon", ["monitor", "run"]), True),
        Fault("two pipelines", partial(second, "pipeline", ["pipeline", "serve"])),
    ]
    for name, pattern in (
        ("daemon", "monitor/monitor.duckdb"),
        ("daemon", "monitor/snapshots/**/*.parquet"),
        ("pipeline", "pipeline/runs.db"),
        ("pipeline", "pipeline/mlflow.db"),
        ("model edge", "served/purchase/*.parquet"),
        ("store edge", "labels/purchase/*.parquet"),
        ("store edge", "registry.db"),
        ("pipeline", "sources/examples.parquet"),
        ("model edge", "sources/activity.parquet"),
        ("model edge", "pipeline/**/model.skops"),
    ):
        for how in ("truncated", "garbled"):
            known = pattern in {"monitor/monitor.duckdb", "served/purchase/*.parquet"}
            some.append(Fault(f"{how}: {pattern}", partial(damaged, name, pattern, how),
                              known and how == "truncated"))  # fmt: skip
    return some


# -- the run -----------------------------------------------------------------------------------


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
