"""One question to a model, by whatever protocol it came: rows checked, named, asked, counted.

Above `model` and `batching`, below `http_app` and `grpc_server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pyarrow as pa

from steadfeast.featurestore.errors import NotFoundError, RequestError, SteadfeastError
from steadfeast.featurestore.server import Named, TooLargeError, answer_of, check_rows, column_of
from steadfeast.featurestore.tables import cast_array
from steadfeast.pipeline.inference.batching import Batcher, Waiting
from steadfeast.pipeline.inference.model import Model, NoChampionError
from steadfeast.pipeline.registry import UntrustedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from steadfeast.featurestore import Store
    from steadfeast.pipeline.config import PipelineConfig
    from steadfeast.pipeline.inference.metrics import Figures
    from steadfeast.pipeline.inference.model import Predictions
    from steadfeast.pipeline.registry import Registry


def status_of(error: SteadfeastError) -> tuple[grpc.StatusCode, int]:
    """Return what an error is over gRPC and over HTTP."""
    if isinstance(error, NoChampionError):
        return grpc.StatusCode.UNAVAILABLE, 503
    if isinstance(error, UntrustedModelError):
        return grpc.StatusCode.FAILED_PRECONDITION, 409
    answer = answer_of(error)
    return answer.grpc, 413 if isinstance(error, TooLargeError) else answer.http


class Models:
    """The models of one edge, each with a thread that answers for it.

    Args:
        config: Which models there are.
        store: What they read.
        registry: Where their versions are.
        figures: Where everything is counted.
    """

    def __init__(
        self, config: PipelineConfig, store: Store, registry: Registry, figures: Figures
    ) -> None:
        self._figures, self._store = figures, store
        self._models: dict[str, Model] = {}
        self._batchers: dict[str, Batcher] = {}
        for name, section in config.models.items():
            model = Model(store, registry, name, section, _stages(figures, name))
            self._models[name], self._batchers[name] = model, Batcher(model)

    def close(self) -> None:
        """Answer what has come, and follow the registry no longer."""
        for batcher in self._batchers.values():
            batcher.close()
        for model in self._models.values():
            model.close()

    @property
    def problems(self) -> dict[str, str]:
        """Model -> why nothing of it serves."""
        return {name: m.problem for name, m in self._models.items() if not m.version}

    def show(self) -> None:
        """Bring the figures up to date."""
        for name, model in self._models.items():
            self._figures.serves(name, model.version, model.problem)
        for (service, kind), count in self._store.served.waiting().items():
            self._figures.waiting(service, kind, count)

    def model(self, name: str) -> Model:
        """Return a model.

        Raises:
            NotFoundError: None of that name is configured.
        """
        if name not in self._models:
            raise NotFoundError("model", name, self._models)
        return self._models[name]

    def table(self, name: str, version: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
        """Return JSON columns as the rows of a request.

        Raises:
            RequestError: A column is missing, of another length, or does not fit its type.
        """
        wanted = self.model(name).entities(version)
        missing = [column for column in wanted if column not in columns]
        if missing:
            raise _missing(missing[0], wanted)
        lengths = {len(columns[column]) for column in wanted}
        if len(lengths) > 1:
            raise RequestError("entities", f"columns have different lengths: {sorted(lengths)}")
        return pa.table(
            {
                column: column_of(f"entities.{column}", columns[column], to)
                for column, to in wanted.items()
            }
        )

    def typed(self, name: str, version: str, rows: pa.Table) -> pa.Table:
        """Return Arrow rows in the types of a request.

        Raises:
            RequestError: A column is missing or does not fit its type.
        """
        wanted = self.model(name).entities(version)
        made = {}
        for column, to in wanted.items():
            if column not in rows.column_names:
                raise _missing(column, wanted)
            try:
                made[column] = cast_array(rows.column(column).combine_chunks(), to, column)
            except SteadfeastError as error:
                raise RequestError(f"entities.{column}", str(error)) from error
        return pa.table(made)

    def ask(
        self,
        name: str,
        version: str,
        rows: pa.Table,
        named: Named,
        request_time: datetime | None = None,
    ) -> Predictions:
        """Predict; wait for the answer.

        Raises:
            NotFoundError: There is no such model or version.
            Everything that `Model.predict` raises.
        """
        self.model(name)
        check_rows("entities", rows.num_rows)
        waiting = Waiting(rows, named.ids(rows.num_rows), version, request_time)
        got = self._batchers[name].ask(waiting).result()
        self._figures.predicted(name, got)
        return got

    def count(self, name: str, protocol: str, code: grpc.StatusCode) -> None:
        """Count a request and its outcome."""
        self._figures.request(name if name in self._models else "", protocol, code.name)


def _missing(column: str, wanted: Mapping[str, Any]) -> RequestError:
    return RequestError("entities", f"has no column {column!r}; give {sorted(wanted)}")


def _stages(figures: Figures, name: str) -> Any:
    return lambda stage, seconds: figures.spent(name, stage, seconds)
