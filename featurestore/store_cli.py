"""`steadfeast store`: apply, look, materialize, train, serve, audit, clean. Below `cli`.

What a command needs is imported inside it, as there.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 - Typer reads the types of options
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadfeast.featurestore.command_line import (
    DEFAULT,
    Config,
    ExitCode,
    FileError,
    Json,
    Service,
    Views,
    aligned,
    reserved_stdout,
    service_names,
    time_of,
)
from steadfeast.featurestore.config import StoreConfig, duration, load_section
from steadfeast.featurestore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steadfeast.featurestore.definitions import Contract
    from steadfeast.featurestore.store import Store

app = typer.Typer(help="Apply, materialize, train, serve and audit.", no_args_is_help=True)

DIFF_WORDS = 3
NOTHING_APPLIED = "nothing is applied; run `steadfeast store apply`"


@app.command()
def apply(
    config: Config = DEFAULT,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Register the definitions of the Feast repo, and keep each service's contract.

    Does what `feast apply` does in the repo folder. Where that changes the contract under a model
    that is served from now, it says what changes and asks first.

    Example: steadfeast store apply
    """
    with _open(config) as opened:
        changes = opened.live_changes()
        for service, change in changes.items():
            models = ", ".join(" ".join(model).strip() for model in change.models)
            typer.echo(f"{service} changes under {models}, which is served from it:", err=True)
            for line in change.differences:
                typer.echo(f"  {line}", err=True)
            if not change.obstacles:
                said = "go on being answered, by the definitions that were kept with it"
                typer.echo(f"  requests for its contract {said}", err=True)
            for line in change.obstacles:
                typer.echo(f"  requests for its contract will be refused: {line}", err=True)
        if changes and not yes:
            typer.confirm("Apply?", abort=True, err=True)
        said = opened.apply().strip()
        contracts = {name: opened.contract(name).sha256 for name in opened.services()}
    if as_json:
        typer.echo(said, err=True)
        typer.echo(json.dumps(contracts))
        return
    typer.echo(said)
    for name, sha256 in contracts.items():
        typer.echo(f"contract of {name}: {sha256}")


@app.command()
def materialize(
    until: Annotated[
        str, typer.Argument(help="End: ISO 8601, UTC if no zone is given; without it, now.")
    ] = "now",
    since: Annotated[
        str, typer.Option(help="Start, written alike; without it, where the last call ended.")
    ] = "",
    view: Views = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Replace what is online by what the sources say now.")
    ] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Bring the online store to UNTIL: for each key, the newest row known by then.

    Rows that were written late are found too, where the source has a created column. Writes
    never go back in time, so running it twice, or over an older span, is safe. What was corrected
    in place or deleted at the source comes with --rebuild. A view whose rows were lost, or were
    made from other definitions, is filled from the start, and the command says why.

    Example: steadfeast store materialize 2013-03-01 --view weather --rebuild
    """
    end = time_of(until)
    with _open(config) as opened:
        written = opened.materialize(
            end,
            since=time_of(since) if since else None,
            views=view or (),
            rebuild=rebuild,
            progress=sys.stderr.isatty() and not as_json,
        )
    if as_json:
        typer.echo(json.dumps(written))
        return
    for name, rows in written.items():
        note = written.notes.get(name, "")
        typer.echo(f"{name}: {rows} keys changed{note and f' ({note})'}")
    if not written:
        typer.echo("no feature view is online here; first: steadfeast store apply", err=True)


@app.command()
def contract(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SERVICE | diff A B", show_default=False, autocompletion=service_names
        ),
    ],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the contract of SERVICE, or say what differs between two contracts.

    A and B are names of services, or the first digits of contracts that were applied once.

    Examples: steadfeast store contract late_arrival

    steadfeast store contract diff 886dcbf2 late_arrival
    """
    from steadfeast.featurestore.definitions import difference

    with _open(config) as opened:
        if words[0] == "diff" and len(words) == DIFF_WORDS:
            pair = _contract(opened, words[1]), _contract(opened, words[2])
        elif len(words) == 1:
            pair, found = None, _contract(opened, words[0])
        else:
            raise typer.BadParameter("give one service, or diff and two contracts")
    if pair is not None:
        lines = difference(*pair)
        typer.echo(json.dumps(lines) if as_json else "\n".join(lines) or "the same contract")
        return
    described = {"sha256": found.sha256, **found.description}
    typer.echo(json.dumps(described) if as_json else json.dumps(described, indent=2))


@app.command()
def services(config: Config = DEFAULT, as_json: Json = False) -> None:
    """List the feature services that are applied: contract, keys, features, models.

    Example: steadfeast store services --json
    """
    from steadfeast.featurestore import listing

    with _open(config) as opened:
        found = listing.services(opened)
    if as_json:
        typer.echo(json.dumps(found))
        return
    rows = listing.service_rows(found)
    typer.echo(aligned(rows) if found else NOTHING_APPLIED, err=not found)


@app.command()
def views(config: Config = DEFAULT, as_json: Json = False) -> None:
    """List the feature views that are applied: keys, features, TTL, until when they are online.

    Example: steadfeast store views --json
    """
    from steadfeast.featurestore import listing

    with _open(config) as opened:
        found = listing.views(opened)
    if as_json:
        typer.echo(json.dumps(found))
        return
    rows = listing.view_rows(found)
    typer.echo(aligned(rows) if found else NOTHING_APPLIED, err=not found)


@app.command()
def features(
    search: Annotated[
        str, typer.Argument(help="In its name, view, owner, tags or description.")
    ] = "",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """List features: view, owner, tags, the services and models that read them, freshness.

    Example: steadfeast store features distance --json
    """
    from steadfeast.featurestore import listing

    with _open(config) as opened:
        found = listing.features(opened, search)
        names = {one["feature"] for one in listing.features(opened)} if not found else set()
    if names:
        raise NotFoundError("feature", search, names)
    if as_json:
        typer.echo(json.dumps(found))
        return
    rows = listing.feature_rows(found)
    typer.echo(aligned(rows) if found else NOTHING_APPLIED, err=not found)


@app.command("training-set")
def training_set(
    service: Service,
    entities: Annotated[Path, typer.Option(help="Parquet: keys, event_timestamp, the label.")],
    label: Annotated[str, typer.Option(help="Column of the label.")] = "",
    as_known_at: Annotated[
        str, typer.Option(help="Refuse what is known later; without it, nothing.")
    ] = "",
    event_time_only: Annotated[
        bool | None,
        typer.Option(help="Rows count from their event time on, whenever they became known."),
    ] = None,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Join SERVICE to an entity frame at each row's own time; keep it with a manifest.

    Example: steadfeast store training-set late_arrival --entities examples.parquet --label late
    """
    table = _parquet(entities)
    with _open(config) as opened:
        built = opened.training_set(
            table,
            service,
            label=label or None,
            as_known_at=time_of(as_known_at) if as_known_at else None,
            event_time_only=event_time_only,
        )
    path = built.path / "manifest.json"
    if as_json:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    manifest = built.manifest
    typer.echo(f"{path}\n{manifest.rows} rows, content {manifest.sha256}")


@app.command()
def replay(
    manifest: Annotated[Path, typer.Argument(help="manifest.json of a training set.")],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Compute a training set anew and compare it to the bit, or say what is gone.

    Example: steadfeast store replay data/training/d8e78f90569251ef/manifest.json
    """
    with _open(config) as opened:
        table = opened.replay(manifest)
    rows = table.num_rows
    typer.echo(json.dumps({"rows": rows}) if as_json else f"the same {rows} rows, to the bit")


@app.command()
def audit(
    service: Service,
    start: Annotated[str, typer.Option(help="Served rows from then on; without it, all.")] = "",
    end: Annotated[str, typer.Option(help="Served rows before then; without it, until now.")] = "",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Check the invariants of SERVICE over every key and every logged vector.

    Exit code 0 when all hold; 1 when one fails, or is void because there was nothing to compare.

    Example: steadfeast store audit late_arrival --start 2013-03-01 --end 2013-04-01
    """
    with _open(config) as opened:
        report = opened.audit(
            service,
            start=time_of(start) if start else None,
            end=time_of(end) if end else None,
        )
    typer.echo(report.to_json() if as_json else report.to_text())
    raise typer.Exit(ExitCode.DONE if report.ok else ExitCode.FAILED)


@app.command("log-labels")
def log_labels(
    service: Service,
    file: Annotated[Path, typer.Argument(help="Parquet, CSV, or a DuckDB file.")],
    table: Annotated[str, typer.Option(help="Table of a DuckDB file.")] = "",
    request_id: Annotated[str, typer.Option(help="Column of the request ids.")] = "request_id",
    label: Annotated[str, typer.Option(help="Column of the outcomes.")] = "label",
    known_at: Annotated[
        str, typer.Option(help="Column of when each became known; without it, now.")
    ] = "known_at",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Log the outcomes of requests that SERVICE answered, by their request ids.

    Logging a file again changes nothing: of several labels of one request the one known last
    counts. Labels of requests that are not in the log yet are kept, counted, and count from when
    their request is there; an audit lists those whose request never comes.

    Example: steadfeast store log-labels late_arrival outcomes.parquet --label late
    """
    from rich.progress import Progress

    from steadfeast.featurestore import served_log

    columns = {"request_id": request_id, "label": label, "known_at": known_at}
    silent = as_json or not sys.stderr.isatty()
    with _open(config) as opened, Progress(transient=True, disable=silent) as bar:
        task = bar.add_task("labels", total=None)
        done, unknown = served_log.log_labels(
            opened.served,
            service,
            file,
            table=table,
            columns=columns,
            tell=lambda done, rows: bar.update(task, completed=done, total=rows),
        )
    if as_json:
        typer.echo(json.dumps({"logged": done, "unknown": unknown}))
        return
    note = f"; {unknown} of requests that are not in the log" if unknown else ""
    typer.echo(f"{done} labels logged{note}")


@app.command()
def serve(
    grpc: Annotated[str, typer.Option(help="host:port of the gRPC edge.")] = "127.0.0.1:9467",
    http: Annotated[str, typer.Option(help="host:port of the HTTP edge.")] = "127.0.0.1:9468",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the ports.")] = 1,
    config: Config = DEFAULT,
    worker: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve online features over gRPC and HTTP until SIGTERM or Ctrl-C.

    Everywhere but on loopback this takes certificates, see section `security` of the
    configuration; SIGHUP reads its tokens again.

    Example: steadfeast store serve --grpc 127.0.0.1:9467 --workers 4
    """
    if workers > 1:
        load_section(config, "store", StoreConfig)
        from steadfeast.featurestore.security import Security, load_security
        from steadfeast.featurestore.server import supervise

        security = Security(load_security(config))
        command = [sys.executable, "-P", "-m", "steadfeast.featurestore.cli", "store", "serve"]
        command += ["--config", str(config)]
        supervise(command, [security.check(grpc), security.check(http)], workers)
        return
    section = load_section(config, "store", StoreConfig)
    from steadfeast.featurestore.server import serve as run
    from steadfeast.featurestore.store import Store

    with Store(section, file=config) as opened:
        run(opened, grpc, http, config, worker)


@app.command()
def erase(
    key: Annotated[list[str], typer.Option(help="join_key=value; may be repeated.")],
    view: Views = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove it; else it is only counted.")
    ] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Count what is kept of one entity, online, in files and snapshots; remove it with --apply.

    Sources are their owners': erase there before the next materialize, which brings back what they
    hold. Training sets that lose rows can no longer be replayed, and say so by the erasure's name.

    Example: steadfeast store erase --key user_id=7 --apply
    """
    pairs = [item.partition("=") for item in key]
    if any(not sign for _, sign, _ in pairs):
        raise typer.BadParameter("write --key join_key=value")
    entity = {name: value for name, _, value in pairs}
    with _open(config) as opened:
        found = opened.erase([entity], views=view or (), apply=apply)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    for name, rows in found.online.items():
        typer.echo(f"online, {name}: {rows} rows")
    for name, rows in found.training_sets.items():
        typer.echo(f"training set {name}: {rows} rows; it cannot be replayed without them")
    typer.echo(f"pins of training sets: {found.pins} files")
    for name, rows in found.served.items():
        typer.echo(f"served log of {name}: {rows} rows")
    for name, rows in found.elsewhere.items():
        typer.echo(f"{name}: {rows} rows")
    if found.half_files:
        typer.echo(f"half done by writers that ended: {found.half_files} files")
    typer.echo(f"removed, erasure {found.id}" if apply else "would go; add --apply to remove it")


@app.command()
def gc(
    older_than: Annotated[
        str, typer.Option(help="An age, as 90d; only what is unneeded without.")
    ] = "",
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove it; else it is only listed.")
    ] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """List what is kept for nothing, or longer than --older-than; remove it with --apply.

    Kept for nothing are pins that no training set needs. With an age: the pins of older training
    sets, which then replay only as long as their sources are what they were, and older files of
    the served log and of labels. Contracts, manifests and training data stay.

    Example: steadfeast store gc --older-than 365d
    """
    age = duration(older_than) if older_than else None
    with _open(config) as opened:
        found = opened.collect_garbage(older_than=age, apply=apply)
    if as_json:
        typer.echo(json.dumps({**found.as_dict(), "applied": apply}))
        return
    for path, size, why in found.files:
        typer.echo(f"{path}: {size:,} bytes, {why}")
    for name, why in found.unreplayable.items():
        typer.echo(f"training set {name} cannot be replayed without its pins: {why}")
    for name in found.losing:
        typer.echo(f"training set {name} replays from its sources alone, while they stay")
    done = "removed" if apply else "would go; add --apply to remove them"
    typer.echo(f"{len(found.files)} files, {found.bytes:,} bytes {done}")


@contextmanager
def _open(config: Path) -> Iterator[Store]:
    """Open the store, with standard output kept for the answer: definitions may print."""
    section = load_section(config, "store", StoreConfig)  # a mistake need not wait for Feast
    with reserved_stdout():
        from steadfeast.featurestore.store import Store

        with Store(section, file=config) as store:
            yield store


def _contract(opened: Store, name: str) -> Contract:
    if re.fullmatch("[0-9a-f]{4,64}", name) and name not in opened.services():
        return opened.kept_contract(name)
    return opened.contract(name)


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error}") from error
    except pa.ArrowInvalid as error:
        raise FileError(path, f"is not Parquet: {error}") from error
