"""The facade that people import: apply, materialize, train, serve, replay.

Above everything but `audit`, `server` and `cli`. A service is resolved once and kept as a
`Bundle`: its plan, its on-demand executors and its contract, so that a request costs one read per
feature view and the arithmetic on it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from threading import RLock
from time import time_ns
from typing import TYPE_CHECKING, Self, cast

import pyarrow as pa
from feast import FeatureService, FeatureStore
from feast.errors import FeastError
from feast.repo_config import FeastConfigError
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from steadfeast.featurestore import notebook
from steadfeast.featurestore.audit import AuditReport, audit
from steadfeast.featurestore.config import StoreConfig, load_section, read_mapping, written
from steadfeast.featurestore.definitions import Catalog, LiveChange, by_event_time
from steadfeast.featurestore.errors import (
    ConfigError,
    NotFoundError,
    RequestError,
    SteadfeastError,
)
from steadfeast.featurestore.materialization import Materialized, Materializer, Standing
from steadfeast.featurestore.offline import Rows, arrow_table, delete, ingest
from steadfeast.featurestore.online import PackedOnlineStore
from steadfeast.featurestore.retention import Matches, collect_garbage, erase_files
from steadfeast.featurestore.served_log import ServedLog
from steadfeast.featurestore.serving import EntityRows, Reader, rows_in
from steadfeast.featurestore.tables import micros, private_folder, sweep
from steadfeast.featurestore.training import replay, training_set

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from types import TracebackType

    from feast import FeatureView

    from steadfeast.featurestore.definitions import Bundle, Contract, Defined
    from steadfeast.featurestore.retention import Collectable, Erasure, Holder
    from steadfeast.featurestore.serving import OnlineFeatures
    from steadfeast.featurestore.training import TrainingSet

_BRIEF_ROWS = 1000
NEVER = -(2**63)
"""Before every time: as long as nothing is materialized, somebody may ask as of any time."""


class Store:
    """One feature store: a Feast repo, and the folder of what Steadfeast keeps about it.

    A context manager; leaving it flushes the served log. Safe to share between threads.

    Args:
        config: Section `store` of steadfeast.yaml.
        file: The file that it is from, which also says where other packages keep their state.

    Raises:
        ConfigError: The repo folder holds no usable feature_store.yaml.
    """

    def __init__(self, config: StoreConfig, *, file: Path | None = None) -> None:
        self.config, self._file = config, file
        self.repo, self.data = Path(config.repo), Path(config.data)
        self.feast = _feast(self.repo)
        private_folder(self.data)
        sweep(self.data)
        self.served = ServedLog(
            self.data,
            rows_per_file=config.log.rows_per_file,
            rows_waiting=config.log.rows_waiting,
            flush_seconds=config.log.flush_every.total_seconds(),
            when_full=config.log.when_full,
            services=self.services,
        )
        self.catalog = Catalog(self.feast, self.repo, self.data)
        self._readers: dict[tuple[str, str], Reader] = {}
        self._materializer: Materializer | None = None
        self._online: PackedOnlineStore | None = None
        self._lock = RLock()

    @classmethod
    def open(cls, config: Path) -> Self:
        """Open the store that the file `config` describes.

        Raises:
            ConfigError: The file, or the feature_store.yaml it leads to, is missing or wrong.
        """
        return cls(load_section(Path(config), "store", StoreConfig), file=Path(config))

    def __repr__(self) -> str:
        """Say which it is; nothing is read for it."""
        return notebook.line("Store", *self._facts())

    def _repr_html_(self) -> str:
        services = [(name,) for name in self.services()]
        views = [
            (
                view.name,
                ", ".join(one.name for one in view.entity_columns),
                len(view.features),
                written(view.ttl) if view.ttl else "none",
            )
            for view in self.catalog.online_views(())
        ]
        return notebook.card(
            "Store",
            self._facts(),
            notebook.table(("service",), services),
            notebook.table(("view", "keys", "features", "TTL"), views),
        )

    def _facts(self) -> list[str]:
        online = str(getattr(self.feast.config.online_store, "type", ""))
        return [f"project {self.feast.project}", f"repo {self.repo}", f"data {self.data}", online]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush the served log and close what is open."""
        self.catalog.close()
        self.served.close()
        if self._materializer is not None:
            self._materializer.close()
        if self._online is not None:
            self._online.release()

    # definitions

    def apply(self) -> str:
        """Do `feast apply`, keep contracts and definitions for good, return what Feast says."""
        return self.catalog.apply()

    def defined(self) -> Defined:
        """Return what the files define now, and what `apply` would change of what is applied.

        Raises:
            UserError: `apply` would refuse the definitions.
        """
        return self.catalog.defined()

    def live_changes(self) -> dict[str, LiveChange]:
        """Return service -> what `apply` would change under a model that is live.

        Live is a model that the newest file of the served log names, under the contract that is
        served now.
        """
        return self.catalog.live_changes(self.served.models)

    def refresh(self) -> None:
        """Read the registry and the definitions again."""
        self.catalog.refresh()

    def services(self) -> list[str]:
        """Return the names of the feature services in the registry."""
        return self.catalog.services()

    def bundle(self, service: str, contract: str | None = None) -> Bundle:
        """Return the resolved `service`, as it is served now or under a contract of before.

        Raises:
            NotFoundError: There is no such service.
            DefinitionsError: An on-demand view differs between registry and repo folder.
            ContractMismatchError: That contract cannot be served.
        """
        return self.catalog.bundle(service, contract)

    def bundle_of_then(self, service: str, contract: str) -> Bundle:
        """Return `service` as it was under a contract, to replay what was made under it.

        Raises:
            NotFoundError: There is no such service.
            ContractMismatchError: The contract was never applied here, or its definitions no
                longer make it.
        """
        return self.catalog.of_then(service, contract)

    def contract(self, service: str) -> Contract:
        """Return the contract that `service` is served under now."""
        return self.bundle(service).contract

    def kept_contract(self, sha256: str) -> Contract:
        """Return a contract that was applied here once, by its SHA-256 or the start of it.

        Raises:
            NotFoundError: No applied contract starts so, or more than one does.
        """
        return self.catalog.kept_contract(sha256)

    # training

    def training_set(
        self,
        entities: Rows,
        service: str | FeatureService,
        *,
        label: str | None = None,
        as_known_at: datetime | None = None,
        event_time_only: bool | None = None,
    ) -> TrainingSet:
        """Join `service` to an entity frame at each row's own time, and keep it with a manifest.

        Args:
            entities: Join keys, request fields and `event_timestamp` (UTC); other columns, such
                as the label and `known_at`, stay beside the features. A table, a DataFrame,
                columns, rows, or the text of a DuckDB query.
            service: The feature service, or its name.
            label: Which of the columns is the label.
            as_known_at: Knowledge time: nothing after it may count.
            event_time_only: Source rows count from their event time on, whenever they became
                known; for sources that were filled afterwards. Contract and manifest say so. As
                `store.training.event_time_only` says, when absent.

        Raises:
            NotFoundError: There is no such service.
            EntityRowsError: A column is missing or wrong.
            FutureKnowledgeError: Rows or labels lie after `as_known_at`.
        """
        bundle = self.bundle(name_of(service))
        settings, contract = self.config.training, bundle.contract
        if event_time_only is None:
            event_time_only = settings.event_time_only
        if event_time_only:
            contract = by_event_time(contract)
        self.catalog.keep(contract)
        return training_set.build(
            self.feast,
            bundle.plan,
            bundle.executors,
            entities,
            contract=contract.sha256,
            folder=self.data / "training",
            pins=self.data / "pins" if settings.pin == "copy" else None,
            label=label,
            as_known_at=as_known_at,
            event_time_only=event_time_only,
        )

    def replay(self, manifest: Path) -> pa.Table:
        """Compute a training set anew, and return it if its content is the same to the bit.

        Raises:
            ManifestError: The manifest or its entity frame is gone or altered.
            ReplayError: The content differs; says what is gone or has changed since.
        """
        return replay(self.feast, self.catalog, self.data / "pins", Path(manifest))

    def point_in_time(
        self,
        service: str | FeatureService,
        entities: Rows,
        *,
        contract: str | None = None,
        event_time_only: bool = False,
    ) -> pa.Table:
        """Return the features alone, of each row of `entities` at its `event_timestamp`.

        Args:
            service: The feature service.
            entities: Join keys, request fields and `event_timestamp`.
            contract: By the definitions of this contract; those of now, when absent.
            event_time_only: See `training_set`.

        Raises:
            NotFoundError: There is no such service.
            EntityRowsError: A column is missing or wrong.
            ContractMismatchError: The definitions of that contract are not there.
        """
        catalog, name = self.catalog, name_of(service)
        bundle = catalog.of_then(name, contract) if contract else catalog.bundle(name)
        frame = training_set.entity_table(bundle.plan, entities, self.feast.config)
        return training_set.features_at(
            self.feast, bundle.plan, bundle.executors, frame, event_time_only=event_time_only
        )

    # serving

    def online_features(
        self,
        service: str | FeatureService,
        entity_rows: EntityRows,
        *,
        request_time: datetime | None = None,
        contract: str | None = None,
    ) -> OnlineFeatures:
        """Return the features of each entity, as training would have seen them at that time.

        Args:
            service: The feature service, or its name.
            entity_rows: Join keys and request fields, as a table, a DataFrame, a mapping for each
                row, or a mapping of columns; other columns are ignored.
            request_time: What TTLs are measured from; now, when absent.
            contract: Serve only under the contract with this SHA-256: the one of now, or one that
                was applied before and whose values what is online still holds.

        Raises:
            NotFoundError: There is no such service.
            ContractMismatchError: That contract cannot be served.
            EntityRowsError: A column is missing or wrong.
        """
        service = name_of(service)
        bundle = self.catalog.bundle(service, contract)
        at = time_ns() // 1000 if request_time is None else micros(request_time)
        return self._reader(service, bundle).read(entity_rows, at)

    async def online_features_async(
        self,
        service: str | FeatureService,
        entity_rows: EntityRows,
        *,
        request_time: datetime | None = None,
        contract: str | None = None,
    ) -> OnlineFeatures:
        """Do `online_features` without holding up the event loop.

        What waits for no network and runs no user's code is answered at once: it takes less
        time than a thread takes to wake. The rest runs in a thread.
        """
        service = name_of(service)
        ask = partial(
            self.online_features,
            service,
            entity_rows,
            request_time=request_time,
            contract=contract,
        )
        if (
            self.online.embedded
            and rows_in(entity_rows) <= _BRIEF_ROWS
            and self.is_plain(service, contract)
        ):
            return ask()
        return await asyncio.to_thread(ask)

    def is_plain(self, service: str, contract: str | None = None) -> bool:
        """Say whether answering for `service` runs no on-demand view."""
        return not self.bundle(service, contract).executors

    def _reader(self, service: str, bundle: Bundle) -> Reader:
        key = service, bundle.contract.sha256
        reader = self._readers.get(key)
        if reader is None or reader.bundle is not bundle:
            reader = self._readers[key] = Reader(self.online, self.feast.config, bundle)
        return reader

    def audit(
        self, service: str, *, start: datetime | None = None, end: datetime | None = None
    ) -> AuditReport:
        """Check every key, and the log from `start` to before `end`; see `featurestore.audit`.

        Raises:
            NotFoundError: There is no such service.
        """
        self.served.flush()
        return audit(self, service, start=start, end=end)

    # materialization

    def materialize(
        self,
        until: datetime,
        *,
        since: datetime | None = None,
        views: Sequence[str] = (),
        rebuild: bool = False,
        progress: bool = False,
    ) -> Materialized:
        """Bring the online store to `until`: for each key, the newest row known by then.

        A view whose rows are gone, or whose source, mapping, keys, types or features are not
        those that its rows were made from, is filled anew from the start, and so is one that is
        asked for from before its first row on. What is filled anew replaces what was online, in
        one step; else rows are merged, and none replaces a newer one.

        Args:
            until: Rows whose event or created time lies after it are left for later. A time that
                is yet to come means now.
            since: Read only what became known after it. Absent: where the last call for the view
                ended, which includes rows that were written late where the source has a created
                column; everything, on the first call.
            views: Names of feature views; all that are online when empty.
            rebuild: Replace what is online by what the sources say now: what was corrected in
                place or deleted there, and what was only streamed, goes.
            progress: Show a bar.

        Returns:
            Feature view -> rows written, with notes on what was unusual.

        Raises:
            NotFoundError: There is no such feature view.
        """
        start = None if since is None else micros(since)
        chosen = self.catalog.online_views(views)
        return self._mover().run(chosen, start, micros(until), rebuild=rebuild, progress=progress)

    def ingest(self, view: str, rows: Rows, *, known_at: datetime | None = None) -> datetime:
        """Append rows to the source of a feature view, known from now on; nothing is rewritten.

        Training sets built before replay to the same bytes afterwards: no row can become known
        at an earlier time than one that is there already.

        Args:
            view: Its name; its source has a created column.
            rows: Every column of the source but the created one.
            known_at: When they became known; now, when absent.

        Returns:
            The time that they are known from.

        Raises:
            NotFoundError: There is no such feature view.
            SourceError: See `featurestore.offline.ingestion`.
        """
        chosen = self.catalog.online_views([view])[0]
        return ingest(self.feast.config, chosen, arrow_table(rows), known_at)

    def delete(self, view: str, rows: Rows, *, known_at: datetime | None = None) -> datetime:
        """Delete from the source of a feature view from now on; nothing is rewritten.

        What is deleted reads as null from its known time on, offline and, after the next
        materialize, online. Training sets built before replay to the same bytes afterwards. (To
        remove a person's data for good, see `erase`.)

        Args:
            view: Its name; its source has a created column.
            rows: Join keys, and the event time of the facts that go; without event times, all
                that is known of each entity goes.
            known_at: When that became known; now, when absent.

        Returns:
            The time from which it is known.

        Raises:
            NotFoundError: There is no such feature view.
            SourceError: See `featurestore.offline.ingestion`.
        """
        chosen = self.catalog.online_views([view])[0]
        return delete(self.feast.config, chosen, arrow_table(rows), known_at)

    def write_online(self, view: str, rows: Rows) -> int:
        """Write rows of one feature view to the online store, as a stream does.

        Args:
            view: Its name.
            rows: Join keys, features, and the source's timestamp and created columns.

        A row that is ahead of the clock, or of what is materialized, hides nothing: it waits
        until it is due. Too far ahead (`online_store.max_ahead_seconds`) it is left out, and so
        are too many of one key; the audit says how many.

        Returns:
            Entities that changed.
        """
        chosen = self.catalog.online_views([view])[0]
        found = self.online.progress(self.feast.config, chosen)
        until = None if found is None else found[1].until
        settled = NEVER if until is None else until
        if until is None:
            self._mover().declare(chosen)
        return self._mover().write(chosen, arrow_table(rows).to_batches(), settled, None)

    def online_problem(self) -> str:
        """Return why the online store cannot be read, in one line; empty if it can."""
        views = self.catalog.online_views([])
        try:
            for view in views[:1]:
                self.online.progress(self.feast.config, view)
        except SteadfeastError as error:
            return str(error)
        return ""

    def erase(self, entities: Rows, *, views: Sequence[str] = (), apply: bool = False) -> Erasure:
        """Say what is kept here of entities; remove it with `apply`: a right-to-erasure request.

        Their rows go from the online store, training sets and their pins, the served log with its
        labels, and the snapshots of a daemon that the same file configures; of a view with more
        join keys than are given, every row that has those given. A training set that lost rows is
        never replayed again, and says why. What is not touched: sources, whose owner must erase
        there before the next materialize brings the rows back; vectors that wait in the memory of
        a process that is serving, for `store.log.flush_every`; models.

        Args:
            entities: Values of join keys, under the views' own names; text is converted.
            views: Names of feature views: then only what is online of those goes.
            apply: Remove it.

        Returns:
            What was removed, and the name of the erasure; or what would be.

        Raises:
            NotFoundError: There is no such view, or no view that has such a join key.
            InvalidKeysError: A value does not fit the key's type.
            ManifestError: A training set's manifest cannot be read.
            UserError: Whose rows a damaged file holds cannot be known; nothing was removed.
        """
        chosen = self.catalog.online_views(views)
        keys = arrow_table(entities)
        known = {column.name for view in chosen for column in view.entity_columns}
        for name in keys.column_names:
            if name not in known:
                raise NotFoundError("join key", name, known)
        matches = Matches(self.catalog, keys)
        in_files = Matches(self.catalog, keys.slice(0, 0)) if views else matches
        holders: list[Holder] = []
        if self._file is not None and not views:
            holders = [entry.load() for entry in entry_points(group="steadfeast.erasures")]
        self.served.flush()
        if apply:  # what cannot be read is found before anything goes
            self._erase_kept(holders, in_files, {}, apply=False)
        online = {
            view.name: self._erase_online(view, keys, matches, apply=apply)
            for view in chosen
            if not {column.name for column in view.entity_columns}.isdisjoint(keys.column_names)
        }
        return self._erase_kept(holders, in_files, online, apply=apply)

    def _erase_kept(
        self, holders: Sequence[Holder], matches: Matches, online: Mapping[str, int], *, apply: bool
    ) -> Erasure:
        """Count, and with `apply` take out, what is kept in files, here and by `holders`."""
        elsewhere: dict[str, int] = {}
        for holder in holders:
            elsewhere |= holder(cast("Path", self._file), matches, apply=apply)
        return erase_files(matches, self.data, online, elsewhere, apply=apply)

    def _erase_online(
        self, view: FeatureView, keys: pa.Table, matches: Matches, *, apply: bool
    ) -> int:
        if apply:
            return self.online.erase(self.feast.config, view, keys)
        own = [{column.name: column.name for column in view.entity_columns}]
        batches = self.online.scan(self.feast.config, view)
        return sum(int(matches.of(pa.table(batch), own).sum()) for batch in batches)

    def collect_garbage(
        self, *, older_than: timedelta | None = None, apply: bool = False
    ) -> Collectable:
        """Say what is kept for nothing, or longer than somebody wants; remove it with `apply`.

        Args:
            older_than: Pins of training sets, served vectors and labels of a greater age.
            apply: Remove them. Training sets without their pins replay as long as their sources
                are what they were.

        Raises:
            ManifestError: A training set's manifest cannot be read.
        """
        return collect_garbage(self.feast, self.catalog, self.data, older_than, apply=apply)

    def watermark(self, view: str) -> datetime | None:
        """Return the time up to which `view` was materialized; None before the first time."""
        return self.standing(view).until

    def standing(self, view: str) -> Standing:
        """Return how far a view was materialized by whatever process, and whether one is at it."""
        self.catalog.online_views([view])
        found = self.feast.registry.get_any_feature_view(view, self.feast.project)
        return self._mover().standing(cast("FeatureView", found))

    @property
    def online(self) -> PackedOnlineStore:
        """The online store that feature_store.yaml names.

        Raises:
            ConfigError: It is not one of ours, and so cannot keep what is promised.
        """
        if self._online is None:
            store = self.feast._get_provider().online_store  # noqa: SLF001 - Feast's way to it
            if not isinstance(store, PackedOnlineStore):
                problem = (
                    f"{type(store).__name__} keeps no order of writes; use "
                    "steadfeast.SQLiteOnlineStore or steadfeast.RedisOnlineStore"
                )
                raise ConfigError(
                    self.repo / "feature_store.yaml", [("online_store.type", problem)]
                )
            self._online = store
        return self._online

    def _mover(self) -> Materializer:
        with self._lock:
            if self._materializer is None:
                self._materializer = Materializer(
                    self.feast.config, self.online, self.data / "materialized.lock"
                )
            return self._materializer


def name_of(service: str | FeatureService) -> str:
    """Return the name of a feature service, given by name or as Feast's object.

    Raises:
        RequestError: It is neither, such as a list of features, which has no contract.
    """
    if isinstance(service, str):
        return service
    if isinstance(service, FeatureService):
        return str(service.name)
    raise RequestError(
        "service",
        f"is a {type(service).__name__}, not the name of a feature service; a list of features has "
        "no contract to train and serve under: define FeatureService(name=..., features=[...]), "
        "apply it and name it here",
    )


def _feast(repo: Path) -> FeatureStore:
    file = repo / "feature_store.yaml"
    if not file.is_file():
        raise ConfigError(file, [("", "is missing; `store.repo` must be the Feast repo's folder")])
    read_mapping(file, "Feast's settings: project, provider, registry, ...")
    try:
        feast = FeatureStore(repo_path=str(repo))
        feast.registry.proto()  # reads it
        feast._get_provider()  # noqa: SLF001 - else found missing in the middle of a request
    except DecodeError as error:
        problem = (
            f"{feast.config.registry.path!r} cannot be read ({error}); put back a copy of it, or "
            "remove it and run `steadfeast store apply`"
        )
        raise ConfigError(file, [("registry", problem)]) from error
    except FeastConfigError as error:
        raise ConfigError(file, _feast_problems(error.args[0])) from error
    except ValidationError as error:
        raise ConfigError(file, _feast_problems(error)) from error
    except (FeastError, ValueError) as error:
        raise ConfigError(file, [("", str(error))]) from error
    return feast


def _feast_problems(error: object) -> list[tuple[str, str]]:
    """Return what pydantic says of Feast's settings, without what was given: it may be a secret."""
    if not isinstance(error, ValidationError):
        return [("", str(error))]
    return [
        (
            ".".join(map(str, detail["loc"])),
            "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"],
        )
        for detail in error.errors(include_input=False, include_url=False)
    ]
