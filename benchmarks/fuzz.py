"""Random repos and random lives beside a loop in plain Python; a disagreement is printed.

    python benchmarks/fuzz.py --seconds 600 --seed 1 [--redis no] [--keep-going]

A program is a repo of one or two views (types, keys, mapped and aliased columns, TTLs, units and
zones of time, layouts of files), and a life: rows that come, late ones too, materializations by
two stores, pushes, restarts, lost online stores, edited sources and definitions. What training
sets, replays, online reads and audits say is compared with `fuzz_oracle`. Where they differ the
program is made as small as it gets, and printed as one that runs by itself. Exit code 1 when
something was found. The same seed makes the same programs.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fuzz_prelude
import redis
from fuzz_life import EVENTS, Life
from fuzz_oracle import Disagreement, Oracle
from fuzz_program import Program, Step, definitions_text, source_text, step_text

from steadfeast import Store
from steadfeast.featurestore.errors import SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Iterator

PRELUDE = Path(fuzz_prelude.__file__)
CAP_SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    """What became of one program.

    Attributes:
        problem: What was found; empty when store and loop agree.
        lines: What was run.
        checks: Cells that were compared.
        refused: Whether `apply` refused the repo.
    """

    problem: str = ""
    lines: tuple[str, ...] = ()
    checks: int = 0
    refused: bool = False

    @property
    def kind(self) -> str:
        """The problem without its particulars, so that a smaller program may show the same."""
        return self.problem.split(":")[0].split(",")[0]


def run(program: Program, url: str) -> Outcome:
    """Run a program in a process of its own: what kills it is found, too."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with contextlib.suppress(BaseException), os.fdopen(writing, "wb") as pipe:
            pickle.dump(_within(program, url), pipe)
        os._exit(0)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(CAP_SECONDS)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    if told and not status:
        found: Outcome = pickle.loads(told)  # noqa: S301 - our own child
        return found
    lines = tuple(line for _, some in _texts(program, url) for line in some)
    return Outcome(f"the process ended with {os.waitstatus_to_exitcode(status)}", lines)


def _texts(program: Program, url: str) -> Iterator[tuple[Step, list[str]]]:
    """Yield each step that can be done, and its text; for a program that cannot be asked."""
    oracle = Oracle(program)
    yield ("start",), _opening(program, url)
    for step in program.steps:
        if oracle.takes(step):
            if step[0] == "train":
                oracle._trained[step[1]] = None, None  # noqa: SLF001
            yield step, step_text(oracle.state, step)


def _opening(program: Program, url: str) -> list[str]:
    shown = url if program.redis else ""
    lines = [f"r = Repo(base={program.base!r}, zone={program.zone!r}, url={shown!r})"]
    oracle = Oracle(program)
    for view in program.views:
        lines += source_text(view, oracle.state.sources[view.path])
    return [*lines, f"r.define({definitions_text(oracle.state)!r})"]


def _within(program: Program, url: str) -> Outcome:
    names: dict[str, Any] = {}
    oracle = Oracle(program)
    lines: list[str] = []
    refused = False
    problem = ""
    warnings.simplefilter("ignore")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        exec(PRELUDE.read_text(), names)  # noqa: S102 - what is printed is what is run
        exec("from uuid import uuid4", names)  # noqa: S102
        if program.redis:
            redis.Redis.from_url(url).flushall()
        try:
            lines += _opening(program, url)
            exec("\n".join(lines), names)  # noqa: S102
            for step in program.steps:
                if not oracle.takes(step):
                    continue
                more = step_text(oracle.state, step)
                lines += more
                try:
                    exec("\n".join(more), names)  # noqa: S102
                except SteadfeastError:
                    if step == program.steps[0]:
                        refused = True
                        break
                    if oracle.may_refuse(step):
                        continue
                    raise
                oracle.judge(step, names.get("got"))
        except Disagreement as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is found
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.name}"
            problem = f"{type(error).__name__} in {place}: {error}"
        finally:
            repo = names.get("r")
            if repo is not None:
                shutil.rmtree(repo.folder, ignore_errors=True)
    return Outcome(problem, tuple(lines), oracle.checks, refused)


# smaller programs -----------------------------------------------------------------------------


def smaller(program: Program) -> Iterator[Program]:
    """Yield programs with less in them, those with much less first."""
    steps = program.steps
    size = len(steps) // 2
    while size:
        for start in range(1, len(steps), size):
            yield replace(program, steps=steps[:start] + steps[start + size :])
        size //= 2
    for name, parts in program.services:
        for i in range(len(parts) if len(parts) > 1 else 0):
            rest = ((name, parts[:i] + parts[i + 1 :]),)
            kept = {part.view for part in rest[0][1]}
            views = tuple(view for view in program.views if view.name in kept)
            yield replace(program, services=rest, views=views)
    for i, step in enumerate(steps):
        for less in _less(step):
            yield replace(program, steps=(*steps[:i], less, *steps[i + 1 :]))
    yield from _plainer(program)


def _less(step: Step) -> Iterator[Step]:
    """Yield a step with fewer rows."""
    for place, given in enumerate(step):
        if isinstance(given, list) and len(given) > 1:
            for i in range(len(given)):
                yield (*step[:place], given[:i] + given[i + 1 :], *step[place + 1 :])


def _plainer(program: Program) -> Iterator[Program]:
    if program.redis:
        yield replace(program, redis=False)
    if program.zone != "UTC":
        yield replace(program, zone="UTC")
    for i, view in enumerate(program.views):
        changes: list[dict[str, Any]] = [{"zone": "UTC"}, {"unit": "us"}, {"ttl": 0}]
        changes += [{"created": False}]
        changes += [{"layout": "file", "path": f"data/{view.name}.parquet"}]
        same = tuple(replace(key, source=key.name) for key in view.keys)
        changes += [{"keys": same}]
        same = tuple(replace(column, source=column.name) for column in view.features)
        changes += [{"features": same}]
        for change in changes:
            plain = replace(view, **change)
            if plain != view:
                views = (*program.views[:i], plain, *program.views[i + 1 :])
                yield replace(program, views=views)


def smallest(program: Program, found: Outcome, url: str, seconds: float) -> tuple[Program, Outcome]:
    """Leave out what can be left out while the same kind of problem shows."""
    deadline = time.monotonic() + seconds
    again = True
    while again and time.monotonic() < deadline:
        again = False
        for less in smaller(program):
            if time.monotonic() > deadline:
                break
            outcome = run(less, url)
            if outcome.kind == found.kind:
                program, found, again = less, outcome, True
                break
    return program, found


def printed(program: Program, found: Outcome) -> str:
    """Return a program that runs by itself."""
    head = f'"""Seed {program.seed}: {found.problem}"""\n'
    body = PRELUDE.read_text().split('"""', 2)[2].lstrip()
    return (
        head
        + body
        + "\n\nfrom uuid import uuid4\n\ngot = None\n"
        + "\n".join(found.lines)
        + "\nprint(got)\n"
    )


# the whole ------------------------------------------------------------------------------------


@contextlib.contextmanager
def redis_server(wanted: str) -> Iterator[str]:
    """Start a Redis of our own and give its URL; an empty one where there is no Redis."""
    program = shutil.which("redis-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None or wanted == "no":
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="steadfeast-fuzz-redis-") as folder:
        socket = f"{folder}/socket"
        port = str(20000 + os.getpid() % 20000)
        options = ["--port", port, "--bind", "127.0.0.1", "--unixsocket", socket, "--save", ""]
        server = subprocess.Popen(
            [program, *options, "--appendonly", "no", "--dir", folder], stdout=subprocess.DEVNULL
        )
        try:
            while not Path(socket).exists():
                if server.poll() is not None:
                    raise SystemExit(f"redis-server ended with {server.returncode}")
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def _goes_on(given: argparse.Namespace, done: int, deadline: float) -> bool:
    if given.only is not None or given.programs is not None:
        return done < (1 if given.only is not None else given.programs)
    return time.monotonic() < deadline


def main() -> int:
    """Run programs until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--redis", choices=("yes", "no"), default="yes")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first")
    parser.add_argument("--only", type=int, help="the program of this number alone")
    parser.add_argument("--programs", type=int, help="as many programs, however long they take")
    parser.add_argument("--shrink", type=float, default=60.0, help="seconds to make one smaller")
    parser.add_argument("--without", default="", help=f"events to leave out: {', '.join(EVENTS)}")
    given = parser.parse_args()
    without = {name for name in given.without.split(",") if name}
    if without - EVENTS.keys():
        parser.error(f"no such event: {', '.join(sorted(without - EVENTS.keys()))}")
    rebuild = "rebuild" in inspect.signature(Store.materialize).parameters
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    deadline = time.monotonic() + given.seconds
    with redis_server(given.redis) as url:
        number = given.seed * 1_000_000 if given.only is None else given.only
        while _goes_on(given, counts["programs"], deadline):
            program = Life(number, redis=bool(url), rebuild=rebuild, without=without).program()
            outcome = run(program, url)
            counts["programs"] += 1
            counts["steps"] += len(program.steps)
            counts["cells"] += outcome.checks
            counts["refused"] += outcome.refused
            if outcome.problem:
                kinds[outcome.kind] += 1
                if kinds[outcome.kind] == 1:
                    program, outcome = smallest(program, outcome, url, given.shrink)
                    print(printed(program, outcome), flush=True)
                    print("# " + "-" * 96, flush=True)
                if not given.keep_going:
                    break
            number += 1
    print(
        f"seed {given.seed}: {counts['programs']} programs, {counts['steps']} steps, "
        f"{counts['cells']} cells compared, {counts['refused']} repos refused, "
        f"{sum(kinds.values())} disagreements",
        *(f"\n  {count} x {kind}" for kind, count in kinds.most_common()),
    )
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
