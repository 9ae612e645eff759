"""The facade that people import: apply, materialize, train, serve, replay.

Above everything but `audit`, `server` and `cli`. A service is resolved once and kept as a
`Bundle`: its plan, its on-demand executors and its contract, so that a request costs one read per
feature view and the arithmetic on it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from time import time_ns
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
from feast import FeatureStore
from pydantic import ValidationError

from featurestore import definitions, training
from featurestore.audit import AuditReport, audit
from featurestore.config import StoreConfig, load_section
from featurestore.contract import Contract, describe, difference
from featurestore.errors import (
    ConfigError,
    ContractMismatchError,
    NotFoundError,
    ReplayError,
)
from featurestore.evidence import content_sha256, write_whole
from featurestore.ingest import ingest
from featurestore.manifest import Manifest, TrainingSet
from featurestore.materialization import Materializer
from featurestore.ondemand import Executor
from featurestore.online import PackedOnlineStore
from featurestore.refreshing import Refresher
from featurestore.served import ServedLog, microseconds
from featurestore.service import ServicePlan, resolve
from featurestore.serving import Bundle
from featurestore.vectors import EntityRows, Reader, rows_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    import pandas as pd
    from feast import FeatureView

    from featurestore.answers import OnlineFeatures

_BRIEF_ROWS = 1000
LAYOUT = 1
"""Version of the packed rows of the online store."""


@dataclass(frozen=True, slots=True)
class LiveChange:
    """What applying the definitions would do to a service that models are served from.

    Attributes:
        models: `(model, version)` of each.
        differences: Between the contract that they are served under and the one to come.
    """

    models: tuple[tuple[str, str], ...]
    differences: tuple[str, ...]


class Store:
    """One feature store: a Feast repo, and the folder of what Steadfeast keeps about it.

    A context manager; leaving it flushes the served log. Safe to share between threads.

    Args:
        config: Section `store` of steadfeast.yaml.

    Raises:
        ConfigError: The repo folder holds no usable feature_store.yaml.
    """

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.repo, self.data = Path(config.repo), Path(config.data)
        self.feast = _feast(self.repo)
        self.served = ServedLog(
            self.data,
            rows_per_file=config.log.rows_per_file,
            rows_waiting=config.log.rows_waiting,
            flush_seconds=config.log.flush_every.total_seconds(),
            when_full=config.log.when_full,
        )
        self._refresher = Refresher(self.feast.config.registry.cache_ttl_seconds)
        self._bundles: dict[str, Bundle] = {}
        self._readers: dict[str, Reader] = {}
        self._views: dict[str, FeatureView] | None = None
        self._materializer: Materializer | None = None
        self._online: PackedOnlineStore | None = None
        self._lock = RLock()

    @classmethod
    def open(cls, config: Path) -> Self:
        """Open the store that the file `config` describes.

        Raises:
            ConfigError: The file, or the feature_store.yaml it leads to, is missing or wrong.
        """
        return cls(load_section(Path(config), "store", StoreConfig))

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
        self._refresher.wait()
        self.served.flush()
        if self._materializer is not None:
            self._materializer.close()
        if self._online is not None:
            self._online.release()

    # definitions

    def apply(self) -> str:
        """Do `feast apply`, keep the contracts for good, and return what Feast says."""
        said = definitions.apply(self.feast.config, self.repo)
        self.refresh()
        for service in self.services():
            self._keep(self.contract(service))
        return said

    def live_changes(self) -> dict[str, LiveChange]:
        """Return service -> what `apply` would change under a model that is live.

        Live is a model that the newest file of the served log names, under the contract that is
        served now: applying makes requests for that contract fail.
        """
        live = {}
        for service in self.services():
            models = self.served.models(service, self.contract(service).sha256)
            if models:
                live[service] = models
        if not live:
            return {}
        changes = {}
        with definitions.preview(self.feast.config, self.repo) as after:
            known = {item.name for item in after.list_feature_services()}
            for service, models in live.items():
                before = self.contract(service)
                if service not in known:
                    changes[service] = LiveChange(models, ("the service is removed",))
                    continue
                lines = difference(before, self._resolve(service, after).contract)
                if lines:
                    changes[service] = LiveChange(models, tuple(lines))
        return changes

    def refresh(self) -> None:
        """Read the registry and the definitions again."""
        with self._lock:
            self.feast.refresh_registry()  # type: ignore[no-untyped-call]
            self._bundles.clear()
            self._views = None

    def _refresh_bundles(self) -> None:
        """Resolve anew what is in use, while requests go on with what they have."""
        self.feast.refresh_registry()  # type: ignore[no-untyped-call]
        fresh = {service: self._resolve(service) for service in tuple(self._bundles)}
        with self._lock:
            self._bundles, self._views = fresh, None

    def services(self) -> list[str]:
        """Return the names of the feature services in the registry."""
        return sorted(item.name for item in self.feast.list_feature_services())

    def bundle(self, service: str) -> Bundle:
        """Return the resolved `service`.

        Raises:
            NotFoundError: There is no such service.
            DefinitionsError: An on-demand view differs between registry and repo folder.
        """
        if self._refresher.is_due():
            self._refresher.start(self._refresh_bundles)
        bundle = self._bundles.get(service)
        if bundle is None:
            with self._lock:
                bundle = self._bundles[service] = self._resolve(service)
        return bundle

    def contract(self, service: str) -> Contract:
        """Return the contract that `service` is served under now."""
        return self.bundle(service).contract

    def kept_contract(self, sha256: str) -> Contract:
        """Return a contract that was applied here once, by its SHA-256 or the start of it.

        Raises:
            NotFoundError: No applied contract starts so, or more than one does.
        """
        known = [path.stem for path in (self.data / "contracts").glob("*.json")]
        found = [name for name in known if sha256 and name.startswith(sha256)]
        if len(found) != 1:
            raise NotFoundError("contract", sha256, found or known)
        text = (self.data / "contracts" / f"{found[0]}.json").read_text(encoding="utf-8")
        return Contract(json.loads(text))

    def _resolve(self, service: str, feast: FeatureStore | None = None) -> Bundle:
        plan = resolve(feast or self.feast, service)
        live = definitions.on_demand_views(self.repo) if plan.on_demand else {}
        functions = {
            view.name: definitions.function_of(view.view, live, self.repo)
            for view in plan.on_demand
        }
        executors = tuple(
            Executor(
                view, functions[view.name], view.view.mode, singleton=bool(view.view.singleton)
            )
            for view in plan.on_demand
        )
        return Bundle(plan, executors, describe(plan, functions, self.repo, LAYOUT))

    def _keep(self, contract: Contract) -> None:
        path = self.data / "contracts" / f"{contract.sha256}.json"
        if not path.exists():
            write_whole(path, contract.canonical())

    # training

    def training_set(
        self,
        entities: pa.Table | pd.DataFrame,
        service: str,
        *,
        label: str | None = None,
        as_known_at: datetime | None = None,
    ) -> TrainingSet:
        """Join `service` to an entity frame at each row's own time, and keep it with a manifest.

        Args:
            entities: Join keys, request fields and `event_timestamp` (UTC); other columns, such
                as the label and `known_at`, stay beside the features.
            service: The feature service.
            label: Which of the columns is the label.
            as_known_at: Knowledge time: nothing after it may count.

        Raises:
            NotFoundError: There is no such service.
            EntityRowsError: A column is missing or wrong.
            FutureKnowledgeError: Rows or labels lie after `as_known_at`.
        """
        bundle = self.bundle(service)
        self._keep(bundle.contract)
        return training.build(
            self.feast,
            bundle.plan,
            bundle.executors,
            entities,
            contract=bundle.contract.sha256,
            folder=self.data / "training",
            label=label,
            as_known_at=as_known_at,
        )

    def replay(self, manifest: Path) -> pa.Table:
        """Compute a training set anew, and return it if its content is the same to the bit.

        Raises:
            ManifestError: The manifest or its entity frame is gone or altered.
            ReplayError: The content differs; says what is gone or has changed since.
        """
        before = TrainingSet.load(Path(manifest))
        bundle = self.bundle(before.manifest.service)
        gone, changed = self._source_changes(before.manifest, bundle.plan)
        if gone:
            raise ReplayError(before.manifest.id, gone)
        table = before.entities
        features = self.point_in_time(before.manifest.service, table)
        for name, column in zip(features.column_names, features.columns, strict=True):
            table = table.append_column(name, column)
        if content_sha256(table) != before.manifest.sha256:
            reasons = [*self._contract_changes(before.manifest, bundle.contract), *changed]
            if not reasons:
                reasons = ["sources and contract are the same, yet the values are not"]
            raise ReplayError(before.manifest.id, reasons)
        return table

    def point_in_time(self, service: str, entities: pa.Table) -> pa.Table:
        """Return the features alone, of each row of `entities` at its `event_timestamp`."""
        bundle = self.bundle(service)
        frame = training.entity_table(bundle.plan, entities)
        return training.point_in_time(self.feast, bundle.plan, bundle.executors, frame)

    def _source_changes(self, manifest: Manifest, plan: ServicePlan) -> tuple[list[str], list[str]]:
        now = {
            (item["view"], item["path"]): item["sha256"]
            for item in training.sources(self.feast, plan)
        }
        gone, changed = [], []
        for item in manifest.sources:
            if item["sha256"] is None:
                continue
            digest = now.get((item["view"], item["path"]))
            if digest is None:
                gone.append(f"source {item['path']} of view {item['view']} is gone")
            elif digest != item["sha256"]:
                changed.append(
                    f"source {item['path']} of view {item['view']} changed from "
                    f"{item['sha256'][:16]} to {digest[:16]}"
                )
        return gone, changed

    def _contract_changes(self, manifest: Manifest, contract: Contract) -> list[str]:
        if manifest.contract == contract.sha256:
            return []
        return self._differences(manifest.contract, contract) or [
            f"the contract changed from {manifest.contract} to {contract.sha256}"
        ]

    def _differences(self, asked: str, served: Contract) -> list[str]:
        path = self.data / "contracts" / f"{asked}.json"
        if not path.is_file():
            return []
        return difference(Contract(json.loads(path.read_text(encoding="utf-8"))), served)

    # serving

    def online_features(
        self,
        service: str,
        entity_rows: EntityRows,
        *,
        request_time: datetime | None = None,
        contract: str | None = None,
    ) -> OnlineFeatures:
        """Return the features of each entity, as training would have seen them at that time.

        Args:
            service: The feature service.
            entity_rows: Join keys and request fields, as a table, a mapping for each row, or a
                mapping of columns; other columns are ignored.
            request_time: What TTLs are measured from; now, when absent.
            contract: Serve only under the contract with this SHA-256.

        Raises:
            NotFoundError: There is no such service.
            ContractMismatchError: Another contract would be served.
            EntityRowsError: A column is missing or wrong.
        """
        bundle = self.bundle(service)
        served = bundle.contract.sha256
        if contract and contract != served:
            differences = self._differences(contract, bundle.contract)
            raise ContractMismatchError(service, contract, served, differences)
        at = time_ns() // 1000 if request_time is None else microseconds(request_time)
        return self._reader(service, bundle).read(entity_rows, at)

    async def online_features_async(
        self,
        service: str,
        entity_rows: EntityRows,
        *,
        request_time: datetime | None = None,
        contract: str | None = None,
    ) -> OnlineFeatures:
        """Do `online_features` without holding up the event loop.

        What waits for no network and runs no user's code is answered at once: it takes less
        time than a thread takes to wake. The rest runs in a thread.
        """
        ask = partial(
            self.online_features,
            service,
            entity_rows,
            request_time=request_time,
            contract=contract,
        )
        if self.online.embedded and rows_in(entity_rows) <= _BRIEF_ROWS and self.is_plain(service):
            return ask()
        return await asyncio.to_thread(ask)

    def is_plain(self, service: str) -> bool:
        """Say whether answering for `service` runs no on-demand view."""
        return not self.bundle(service).executors

    def _reader(self, service: str, bundle: Bundle) -> Reader:
        reader = self._readers.get(service)
        if reader is None or reader.bundle is not bundle:
            reader = self._readers[service] = Reader(self.online, self.feast.config, bundle)
        return reader

    def audit(
        self, service: str, *, start: datetime | None = None, end: datetime | None = None
    ) -> AuditReport:
        """Check I1 over every key, I2 and I11 over what was served from `start` to before `end`.

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
        progress: bool = False,
    ) -> dict[str, int]:
        """Bring the online store to `until`: for each key, the newest row known by then.

        Args:
            until: Rows whose event or created time lies after it are left for later.
            since: Read only what became known after it. Absent: where the last call for the view
                ended, which includes rows that were written late where the source has a created
                column; everything, on the first call.
            views: Names of feature views; all that are online when empty.
            progress: Show a bar.

        Returns:
            Feature view -> rows written.

        Raises:
            NotFoundError: There is no such feature view.
        """
        start = None if since is None else microseconds(since)
        chosen = self._online_views(views)
        return self._mover().run(chosen, start, microseconds(until), progress=progress)

    def ingest(self, view: str, rows: pa.Table, *, known_at: datetime | None = None) -> datetime:
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
            SourceError: See `featurestore.ingest`.
        """
        return ingest(self.feast.config, self._online_views([view])[0], rows, known_at)

    def write_online(self, view: str, rows: pa.Table) -> int:
        """Write rows of one feature view to the online store, as a stream does.

        Args:
            view: Its name.
            rows: Join keys, features, and the source's timestamp and created columns.

        Returns:
            Rows written; a row that is older than what is there counts, and changes nothing.
        """
        chosen = self._online_views([view])[0]
        return self._mover().write(chosen, rows.to_batches())

    def erase(
        self, entities: Sequence[Mapping[str, Any]], *, views: Sequence[str] = ()
    ) -> dict[str, int]:
        """Remove what the online store keeps for entities: a right-to-erasure request.

        Of a view with more join keys than are given, every row that has those given goes. Sources,
        training sets and the served log are not touched: erase there too, and before the next
        materialize, which brings back what the sources still hold.

        Args:
            entities: Values of join keys, under the views' own names; text is converted.
            views: Names of feature views; all that have one of the keys when empty.

        Returns:
            Feature view -> rows removed.

        Raises:
            NotFoundError: There is no such view, or no view that has such a join key.
            InvalidKeysError: A value does not fit the key's type.
        """
        chosen = self._online_views(views)
        keys = pa.Table.from_pylist([dict(entity) for entity in entities])
        known = {column.name for view in chosen for column in view.entity_columns}
        for name in keys.column_names:
            if name not in known:
                raise NotFoundError("join key", name, known)
        return {
            view.name: self.online.erase(self.feast.config, view, keys)
            for view in chosen
            if not {column.name for column in view.entity_columns}.isdisjoint(keys.column_names)
        }

    def watermark(self, view: str) -> datetime | None:
        """Return the time up to which `view` was materialized; None before the first time."""
        return self._mover().watermark(view)

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
                    "featurestore.online.SQLiteOnlineStore or featurestore.online.RedisOnlineStore"
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
                    self.feast.config, self.online, self.data / "materialized.json"
                )
            return self._materializer

    def _online_views(self, names: Sequence[str]) -> list[FeatureView]:
        if self._views is None:
            # The registry's own list: Feast's strips views without entities of their dummy key.
            views = self.feast.registry.list_feature_views(self.feast.project)
            self._views = {view.name: view for view in views if view.online}
        for name in names:
            if name not in self._views:
                raise NotFoundError("online feature view", name, self._views)
        return [self._views[name] for name in names or sorted(self._views)]


def _feast(repo: Path) -> FeatureStore:
    file = repo / "feature_store.yaml"
    if not file.is_file():
        raise ConfigError(file, [("", "is missing; `store.repo` must be the Feast repo's folder")])
    try:
        return FeatureStore(repo_path=str(repo))
    except (ValidationError, ValueError) as error:
        raise ConfigError(file, [("", str(error))]) from error
