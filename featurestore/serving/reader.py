"""The fast way through a request: packed rows in, and columns only when somebody asks for them.

Above `serving`, which it gives way to; below `store`. Making an Arrow array costs more than all
else about one row, so a request fetches and checks its rows, and `OnlineFeatures` decodes them
on demand: to NumPy straight from the packed bytes, to Arrow by `serving`. Errors come with the
request all the same: what could fail later (an older layout, an on-demand view) is done at once.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from steadfeast.featurestore.online import plan_of, space_of, unpack
from steadfeast.featurestore.serving import assembly
from steadfeast.featurestore.serving.decoder import decoder_of
from steadfeast.featurestore.serving.features import OnlineFeatures

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from feast.repo_config import RepoConfig
    from numpy.typing import NDArray

    from steadfeast.featurestore.definitions import Bundle, StoredView
    from steadfeast.featurestore.online import PackedOnlineStore
    from steadfeast.featurestore.serving.assembly import EntityRows
    from steadfeast.featurestore.serving.decoder import Decoder, Judged
    from steadfeast.featurestore.serving.features import Columns

_LISTED_ROWS = 256  # a table of fewer rows is encoded faster value by value
_NONE = np.zeros(5, np.int64)


class _Source:
    """One view of the service, with what a request need not work out anew."""

    def __init__(self, config: RepoConfig, view: StoredView) -> None:
        self.view = view
        self.plan = plan_of(view.view)
        self.space = space_of(config, view.view)
        self.names, self.current = tuple(view.columns), {self.plan.layout.id}
        self.decoder = decoder_of(self.plan.layout, self.names, view.ttl_us)

    def keys(self, columns: Mapping[str, Sequence[Any]], n: int) -> list[bytes | None] | None:
        if not self.view.keys:
            table = self.view.key_table(pa.table({"": pa.nulls(1)}))
            return self.plan.codec.encode(table) * n
        codec = self.plan.codec
        return codec.plain([columns[self.view.keys[key]] for key in codec.types])


class Reader:
    """Answers requests for one service; safe to share between threads.

    Args:
        online: The online store.
        config: Feast's configuration.
        bundle: The service.
    """

    def __init__(self, online: PackedOnlineStore, config: RepoConfig, bundle: Bundle) -> None:
        self.online, self.config, self.bundle = online, config, bundle
        self.sources = tuple(_Source(config, view) for view in bundle.plan.views)
        self.names, self.contract = bundle.plan.features, bundle.contract.sha256
        self.decoders: list[Decoder] | None = None
        self.in_order: Callable[[Sequence[Any]], Sequence[Any]] = _as_they_are
        decoders = [source.decoder for source in self.sources if source.decoder is not None]
        if bundle.executors or len(decoders) < len(self.sources):
            return
        self.decoders = decoders
        columns = [
            (source.view.name, name)
            for source, decoder in zip(self.sources, decoders, strict=True)
            for name in decoder.order
        ]
        places = [columns.index((out.view, out.feature)) for out in bundle.plan.outputs]
        if places != list(range(len(columns))):
            self.in_order = itemgetter(*places) if len(places) > 1 else _first

    def read(self, rows: EntityRows, at: int) -> OnlineFeatures:
        """Return the features of `rows` at `at`, microseconds since the epoch.

        Raises:
            EntityRowsError: A column is missing or of a wrong type.
            CorruptRowError: A row is not what was written.
            StoreUnavailableError: The store does not answer.
        """
        bundle = self.bundle
        if bundle.executors:
            entities = assembly.entity_rows(bundle.plan, rows)
            return assembly.read(self.online, self.config, bundle, entities, at)
        request = Request(self, rows, at)
        features = OnlineFeatures.later(request, self.contract)
        if not request.current():
            features.statuses  # noqa: B018 - an older row may not fit the types of today
        return features


class Request:
    """Rows that were fetched for one request; `OnlineFeatures` asks it for columns."""

    __slots__ = (
        "_at",
        "_doubtful",
        "_entities",
        "_judged",
        "_layouts",
        "_listed",
        "_reader",
        "fetched",
        "rows",
    )

    def __init__(self, reader: Reader, given: Any, at: int) -> None:
        self._reader, self._at = reader, at
        self._entities: pa.Table | None = None
        self._judged: list[Judged] | None = None
        self._listed = _listed(reader.bundle.plan.keys, given)
        keys: list[list[bytes | None] | None] = [None]
        if self._listed is not None:
            self.rows = len(next(iter(self._listed.values())))
            keys = [source.keys(self._listed, self.rows) for source in reader.sources]
        if None in keys:
            self._listed = None
            self._entities = assembly.entity_rows(reader.bundle.plan, given)
            self.rows = self._entities.num_rows
            keys = [
                source.plan.codec.encode(source.view.key_table(self._entities))
                for source in reader.sources
            ]
        self.fetched, self._layouts, self._doubtful = [], [], []
        for source, some in zip(reader.sources, keys, strict=True):
            rows, layouts, doubtful = reader.online.fetch(
                reader.config, source.view.view, source.space, some or (), at
            )
            self.fetched.append(rows)
            self._layouts.append(layouts)
            self._doubtful.append(doubtful)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order of the service."""
        return self._reader.names

    def current(self) -> bool:
        """Whether all rows have the layout that is written now."""
        for source, layouts in zip(self._reader.sources, self._layouts, strict=True):
            if layouts and layouts != source.current:
                return False
        return True

    def keys(self) -> dict[str, list[Any]]:
        """Return the key columns as lists."""
        if self._listed is not None:
            return {name: list(column) for name, column in self._listed.items()}
        table = self._entities
        return {} if table is None else table.to_pydict()

    @property
    def kind(self) -> Hashable:
        """Requests of one reader can be settled together, if they doubt the same."""
        return (self._reader, *self._doubtful)

    def settle(self, more: Sequence[Request] = ()) -> Columns:
        """Return the table, the statuses and the event times, by `serving`."""
        reader, layouts, every = self._reader, self._reader.online.layouts, (self, *more)
        reads = [
            unpack(source.plan, layouts, list(chain.from_iterable(rows)), source.names)
            for source, *rows in zip(reader.sources, *(one.fetched for one in every), strict=True)
        ]
        if any(self._doubtful):
            pairs = zip(reads, self._doubtful, strict=True)
            reads = [replace(read, doubtful=doubtful) for read, doubtful in pairs]
        at: int | NDArray[np.int64] = self._at
        if more:
            at = np.repeat([one._at for one in every], [one.rows for one in every])  # noqa: SLF001
        return assembly.assemble(reader.bundle, _entities(every), reads, at)

    def judged(self) -> list[Judged] | None:
        """Return what each view says; None when a type has no NumPy form."""
        decoders = self._reader.decoders
        if self._judged is None and decoders is not None and self.rows:
            pairs = zip(decoders, self.fetched, strict=True)
            self._judged = [decoder.judge(rows, self._at) for decoder, rows in pairs]
            if any(self._doubtful):
                self._judged = [
                    view._replace(missing=assembly.INVALID) if doubtful else view
                    for view, doubtful in zip(self._judged, self._doubtful, strict=True)
                ]
        return self._judged

    def in_order(self, flat: Sequence[Any]) -> Sequence[Any]:
        """Return what belongs to each column of the blocks, in the order of the features."""
        return self._reader.in_order(flat)

    def tally(self) -> NDArray[np.int64] | None:
        """Count the values by their `FieldStatus`; None as `judged`."""
        views = self.judged()
        return None if views is None else sum((view.tally() for view in views), _NONE)

    def lists(self) -> dict[str, list[Any]] | None:
        """Return the keys and each feature as lists, nulls as None; None as `judged`."""
        views = self.judged()
        if views is None:
            return None
        flat = [column for view in views for block in view.blocks for column in block.lists()]
        values = self.keys()
        values.update(zip(self._reader.names, self._reader.in_order(flat), strict=True))
        return values

    def arrays(self) -> dict[str, NDArray[Any]] | None:
        """Return each feature, nulls of numbers as NaN; None as `judged`."""
        views = self.judged()
        if views is None:
            return None
        flat = [column for view in views for block in view.blocks for column in block.arrays()]
        return dict(zip(self._reader.names, self._reader.in_order(flat), strict=True))


def _entities(requests: Sequence[Request]) -> pa.Table:
    """Return the key columns of requests of one reader, one request after the other."""
    plan = requests[0]._reader.bundle.plan  # noqa: SLF001
    pieces = []
    for listed, some in groupby(requests, lambda one: one._listed is not None):  # noqa: SLF001
        if listed:
            columns = [request.keys() for request in some]
            joined = {n: list(chain.from_iterable(c[n] for c in columns)) for n in columns[0]}
            pieces.append(assembly.entity_rows(plan, joined))
        else:
            pieces += [request._entities for request in some]  # noqa: SLF001
    return pa.concat_tables(pieces)


def _listed(keys: Mapping[str, pa.DataType], given: EntityRows) -> dict[str, Any] | None:
    """Return the key columns as lists, where that is the cheaper way.

    What is wrong with them is left to the slow way, which says it; so is a service without keys.
    """
    if not keys:
        return None
    try:
        if isinstance(given, pa.Table):
            schema = given.schema
            alike = all(schema.field(name).type == t for name, t in keys.items())
            if alike and given.num_rows <= _LISTED_ROWS:
                return {name: given.column(name).to_pylist() for name in keys}
        elif isinstance(given, dict):
            columns = {name: given[name] for name in keys}
            if len({len(column) for column in columns.values()}) == 1:
                return columns
        else:
            rows = cast("Sequence[Mapping[str, Any]]", given)
            return {name: [row[name] for row in rows] for name in keys}
    except (KeyError, TypeError):
        return None
    return None


def _as_they_are(columns: Sequence[Any]) -> Sequence[Any]:
    return columns


def _first(columns: Sequence[Any]) -> Sequence[Any]:
    return columns[:1]
