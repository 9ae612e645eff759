"""What the benchmarks share: figures of one process, processes of their own, a table's head.

Times are quoted as medians: the machine that runs this is seldom alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GIB = 2**30


def peak_bytes() -> int:
    """Return the most memory this process held since the last `forget_peak`, or ever.

    ru_maxrss would count its parent's too.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def forget_peak() -> int:
    """Make `peak_bytes` start anew from what this process holds now, and return that."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def cpu_seconds() -> float:
    """Return the processor time of this process, its own and the kernel's for it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def latencies(
    call: Callable[[], object], *, seconds: float, least: int = 5, most: int = 20_000
) -> dict[str, float]:
    """Call again and again for `seconds`; return p50, p99 and CPU per call, in microseconds."""
    for _ in range(3):
        call()
    taken: list[int] = []
    end, before = time.perf_counter() + seconds, cpu_seconds()
    while len(taken) < least or (time.perf_counter() < end and len(taken) < most):
        began = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - began)
    cpu = cpu_seconds() - before
    taken.sort()
    return {
        "p50": statistics.median(taken) / 1000,
        "p99": taken[min(len(taken) - 1, len(taken) * 99 // 100)] / 1000,
        "cpu": cpu / len(taken) * 1e6,
        "calls": len(taken),
    }


def child(script: str, *arguments: str, cap_seconds: float) -> dict[str, Any]:
    """Run `script --child arguments` in a process of its own; its last line is its figures.

    Returns:
        The figures, or `{"stopped": why}`.
    """
    command = [sys.executable, "-W", "ignore", script, "--child", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=cap_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"stopped": f"> {cap_seconds:g} s"}
    if done.returncode:
        return {"stopped": (done.stderr.strip().splitlines() or ["failed"])[-1][:120]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def versions(names: Sequence[str]) -> str:
    """Return one line that says what ran on what."""
    listed = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {listed}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
