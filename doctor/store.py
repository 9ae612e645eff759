"""What the definitions leave open, and how the stores stand. Above `findings`.

The definitions are those of the files, read without applying them; what is applied is only
compared with them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from feast.infra.offline_stores.file_source import FileSource

from steadfeast.doctor.findings import Finding
from steadfeast.featurestore.config import is_loopback, written
from steadfeast.featurestore.errors import ConfigError, SteadfeastError, UserError
from steadfeast.featurestore.offline import is_there, opened, reads_files, session
from steadfeast.featurestore.tables import identifier, instant, is_remote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast import FeatureView

    from steadfeast.featurestore import Store
    from steadfeast.featurestore.definitions import Defined

_OURS = "steadfeast."
_SHORTEST_TTL = timedelta(minutes=1)
_LONGEST_TTL = timedelta(days=3650)


def store_findings(store: Store) -> tuple[list[Finding], Defined | None]:
    """Look at definitions, sources, what is applied, and what is online.

    Returns:
        What was found, and what the files define; None if `apply` would refuse it.
    """
    found = list(_plugins(store))
    try:
        defined = store.defined()
    except UserError as error:
        remedy = "put it right in the definitions; `steadfeast store apply` refuses it too"
        found.append(Finding("definitions", str(store.repo), _one_line(error), remedy))
        return found, None
    except (ImportError, NameError, SyntaxError) as error:  # of the user's files
        where = f"{type(error).__name__}: {_one_line(error)}"
        remedy = "put it right; `steadfeast store apply` shows its trace"
        problem = f"the definitions cannot be imported: {where}"
        found.append(Finding("definitions", str(store.repo), problem, remedy))
        return found, None
    found += _services(store, defined)
    for view in defined.views:
        found += [*_view(view), *_source(store, view)]
    found += _online(store, defined)
    return found, defined


def _plugins(store: Store) -> Iterator[Finding]:
    config, file = store.feast.config, store.repo / "feature_store.yaml"
    for part, ours in (
        ("offline_store", "DuckDBOfflineStore"),
        ("online_store", "SQLiteOnlineStore or steadfeast.RedisOnlineStore"),
    ):
        kind = str(getattr(getattr(config, part), "type", ""))
        if not kind.startswith(_OURS):
            problem = f"is {kind}, which keeps none of the guarantees"
            yield Finding(
                "foreign-store", f"{file}, {part}", problem, f"write type: steadfeast.{ours}"
            )


def _services(store: Store, defined: Defined) -> Iterator[Finding]:
    if not defined.services:
        yield Finding(
            "no-service",
            str(store.repo),
            "defines no feature service, and without one nothing is trained or served",
            "define FeatureService(name=..., features=[...])",
        )
    for service, lines in defined.pending.items():
        yield Finding(
            "not-applied",
            f"feature service {service!r}",
            f"the files differ from what is served: {'; '.join(lines)}",
            "run `steadfeast store apply`, which asks first where a live model is concerned",
        )


def _view(view: FeatureView) -> Iterator[Finding]:
    subject, source = f"feature view {view.name!r}", view.batch_source
    if source is not None and not getattr(source, "created_timestamp_column", ""):
        yield Finding(
            "no-created-column",
            subject,
            "its source has no created timestamp column, so a row that was written late counts in "
            "training as if it had been known in time",
            "write when each row became known, and name the column: created_timestamp_column=...",
        )
    ttl = view.ttl or timedelta(0)
    if not ttl:
        yield Finding(
            "no-ttl",
            subject,
            "has no TTL, so a value of any age is served when its source falls silent",
            "set ttl=timedelta(...) to the age at which a value says nothing any more",
        )
    elif ttl < _SHORTEST_TTL:
        yield Finding(
            "short-ttl",
            subject,
            f"its TTL is {written(ttl)}, so a value is null before the next materialize",
            "set a TTL longer than the time between two materializations; it is a timedelta, and "
            "timedelta(1) is a day",
        )
    elif ttl > _LONGEST_TTL:
        yield Finding(
            "long-ttl",
            subject,
            f"its TTL is {ttl.days} days, so in effect there is none",
            "set ttl=timedelta(...) to the age at which a value says nothing any more",
        )


def _source(store: Store, view: FeatureView) -> Iterator[Finding]:
    """Look for the source's rows, and whether the newest is still within the TTL."""
    source: Any = view.batch_source
    config, subject = store.feast.config, f"feature view {view.name!r}"
    if not reads_files(config) or not isinstance(source, FileSource) or is_remote(source.path):
        return
    if not is_there(config.repo_path, source):
        yield Finding(
            "source",
            subject,
            f"there is no file at {source.path}, so nothing can be trained or materialized",
            "write its rows there, or put the path of its FileSource right",
        )
        return
    try:
        with session(config) as connection:
            data, original = opened(connection, config.repo_path, view)
            for field in view.features:
                data.column(original.get(field.name, field.name))
            time = identifier(data.time(source.timestamp_field).name)
            [row] = connection.sql(f"SELECT epoch_us(max({time})) FROM {data.scan}").fetchall()
    except UserError as error:
        remedy = "put the source or the view's schema right"
        yield Finding("source", subject, _one_line(error), remedy)
        return
    newest = None if row[0] is None else instant(row[0])
    if newest is None:
        yield Finding(
            "source", subject, f"{source.path} holds no rows, so every value is null", "fill it"
        )
    elif view.ttl and datetime.now(UTC) - newest > view.ttl:
        yield Finding(
            "stale",
            subject,
            f"the newest row of its source is of {newest:%Y-%m-%dT%H:%M:%SZ}, older than the TTL "
            f"({written(view.ttl)}), so every value is served as null now",
            "bring newer rows and run `steadfeast store materialize`",
        )


def _online(store: Store, defined: Defined) -> Iterator[Finding]:
    config = store.feast.config
    if not str(getattr(config.online_store, "type", "")).startswith(_OURS):
        return
    yield from _network(store)
    try:
        risk = store.online.loss_risk(config)
        applied = {view.name for view in store.catalog.online_views(())}
        standing = {view: store.standing(view) for view in sorted(applied)}
    except ConfigError as error:
        yield from configuration_findings(error)
        return
    except SteadfeastError as error:
        remedy = "start it, or put online_store in feature_store.yaml right"
        yield Finding("online-store", "online store", _one_line(error), remedy)
        return
    if risk:
        problem, _, remedy = risk.partition("; ")
        yield Finding("eviction", "online store", problem, remedy)
    for view in defined.views:
        if view.name in standing and standing[view.name].until is None:
            yield Finding(
                "not-materialized",
                f"feature view {view.name!r}",
                "nothing of it is online, so every value is served as missing",
                "run `steadfeast store materialize`",
            )


def _network(store: Store) -> Iterator[Finding]:
    """Look at the way to a store that is a server."""
    url = getattr(store.feast.config.online_store, "url", None)
    if url is None:
        return
    parts = urlsplit(url.get_secret_value())
    address = f"{parts.hostname}:{parts.port or 6379}"
    if parts.scheme != "rediss" and not is_loopback(address):
        yield Finding(
            "plaintext",
            f"{store.repo / 'feature_store.yaml'}, online_store.url",
            f"{address} is reached without TLS, so others on the network can read values and the "
            "password",
            "write rediss:// and ca_file, or accept it where only trusted programs share the "
            "network",
        )


def configuration_findings(error: ConfigError) -> Iterator[Finding]:
    """Return a finding for each problem of a configuration file."""
    for field, problem in error.problems:
        where = f"{error.path}, {field}" if field else str(error.path)
        yield Finding(
            "configuration", where, problem, "put it right; no server starts with it as it is"
        )


def _one_line(error: Exception) -> str:
    return "; ".join(str(error).splitlines())
