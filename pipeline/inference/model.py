"""One model, ready to predict from entity keys: read, predict, log.

Above `registry`, below `edge`. A version is served under the contract that it was trained with or
not at all. Which version answers when none is asked for is the registry's champion, followed while
the model is open; a version that does not load leaves the last good one serving.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event, RLock, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from steadfeast.featurestore import Store
from steadfeast.featurestore.errors import NotFoundError, SteadfeastError, UserError
from steadfeast.featurestore.tracing import span
from steadfeast.pipeline.config import load
from steadfeast.pipeline.registry import LoadedModel, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import pyarrow as pa

    from steadfeast.featurestore.serving import EntityRows, OnlineFeatures
    from steadfeast.measures import Floats
    from steadfeast.pipeline.config import ModelConfig

LOOK_SECONDS = 1.0
"""How often the registry is asked who the champion is."""

_LOADED = 4
"""Versions that stay loaded beside the one that serves."""


class NoChampionError(UserError):
    """Nothing can be predicted: no version has been promoted, or none that loads.

    Attributes:
        model: Name of the model.
    """

    def __init__(self, model: str, problem: str) -> None:
        self.model = model
        super().__init__(f"model {model!r}: {problem}")


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says to the rows of one request.

    Attributes:
        values: Of a binary model the probability of the positive class, shape (rows,); of several
            classes one per class, shape (rows, classes); else a value, shape (rows,).
        classes: What the columns of several classes mean.
        version: Which version said it.
        contract: SHA-256 of the contract that its features were read under.
        request_ids: Names of the rows in the served log.
        features: What was read.
    """

    values: Floats
    classes: tuple[Any, ...]
    version: str
    contract: str
    request_ids: tuple[str, ...]
    features: OnlineFeatures


class Model:
    """A registered model and the store that it reads; a context manager that closes both.

    Safe to share between threads.

    Args:
        store: Where features are read and served rows are logged.
        registry: Where versions are.
        name: Of the model.
        config: Its section of the configuration.
        spent: Called with the name of a stage (`read`, `predict`, `log`) and the seconds it took.

    Attributes:
        name: As given.
        config: As given.
        problem: Why the champion of the registry does not serve; empty if it does.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        name: str,
        config: ModelConfig,
        spent: Callable[[str, float], object] = lambda _stage, _seconds: None,
    ) -> None:
        self.store, self.name, self.config = store, name, config
        self._registry, self._spent = registry, spent
        self._lock, self._closing = RLock(), Event()
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._champion: LoadedModel | None = None
        self.problem = "no version has been promoted"
        self._owned: Store | None = None
        self.look()
        self._thread = Thread(target=self._follow, name=f"follow-{name}", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, config: Path | str, name: str) -> Self:
        """Open the model `name` that the file `config` describes.

        Raises:
            ConfigError: The file is missing or wrong.
            NotFoundError: It describes no such model.
            RegistryError: MLflow cannot open its backend.
        """
        from pathlib import Path  # noqa: PLC0415 - shadowed by the type

        pipeline, section = load(Path(config))
        if name not in pipeline.models:
            raise NotFoundError("model", name, pipeline.models)
        store = Store(section, file=Path(config))
        model = cls(store, Registry.open(pipeline), name, pipeline.models[name])
        model._owned = store
        return model

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
        """Follow no longer; close the store if `open` made it."""
        self._closing.set()
        self._thread.join()
        if self._owned is not None:
            self._owned.close()

    @property
    def version(self) -> str:
        """The version that answers when none is asked for; empty if there is none."""
        champion = self._champion
        return "" if champion is None else champion.version

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that are loaded, the one that serves included."""
        with self._lock:
            names = {*self._loaded, *([self.version] if self.version else [])}
        return tuple(sorted(names, key=lambda name: (len(name), name)))

    def loaded(self, version: str = "") -> LoadedModel:
        """Return a version, loaded on demand; the one that serves, when none is named.

        Raises:
            NoChampionError: None is named, and none serves.
            NotFoundError: There is no such version.
            UntrustedModelError: Its file is not the one that was registered.
        """
        champion = self._champion
        if not version or (champion is not None and champion.version == version):
            if champion is None:
                raise NoChampionError(self.name, self.problem)
            return champion
        with self._lock:
            if version not in self._loaded:
                self._loaded[version] = self._registry.load(self.name, version, serving=True)
                while len(self._loaded) > _LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(version)
            return self._loaded[version]

    def predict(
        self,
        rows: EntityRows,
        *,
        request_ids: Sequence[str],
        version: str = "",
        request_time: datetime | None = None,
    ) -> Predictions:
        """Read the features of each row, predict, and log both; nothing is answered unlogged.

        Args:
            rows: Join keys and request fields, as `Store.online_features` takes them.
            request_ids: One per row, unique for good; labels refer to them.
            version: Of the model; the champion's, when empty.
            request_time: What TTLs are measured from; now, when absent.

        Raises:
            NoChampionError, NotFoundError, UntrustedModelError: See `loaded`.
            ContractMismatchError: The version's contract cannot be served any more.
            EntityRowsError: A column is missing or wrong.
            LogRefusedError: The ids are not one text a row.
        """
        model = self.loaded(version)
        at = datetime.now(UTC) if request_time is None else request_time
        with self._timed("read", request_ids):
            got = self.store.online_features(
                self.config.service, rows, request_time=at, contract=model.contract
            )
            table = got.table
        with self._timed("predict", request_ids):
            values = model.predict(table) if got.rows else np.empty(0)
        classes = model.facts.target.classes if values.ndim > 1 else ()
        with self._timed("log", request_ids):
            if got.rows:
                self.store.served.append(
                    self.config.service,
                    got,
                    request_ids=request_ids,
                    request_time=at,
                    model=self.name,
                    model_version=model.version,
                    # Of several classes the log has the place of the likeliest, as scored rows do.
                    predictions=values if values.ndim == 1 else values.argmax(axis=1).astype(float),
                )
        named = tuple(request_ids)
        return Predictions(values, classes, model.version, model.contract, named, got)

    def entities(self, version: str = "") -> dict[str, pa.DataType]:
        """Return the columns that a request gives, and their types.

        Raises:
            NoChampionError, NotFoundError, ContractMismatchError: See `predict`.
        """
        contract = self.loaded(version).contract
        plan = self.store.bundle(self.config.service, contract).plan
        return dict(plan.entity_columns)

    def look(self) -> None:
        """Load what the registry now calls the champion; keep the last good one if that fails."""
        try:
            version = self._registry.champion_version(self.name)
            if version is None or version == self.version:
                self.problem = "" if self._champion else "no version has been promoted"
                return
            model = self._registry.load(self.name, version, serving=True)
            self.store.bundle(self.config.service, model.contract)
        except SteadfeastError as error:
            self.problem = f"version {version} does not load: {error}"
            return
        with self._lock:
            before, self._champion = self._champion, model
            if before is not None:
                self._loaded[before.version] = before
        self.problem = ""

    def _follow(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            self.look()

    @contextmanager
    def _timed(self, stage: str, request_ids: Sequence[str]) -> Iterator[None]:
        began = perf_counter()
        with span(stage, self.name, request_ids):
            yield
        self._spent(stage, perf_counter() - began)
