"""A short run of the demo, and what the tests ask of it."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.processes import free_addresses, running

ROOT = Path(__file__).resolve().parents[2]
STEADFEAST = str(Path(sys.executable).parent / "steadfeast")


@dataclass(frozen=True)
class Told:
    """A finished demo: its repository with state, what it printed, and its table."""

    repo: Path
    printed: str
    rows: list[dict]


def tell(repo, until, share):
    """Run `python -m demo` on a copy of the feature repository."""
    report = repo.parent / "report.json"
    command = [sys.executable, "-m", "demo", "--repo", str(repo), "--until", until,
               "--share", str(share), "--report", str(report)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Told(repo, done.stdout, json.loads(report.read_text()))


@contextmanager
def daemon(repo):
    """Run the monitor daemon on the state of `repo`; gives its HTTP and gRPC addresses."""
    http, grpc_address, pipeline = free_addresses(3)
    environment = {
        "STEADFEAST_MONITOR_HTTP": http,
        "STEADFEAST_MONITOR_GRPC": grpc_address,
        "STEADFEAST_PIPELINE_GRPC": pipeline,
    }
    command = [STEADFEAST, "monitor", "run", "--config", str(repo / "steadfeast.yaml")]
    with running("monitor", command, grpc_address, repo / "data" / "again.log", environment):
        yield http, grpc_address


def steadfeast(*arguments, cwd, **environment):
    """Run one command of the console script and return what it printed."""
    done = subprocess.run(
        [STEADFEAST, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
