"""What goes wrong in a world of `chaos_world`: processes, limits, disks, clocks, Redis, files.

Below `chaos`. Each fault happens, and is undone as far as a supervisor would undo it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from chaos_world import (
    FAKETIME,
    MODEL,
    SETPRIV,
    ChaosError,
    Part,
    World,
    free_ports,
    mount,
    redis_server,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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


def disk_full(world: World) -> str:
    """The file system of the whole data folder has no byte left for three seconds."""
    ballast = world.folder / "data" / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    time.sleep(3)
    ballast.unlink()
    for part in world.parts.values():
        _revive(part)
    return ""


def locked(name: str, folder: str, world: World) -> str:
    """Nobody may look into a state folder for three seconds."""
    place = world.folder / "data" / folder
    wait_for(place.is_dir, f"there is a {folder}")
    before = place.stat().st_mode
    place.chmod(0)
    time.sleep(3)
    place.chmod(before)
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


def failed_over(world: World) -> str:
    """Redis is killed, and its replica takes over its address."""
    old = world.parts["redis"]
    (port,) = free_ports(1)
    address = ["--port", str(port), "--replicaof", "127.0.0.1", str(world.ports["redis"])]
    at = old.command.index("--port")
    new = Part("redis", [*old.command[:at], *address, *old.command[at + 2 :]], world.folder)
    new.start()
    client = redis.Redis(port=port)
    wait_for(lambda: _synced(client), "the replica has what the master has")
    old.kill()
    client.execute_command("REPLICAOF", "NO", "ONE")
    client.config_set("port", world.ports["redis"])
    client.close()
    new.command = old.command
    world.parts["redis"] = new
    return ""


def _synced(client: redis.Redis) -> bool:
    try:
        return client.info("replication")["master_link_status"] == "up"
    except (redis.ConnectionError, redis.BusyLoadingError):
        return False


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


def damaged(name: str, pattern: str, how: str, ask: Sequence[str], world: World) -> str:
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
        told = wait_for(
            lambda: _told_of(world, file, marks, ask), f"somebody is told of {file.name}"
        )
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


def _told_of(world: World, file: Path, marks: dict[str, int], ask: Sequence[str]) -> str:
    """Return the line that names a file, wherever a person would look, or run `ask` to see."""
    texts = [part.said(marks[part.name]) for part in world.parts.values()]
    texts.append(world.get("/readyz"))
    done = subprocess.run(
        [*world.steadfeast, *ask],
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
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


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
            Fault("Redis killed, and its replica takes over", failed_over),
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
    if os.geteuid() == 0:  # only root may mount
        some.append(Fault("disk full (tmpfs): all of the data", disk_full, True))
        some += [Fault(f"read-only: {to}", partial(read_only, name, to)) for name, to in places]
    if SETPRIV or os.geteuid():
        some += [Fault(f"no permission: {to}", partial(locked, name, to)) for name, to in places]
    if FAKETIME:
        some.append(Fault("clock of the daemon: -2 h, +4 h", stopped_clock))
    some += [
        Fault("two daemons", partial(second, "daemon", ["monitor", "run"]), True),
        Fault("two pipelines", partial(second, "pipeline", ["pipeline", "serve"])),
    ]
    audit = ["store", "audit", MODEL]
    for name, pattern, ask in (
        ("daemon", "monitor/monitor.duckdb", audit),
        ("daemon", "monitor/snapshots/**/*.parquet", audit),
        ("pipeline", "pipeline/runs.db", audit),
        ("pipeline", "pipeline/mlflow.db", audit),
        ("model edge", "served/purchase/*.parquet", audit),
        ("store edge", "labels/purchase/*.parquet", audit),
        ("store edge", "registry.db", audit),
        ("pipeline", "sources/examples.parquet", ["pipeline", "train", MODEL]),
        ("model edge", "sources/activity.parquet", audit),
        ("model edge", "pipeline/**/model.skops", audit),
    ):
        for how in ("truncated", "garbled"):
            known = pattern in {"monitor/monitor.duckdb", "served/purchase/*.parquet"}
            some.append(Fault(f"{how}: {pattern}", partial(damaged, name, pattern, how, ask),
                              known and how == "truncated"))  # fmt: skip
    return some
