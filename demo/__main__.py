"""`make demo` and `make up`.

Builds the flights' features, trains the first model on January and February, starts the monitor
daemon and the pipeline server, replays the rest of the year, and prints what came of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import grpc
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from demo.processes import free_addresses, running
from steadfeast.featurestore.errors import SteadfeastError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.report import Month

ROOT = Path(__file__).resolve().parent.parent
NEW_YORK = ZoneInfo("America/New_York")
HISTORY = datetime(2013, 1, 1, tzinfo=UTC)
START = datetime(2013, 3, 1, tzinfo=NEW_YORK)
END = datetime(2014, 1, 1, tzinfo=NEW_YORK)
UP_ADDRESSES = ("127.0.0.1:9464", "127.0.0.1:9465", "127.0.0.1:9466")
EDGE_ADDRESSES = ("127.0.0.1:9467", "127.0.0.1:9468")

# Piped output has no width of its own; the table wants about this much.
console = Console() if sys.stdout.isatty() else Console(width=120)


class CommandFailedError(SteadfeastError):
    """A command of the story ended with an error; it has said why itself."""

    def __init__(self, command: list[str], code: int) -> None:
        self.command, self.code = command, code
        super().__init__(f"exit code {code} from: {' '.join(command)}")


class NoChampionError(SteadfeastError):
    """The first model did not pass its gates, so there is nothing to serve."""

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"model {model} has no champion; see what its gates said above")


def main(
    repo: Annotated[
        Path, typer.Option(help="Folder of the feature repository; its data/ is made anew.")
    ] = ROOT / "feature_repo",
    until: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Replay up to.")] = END,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the requests that is served.")
    ] = 1.0,
    report: Annotated[Path | None, typer.Option(help="Write the table here too, as JSON.")] = None,
    *,
    up: Annotated[
        bool, typer.Option("--up", help="Only keep the servers running, on the demo's state.")
    ] = False,
) -> None:
    """Replay the flights of 2013 against the real monitor daemon and pipeline server."""
    try:
        if up:
            keep_up(repo)
            return
        rows = tell(repo, until.replace(tzinfo=NEW_YORK), share)
    except SteadfeastError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from error
    if report is not None:
        report.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def tell(repo: Path, until: datetime, share: float) -> list[Month]:
    """Run the whole story, print its table, and return its rows."""
    began = time.monotonic()
    data = repo / "data"
    shutil.rmtree(data, ignore_errors=True)

    _heading(1, "Feature sources from the raw flights")
    _run([sys.executable, str(repo / "sources.py")])

    _heading(2, "Register with Feast, materialize to the online store")
    from demo import monthly, replay, report  # noqa: PLC0415 - heavy; --help comes before
    from steadfeast import Store  # noqa: PLC0415 - heavy
    from steadfeast.pipeline import config as pipeline_config  # noqa: PLC0415 - heavy
    from steadfeast.pipeline.registry import Registry  # noqa: PLC0415 - heavy

    config = repo / "steadfeast.yaml"
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(config))
        store.apply()
        store.materialize(START, since=HISTORY, progress=True)

        _heading(3, "Training set of January and February, first model")
        _run([_steadfeast(), "pipeline", "train", replay.MODEL, "--as-of", START.isoformat(),
              "--config", str(config)])  # fmt: skip

        _heading(4, "Monitor daemon and pipeline server, two processes that meet over gRPC")
        http, monitor, pipeline = addresses = free_addresses(3)
        stack.enter_context(servers(repo, addresses))
        console.print(f"  monitor  gRPC {monitor}, http://{http}/\n  pipeline gRPC {pipeline}")

        _heading(5, f"The year replayed from {START:%d %B}, {share:.0%} of the requests served")
        models = Registry.open(pipeline_config.load(config)[0])
        first = models.champion(replay.MODEL)
        if first is None:
            raise NoChampionError(replay.MODEL)
        examples = replay.Examples.read(data / "sources" / "examples.parquet", START, until, share)
        channel = stack.enter_context(grpc.insecure_channel(monitor))
        daemon = replay.Daemon(channel)
        with _replay_bar(len(examples.table)) as advance:
            statuses = replay.replay(
                store, examples, daemon, replay.Champion(models, first), advance
            )
        model = pipeline_config.load(config)[0].models[replay.MODEL]
        refitted = monthly.monthly(config, model, START, until)
        rows = report.months(data / "served" / replay.SERVICE, data / "labels" / replay.SERVICE,
                             first, refitted, statuses, daemon.alerts())  # fmt: skip
    console.print(report.render(rows))
    live, calendar, abandoned = (report.mean_auc(rows, name) for name in report.AUCS)
    console.print(
        f"Retrained when it paid: mean AUC {live:.3f}; refitted on the first of each month: "
        f"{calendar:.3f};\n"
        f"the first model left alone: {abandoned:.3f}.\n"
        f"Done in {time.monotonic() - began:.0f} s; nothing is left running."
    )
    console.print(_where_next(repo), soft_wrap=True)
    return rows


def keep_up(repo: Path) -> None:
    """Keep daemon, pipeline and serving edge running on the demo's state until Ctrl-C.

    Raises:
        UserError: There is no state yet.
    """
    if not (repo / "data" / "monitor").is_dir():
        raise UserError(f"{repo / 'data'} holds no state yet; run: make demo")
    with servers(repo, list(UP_ADDRESSES), at_rest=True), edge(repo, list(EDGE_ADDRESSES)):
        console.print(_where_next(repo), soft_wrap=True)
        console.print("Running until Ctrl-C.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.print("Stopping.")


@contextmanager
def servers(repo: Path, addresses: list[str], *, at_rest: bool = False) -> Iterator[None]:
    """Run the pipeline server and the monitor daemon on the state of `repo`.

    At rest, when nothing is replayed, the daemon audits the store now and then.
    """
    http, monitor, pipeline = addresses
    environment = {
        "STEADFEAST_MONITOR_HTTP": http,
        "STEADFEAST_MONITOR_GRPC": monitor,
        "STEADFEAST_PIPELINE_GRPC": pipeline,
        "STEADFEAST_AUDIT": "1h" if at_rest else "never",
    }
    with ExitStack() as stack:
        for name, verb, address in (
            ("pipeline", "serve", pipeline),
            ("monitor", "run", monitor),
        ):
            command = [_steadfeast(), name, verb, "--config", str(repo / "steadfeast.yaml")]
            log = repo / "data" / f"{name}.log"
            stack.enter_context(running(name, command, address, log, environment))
        yield


@contextmanager
def edge(repo: Path, addresses: list[str]) -> Iterator[None]:
    """Serve features from the state of `repo`, over gRPC and HTTP."""
    at, http = addresses
    command = [_steadfeast(), "store", "serve", "--config", str(repo / "steadfeast.yaml"),
               "--grpc", at, "--http", http]  # fmt: skip
    with running("edge", command, at, repo / "data" / "edge.log", {}):
        yield


@contextmanager
def _replay_bar(total: int) -> Iterator[Callable[[datetime, int, str], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
               TextColumn("{task.completed:,} requests"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)

        def advance(now: datetime, served: int, version: str) -> None:
            text = f"{now.astimezone(NEW_YORK):%d %b}  model v{version}"
            progress.update(task, completed=served, description=text)

        yield advance


def _where_next(repo: Path) -> str:
    http = UP_ADDRESSES[0]
    lines = {
        "make up": "keeps daemon, pipeline and a serving edge running on this state; then",
        f"http://{http}/": "is the page: monitors, features, episodes, retrainings,",
        f"http://{http}/metrics": "and",
        f"http://{EDGE_ADDRESSES[1]}/metrics": "are what Prometheus scrapes, and",
        "grafana/": "has dashboards, rules and provisioning for Grafana",
        os.path.relpath(
            repo / "data"
        ): "holds logs, training sets, models, the daemon's DuckDB file",
    }
    width = max(map(len, lines))
    return "\n".join(["Where to look next:", *(f"  {k:{width}}  {v}" for k, v in lines.items())])


def _heading(number: int, text: str) -> None:
    console.print(f"[bold]{number}/5[/bold] {text}")


def _steadfeast() -> str:
    return str(Path(sys.executable).parent / "steadfeast")


def _run(command: list[str]) -> None:
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise CommandFailedError(command, code)


if __name__ == "__main__":
    typer.run(main)
