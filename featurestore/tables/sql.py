"""The text of every DuckDB query; pure: names and types in, text out.

Above `errors` and `config`; `featurestore.offline` runs what is written here. Names and paths
come from feature definitions and are quoted, never trusted; times are integers.

Time is microseconds since the epoch in UTC, as BIGINT, so that no session time zone and no unit
of a source changes a comparison. Nanoseconds are floored: the microsecond that holds the instant.

**The total order of one key's rows** is `(event_ts, created_ts, canonical row bytes)`, greatest
wins; a null `created_ts` is least. `featurestore.tables.total_order` defines the canonical bytes
and gives both their writer and the expressions that make DuckDB order rows as they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadfeast.featurestore.tables.total_order import canonical_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steadfeast.featurestore.tables.total_order import Type

_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a source, as DuckDB reads it."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class View:
    """One feature view, bound to its source: everything that decides its values.

    Attributes:
        scan: Table expression of the source.
        keys: Source columns of the join keys, in the order of the spine's `k0`, `k1`, ...
        timestamp: Source column of the event time.
        created: Source column of the created time, if there is one.
        features: `(source column, result name)` of each requested feature.
        order: `(feature name, source column)` of all features: the tie rule's columns.
        ttl: Microseconds a value stays usable, the last one included; 0 is no limit.
    """

    scan: str
    keys: tuple[Column, ...]
    timestamp: Column
    created: Column | None
    features: tuple[tuple[Column, str], ...]
    order: tuple[tuple[str, Column], ...]
    ttl: int = 0


def identifier(name: str) -> str:
    """Quote one identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote one string, for text that must stand alone: paths, and what `to_sql` returns."""
    return "'" + text.replace("'", "''") + "'"


def parquet(
    paths: Sequence[str], *, hive: bool = False, hive_types: Mapping[str, str] | None = None
) -> str:
    """Return a table expression over Parquet files, columns united by name.

    Args:
        paths: The files.
        hive: Folders name partitions.
        hive_types: Partition column -> DuckDB type; else it is guessed from all folders there are.
    """
    files = ", ".join(map(literal, paths))
    united = ", union_by_name=true" if len(paths) > 1 else ""
    pairs = ", ".join(f"{literal(name)}: {kind}" for name, kind in (hive_types or {}).items())
    types = f", hive_types={{{pairs}}}" if pairs else ""
    return f"read_parquet([{files}], hive_partitioning={str(hive).lower()}{types}{united})"


def micros(expression: str, kind: str) -> str:
    """Return `expression` of DuckDB type id `kind` as microseconds since the epoch, UTC."""
    if kind in {"timestamp_ns", "timestamptz_ns"}:
        nanos = f"epoch_ns({expression})"
        return f"(({nanos} - ({nanos} % 1000 + 1000) % 1000) // 1000)"
    if kind in {"timestamp_s", "timestamp_ms"}:
        return f"epoch_us({expression}::TIMESTAMP)"
    return f"epoch_us({expression})"


def within(column: Column, since: int | None, until: int | None) -> str:
    """Return a condition that is true at least for `since <= column <= until`.

    Plain comparisons of the bare column, so that Parquet row groups are skipped by their
    statistics. For nanoseconds it is exact too; dates are widened to whole days.
    """
    bounds = []
    for bound, sign in ((since, ">="), (until, "<=")):
        if bound is None:
            continue
        if not -_INT64 <= bound < _INT64:  # before or after everything that a column can hold
            continue
        name, kind = identifier(column.name), column.type.id
        if kind == "timestamp with time zone":
            bounds.append(f"{name} {sign} make_timestamptz({bound})")
        elif kind == "timestamp":
            bounds.append(f"{name} {sign} make_timestamp({bound})")
        else:
            bounds.append(f"{micros(name, kind)} {sign} {bound}")
    return " AND ".join(bounds) or "true"


def source(
    view: View,
    since: int | None,
    until: int | None,
    *,
    made: bool = False,
    wide: bool = False,
    order: bool = False,
    raw: Sequence[str] = (),
) -> str:
    """Return a query of the source rows in a time range, both ends included, under plain names.

    Columns: `k0`..., `ts`; with `made` the created time, if the view has one; with `wide` the
    requested features `f0`...; with `order` the canonical keys `c0`...; and the source's columns
    `raw` as `s0`...
    """
    columns = [f"{identifier(key.name)} AS k{i}" for i, key in enumerate(view.keys)]
    columns.append(f"{_time(view.timestamp)} AS ts")
    if made and view.created is not None:
        columns.append(f"{_time(view.created)} AS made")
    if wide:
        columns += [f"{identifier(c.name)} AS f{i}" for i, (c, _) in enumerate(view.features)]
    if order:
        columns += [f"{key} AS c{i}" for i, key in enumerate(_order(view))]
    columns += [f"{identifier(name)} AS s{i}" for i, name in enumerate(raw)]
    return (
        f"SELECT {', '.join(columns)} FROM {view.scan} WHERE {within(view.timestamp, since, until)}"
    )


def _order(view: View) -> list[str]:
    return canonical_keys((name, identifier(c.name), c.type) for name, c in view.order)


def _time(column: Column) -> str:
    return micros(identifier(column.name), column.type.id)


def _keys(view: View) -> list[str]:
    return [f"k{i}" for i in range(len(view.keys))]


def numbering(view: View, *, spine: str = "spine") -> str:
    """Return the query that numbers the distinct keys of the spine: `k0`..., `id`, `n` rows.

    A number is cheaper to sort and to compare than keys, whatever their count and types, and
    source rows of keys that nobody asks for drop out when they are numbered.
    """
    keys = _keys(view)
    if not keys:
        return f"SELECT 0::INTEGER AS id, count(*) AS n FROM {spine}"
    there = " AND ".join(f"{key} IS NOT NULL" for key in keys)
    return (
        f"SELECT {', '.join(keys)}, (row_number() OVER () - 1)::INTEGER AS id, count(*) AS n "
        f"FROM {spine} WHERE {there} GROUP BY ALL"
    )


def asked(view: View, *, spine: str = "spine", ids: str = "ids") -> str:
    """Return the query of the spine rows that can have a value: `i`, `t`, `id`."""
    return (
        f"SELECT s.i::INTEGER AS i, s.t, ids.id FROM {spine} AS s "
        f"{_numbered(view, 's', ids)} WHERE s.t IS NOT NULL"
    )


def _numbered(view: View, rows: str, ids: str) -> str:
    keys = _keys(view)
    on = " AND ".join(f"{rows}.{key} = ids.{key}" for key in keys)
    return f"JOIN {ids} AS ids ON {on}" if keys else f"CROSS JOIN {ids} AS ids"


def _asked_of(
    view: View, span: Span, ids: str, *, made: bool = False, wide: bool = False, order: bool = False
) -> str:
    """Return the source rows of the spine's keys: `id`, `ts` and what is asked for."""
    rows = source(view, span.since, span.until, made=made, wide=wide, order=order)
    columns = ", ".join(f"k{i}" for i in range(len(view.keys)))
    drop = f" EXCLUDE ({columns})" if columns else ""
    return f"SELECT f.*{drop}, ids.id FROM ({rows}) AS f {_numbered(view, 'f', ids)}"


def earliest(view: View, until: int | None) -> str:
    """Return the query of the least event time in the source."""
    return f"SELECT min(ts) FROM ({source(view, None, until)})"


@dataclass(frozen=True, slots=True)
class Span:
    """The event times that any spine row can use, both ends included; None is no bound.

    `width` is the distance between them where `(id, ts)` fits one 64-bit number, `id * width +
    (ts - since)`: one number sorts in two thirds of the time that two take. Else None.
    """

    since: int | None
    until: int | None
    width: int | None = None


def winners(
    view: View,
    span: Span,
    *,
    as_known: bool,
    crowded: bool,
    asked: str = "asked",
    ids: str = "ids",
) -> str:
    """Return the query that finds each row's event time: `i`, `id`, `ts` and, if known by, `t`.

    Args:
        view: The feature view.
        span: The event times in question.
        as_known: Use a source row only from its created time on.
        crowded: Many rows ask for the same keys: sort both sides and merge them (ASOF). Else
            hash those who ask, stream the source past them and keep each one's greatest event
            time: without a sort, but at the cost of every pair of one key.
        asked: Name of the rows that ask.
        ids: Name of their keys' numbers.
    """
    known = as_known and view.created is not None
    rows = _asked_of(view, span, ids, made=known)
    fresh = f"s.t - f.ts <= {view.ttl}" if view.ttl else "true"
    if not crowded:
        usable = f"s.t >= f.ts AND {fresh}" + (" AND s.t >= f.made" if known else "")
        return (
            f"SELECT s.i, any_value(s.id) AS id, any_value(s.t) AS t, max(f.ts) AS ts "
            f"FROM {asked} AS s JOIN ({rows}) AS f ON s.id = f.id AND {usable} GROUP BY s.i"
        )
    if span.width is not None:
        return _packed(view, span, rows, asked, known=known)
    kept = ", s.t" if known else ""
    at = "seen" if known else "ts"
    if known:
        rows = (
            "SELECT id, seen, max(ts) OVER (PARTITION BY id ORDER BY seen) AS ts "
            f"FROM ({_seen(rows, span)})"
        )
    return (
        f"SELECT s.i, s.id{kept}, f.ts FROM {asked} AS s "
        f"ASOF JOIN ({rows}) AS f ON s.id = f.id AND s.t >= f.{at} WHERE {fresh}"
    )


def _seen(rows: str, span: Span) -> str:
    """Return rows with `seen`, the first instant at which each is both due and known.

    ASOF compares one pair of times, and where knowledge counts a row has two. From `seen` on it
    can be used; what it then yields to is decided by a running maximum of `ts` over `seen`.
    """
    late = "" if span.until is None else f" AND made <= {span.until}"
    return (
        f"SELECT id, ts, greatest(ts, made) AS seen FROM ({rows}) "
        f"WHERE ts IS NOT NULL AND made IS NOT NULL{late}"
    )


def _packed(view: View, span: Span, rows: str, asked: str, *, known: bool) -> str:
    """Return `winners` for crowded keys with key and time in one number, `place`.

    The match may be the last row of an earlier key: then it lies below the key's own numbers.
    The running maximum needs no partition, since each key's numbers exceed all before.
    """
    base = f"id::BIGINT * {span.width}"

    def pack(time: str) -> str:
        return f"{base} + ({time} - {span.since})"

    if known:
        packed = f"SELECT {pack('seen')} AS place, {pack('ts')} AS own FROM ({_seen(rows, span)})"
        theirs = f"SELECT place, max(own) OVER (ORDER BY place) AS best FROM ({packed})"
    else:
        theirs = f"SELECT {pack('ts')} AS place FROM ({rows})"
    best = "f.best" if known else "f.place"
    mine = f"SELECT i, id, t, {pack('t')} AS place FROM {asked}"
    kept = "i, id, t" if known else "i, id"
    fresh = f" AND t - ts <= {view.ttl}" if view.ttl else ""
    return (
        f"SELECT {kept}, ts FROM (SELECT s.i, s.id, s.t, {best} >= s.{base} AS own, "
        f"{best} - s.{base} + {span.since} AS ts "
        f"FROM ({mine}) AS s ASOF JOIN ({theirs}) AS f ON s.place >= f.place) WHERE own{fresh}"
    )


def values(
    view: View,
    span: Span,
    *,
    as_known: bool,
    ties: bool,
    won: str = "won",
    ids: str = "ids",
) -> str:
    """Return the query that fetches the winners' features: `i`, `f0`...

    A row of `won` comes once for each usable source row with its keys and event time; with `ties`
    only the greatest in the total order is kept, at the price of reading every column of that
    order.
    """
    known = as_known and view.created is not None
    rows = _asked_of(view, span, ids, made=ties or known, wide=True, order=ties)
    usable = " AND f.made <= w.t" if known else ""
    features = ", ".join(f"f.f{i}" for i in range(len(view.features)))
    joined = f"FROM {won} AS w JOIN ({rows}) AS f ON w.id = f.id AND w.ts = f.ts{usable}"
    if not ties:
        return f"SELECT w.i, {features} {joined}"
    made = ["f.made"] if view.created is not None else []
    canonical = [f"f.c{i}" for i in range(len(_order(view)))]
    by = ", ".join(f"{key} DESC NULLS LAST" for key in [*made, *canonical]) or "1"
    return (
        f"SELECT * EXCLUDE (place) FROM (SELECT w.i, {features}, "
        f"row_number() OVER (PARTITION BY w.i ORDER BY {by}) AS place {joined}) WHERE place = 1"
    )


def needed(view: View) -> dict[str, Type]:
    """Return the source columns that decide a view's values, and their types."""
    columns = [*view.keys, view.timestamp, *(column for _, column in view.order)]
    columns += [column for column, _ in view.features]
    if view.created is not None:
        columns.append(view.created)
    return {column.name: column.type for column in columns}


def used(view: View, span: Span, *, won: str = "won", ids: str = "ids") -> str:
    """Return the query of the source rows that `won` names, ties included, as they are there.

    Columns: those of keys, times and all features, under the source's names; in the order of key
    and total order, so that the same rows are always the same table.
    """
    names = list(needed(view))
    rows = source(view, span.since, span.until, made=True, order=True, raw=names)
    made = ["f.made"] if view.created is not None else []
    order = [f"f.{key}" for key in _keys(view)]
    order += ["f.ts", *made, *(f"f.c{i}" for i in range(len(_order(view))))]
    return (
        f"SELECT {', '.join(f'f.s{i} AS {identifier(name)}' for i, name in enumerate(names))} "
        f"FROM ({rows}) AS f {_numbered(view, 'f', ids)} "
        f"JOIN (SELECT DISTINCT id, ts FROM {won}) AS w ON w.id = ids.id AND w.ts = f.ts "
        f"ORDER BY {', '.join(order)}"
    )


def point_in_time_sql(
    entities: str,
    columns: Sequence[str],
    time: str,
    joins: Sequence[tuple[View, Sequence[str], Span]],
    *,
    as_known: bool,
) -> str:
    """Return the whole join as one statement, for reading and for running elsewhere.

    Args:
        entities: Table or subquery of the entity frame.
        columns: Its columns.
        time: The one that says when, of a type of times or ISO text.
        joins: `(view, entity columns of its keys, span)` of each view.
        as_known: Use a source row only from its created time on.
    """
    row = "row"
    taken = {*columns, *(name for view, _, _ in joins for _, name in view.features)}
    while row in taken:
        row += "_"
    numbered, when = identifier(row), identifier(time)
    given = (
        f"SELECT * REPLACE ({when}::TIMESTAMPTZ AS {when}), row_number() OVER () AS {numbered} "
        f"FROM {entities} AS given"
    )
    parts = [f"entity AS MATERIALIZED ({given})"]
    selected = [f"e.{identifier(name)}" for name in columns]
    joined = ["FROM entity AS e"]
    for n, (view, names, span) in enumerate(joins):
        keys = "".join(f", {identifier(name)} AS k{i}" for i, name in enumerate(names))
        spine, ids, rows, won = f"spine_{n}", f"ids_{n}", f"asked_{n}", f"won_{n}"
        first = winners(view, span, as_known=as_known, crowded=True, asked=rows, ids=ids)
        then = values(view, span, as_known=as_known, ties=True, won=won, ids=ids)
        parts += [
            f"{spine} AS (SELECT {numbered} AS i, epoch_us({when}) AS t{keys} FROM entity)",
            f"{ids} AS MATERIALIZED ({numbering(view, spine=spine)})",
            f"{rows} AS ({asked(view, spine=spine, ids=ids)})",
            f"{won} AS ({first})",
            f"view_{n} AS ({then})",
        ]
        selected += [f"v{n}.f{i} AS {identifier(out)}" for i, (_, out) in enumerate(view.features)]
        joined.append(f"LEFT JOIN view_{n} AS v{n} ON v{n}.i = e.{numbered}")
    return (
        f"WITH {','.join(chr(10) + part for part in parts)}{chr(10)}SELECT {', '.join(selected)}"
        f"{chr(10)}{chr(10).join(joined)}{chr(10)}ORDER BY e.{numbered}"
    )


def between(views: Sequence[tuple[View, Sequence[str]]], since: int, until: int) -> str:
    """Return the query of every distinct key and event time of views within a time range.

    Columns: `event_timestamp`, then the entity columns given with each view; one that a view does
    not have is null in its rows. In order of time, then keys.
    """
    names = list(dict.fromkeys(name for _, own in views for name in own))
    parts = []
    for view, own in views:
        place = {name: f"k{i}" for i, name in enumerate(own)}
        keys = "".join(f", {place.get(name, 'NULL')} AS {identifier(name)}" for name in names)
        rows = source(view, since, until)
        parts.append(
            f"SELECT make_timestamptz(ts) AS event_timestamp{keys} FROM ({rows}) "
            "WHERE ts IS NOT NULL"
        )
    return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)}) ORDER BY ALL"


def newest(view: View, since: int | None, until: int | None, *, known_by: int | None) -> str:
    """Return the query of each key's greatest row in the total order, nulls in no key.

    Columns: the join keys, features, event time and created time under the source's own names
    or those that `view.features` gives.
    """
    return f"SELECT {_named(view)} FROM ({_greatest(view, since, until, known_by, _keys(view))})"


def newest_rows(view: View, since: int | None, until: int | None, *, known_by: int | None) -> str:
    """Return the query of what `newest` reads of a part of a source: its columns as they are.

    Over rows that are together what this gives for each part, `newest` gives what it gives over
    the whole.
    """
    rows = _greatest(view, since, until, known_by, _keys(view), raw=list(needed(view)))
    named = [f"s{i} AS {identifier(name)}" for i, name in enumerate(needed(view))]
    return f"SELECT {', '.join(named)} FROM ({rows})"


def history(
    view: View, since: int, until: int, *, time: str, keys: Sequence[str], once: bool
) -> str:
    """Return the query of what a source says of a time range, both ends included.

    Columns: the event time as `time`, the join keys as `keys`, and the features.

    Args:
        view: The source.
        since: First microsecond.
        until: Last microsecond.
        time: Name of the column of the event time.
        keys: Names of the columns of the join keys, in the order of `view.keys`.
        once: Of the rows of one key and event time only the greatest in the total order, as a
            point-in-time join would see it; nulls in no key.
    """
    rows = source(view, since, until, made=True, wide=True)
    if once:
        rows = _greatest(view, since, until, None, [*_keys(view), "ts"])
    named = [f"make_timestamptz(ts) AS {identifier(time)}"]
    named += [f"k{i} AS {identifier(name)}" for i, name in enumerate(keys)]
    named += [f"f{i} AS {identifier(name)}" for i, (_, name) in enumerate(view.features)]
    return f"SELECT {', '.join(named)} FROM ({rows}) WHERE ts IS NOT NULL"


def _greatest(
    view: View,
    since: int | None,
    until: int | None,
    known_by: int | None,
    of: Sequence[str],
    raw: Sequence[str] = (),
) -> str:
    """Return the query of the greatest row of each combination of the columns `of`."""
    rows = source(view, since, until, made=True, wide=True, order=True, raw=raw)
    where = [f"k{i} IS NOT NULL" for i in range(len(view.keys))]
    where.append("ts IS NOT NULL")
    if known_by is not None and view.created is not None:
        where.append(f"made <= {known_by}")
    made = ["made"] if view.created is not None else []
    canonical = [f"c{i}" for i in range(len(_order(view)))]
    by = ", ".join(f"{key} DESC NULLS LAST" for key in ["ts", *made, *canonical])
    partition = f"PARTITION BY {', '.join(of)} " if of else ""
    return (
        f"SELECT * FROM (SELECT *, row_number() OVER ({partition}ORDER BY {by}) "
        f"AS place FROM ({rows}) WHERE {' AND '.join(where)}) WHERE place = 1"
    )


def everything(view: View, since: int | None, until: int | None) -> str:
    """Return the query of all rows of a source within a time range, both ends included."""
    return f"SELECT {_named(view)} FROM ({source(view, since, until, made=True, wide=True)})"


def _named(view: View) -> str:
    names = {key.name: f"k{i}" for i, key in enumerate(view.keys)}
    for i, (_, name) in enumerate(view.features):
        names.setdefault(name, f"f{i}")
    names.setdefault(view.timestamp.name, "make_timestamptz(ts)")
    if view.created is not None:
        names.setdefault(view.created.name, "make_timestamptz(made)")
    return ", ".join(f"{value} AS {identifier(name)}" for name, value in names.items())
