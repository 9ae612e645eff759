"""Feast's compute engine: `feast materialize` by the path that `Store.materialize` takes.

Above `materialization`. Feast's own engine makes a message per value; a column of int64 with a
null has by then been a column of floats, and a time whole seconds. Here columns go from DuckDB
to packed rows as they are. In `feature_store.yaml`:

    batch_engine:
      type: steadfeast.DuckDBComputeEngine

How far each view has come is kept in the online store, whatever Feast's registry says: what was
lost or no longer matches the definitions is filled from the start. `feast materialize-incremental`
also finds rows that were written late; `feast materialize START END` reads what became known from
START on, and replaces what is online where nothing in the source is from before START.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from feast.infra.common.materialization_job import MaterializationJobStatus
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.repo_config import FeastConfigBaseModel

from steadfeast.featurestore.errors import InvalidStoreError
from steadfeast.featurestore.materialization.materializer import Materializer
from steadfeast.featurestore.offline import DuckDBOfflineStore
from steadfeast.featurestore.online import PackedOnlineStore
from steadfeast.featurestore.tables import micros

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask

log = logging.getLogger(__name__)


class DuckDBComputeEngineConfig(FeastConfigBaseModel):
    """Section `batch_engine` of `feature_store.yaml`.

    Attributes:
        type: The plugin. Memory and threads are the offline store's.
    """

    type: Literal["steadfeast.DuckDBComputeEngine"] = "steadfeast.DuckDBComputeEngine"


class DuckDBComputeEngine(ComputeEngine):
    """Moves columns from DuckDB to the online store."""

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
    ) -> None:
        """Do nothing: the engine keeps nothing."""

    def teardown_infra(self, project: str, fvs: Sequence[Any], entities: Sequence[Any]) -> None:
        """Do nothing: the engine keeps nothing."""

    def _materialize_one(
        self,
        registry: Any,  # noqa: ARG002 - Feast's signature
        task: MaterializationTask,
        **kwargs: Any,  # noqa: ARG002
    ) -> MaterializationJob:
        """Move one view.

        Raises:
            InvalidStoreError: The online or the offline store is not one of ours.
            SourceError: The view's source cannot be read.
            StoreUnavailableError: The online store does not answer.
        """
        store, view = self.online_store, task.feature_view
        if not isinstance(store, PackedOnlineStore):
            raise InvalidStoreError(
                type(store).__name__,
                "keeps no order of writes; use steadfeast.SQLiteOnlineStore or "
                "steadfeast.RedisOnlineStore",
            )
        if not isinstance(self.offline_store, DuckDBOfflineStore):
            raise InvalidStoreError(
                type(self.offline_store).__name__,
                "does not read by columns; use steadfeast.DuckDBOfflineStore",
            )
        now = micros(datetime.now(UTC))
        whole = task.disable_event_timestamp
        since = None if whole else micros(_aware(task.start_time))
        until = now if whole else micros(_aware(task.end_time))
        with ExitStack() as open_:
            mover = open_.enter_context(closing(Materializer(self.repo_config, store, None)))
            tell: Callable[[int], object] = _silent
            if task.tqdm_builder is not None:  # the total is not known before the rows are read
                tell = open_.enter_context(closing(task.tqdm_builder(0))).update
            # Feast asks for a range of event times, also of rows that were created after it.
            _, note = mover.step(view, since, until, rebuild=whole, tell=tell, known_by=now)
        if note:
            log.warning("feature view %r: %s", view.name, note)
        name = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(name, MaterializationJobStatus.SUCCEEDED)


def _silent(rows: int) -> None:
    """Say nothing."""


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
