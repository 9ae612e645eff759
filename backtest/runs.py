"""The pipeline's runs over a history: each is done once, whichever policies ask for it, and kept.

Above `history`. A run is the pipeline's own: split, checks of the data, a fit that is judged, gates
against the model that serves, and the fit on everything known. Of the model that serves only its
predictions are kept, so nothing is unpickled, and a backtest that was cut off goes on where it
stood.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from steadfeast.backtest.history import ROW
from steadfeast.featurestore.tables import whole_file
from steadfeast.monitor.decisions import gain_of
from steadfeast.pipeline import recipes
from steadfeast.pipeline.training import (
    Challenge,
    Live,
    Model,
    challenge,
    fit_on,
    refit,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from steadfeast.backtest.history import History


@dataclass(frozen=True, slots=True)
class Run:
    """What one run came to.

    Attributes:
        as_of: Knowledge time of its training set.
        refused: Why its model does not serve; empty if it does.
        metrics: Figures of the judged fit on the hold-out.
        gain: How much better its judged fit was than the model that served, on the same rows.
        error: Standard error of the gain; None where nothing was compared.
        known_until: Event time of the newest row that it was fitted on.
        known_since: And of the oldest.
        fits: How many fits it took.
        seconds: How long it took.
        plain: Whether it was the recipe alone.
    """

    as_of: datetime
    refused: str
    metrics: Mapping[str, float]
    gain: float | None
    error: float | None
    known_since: datetime
    known_until: datetime
    fits: int
    seconds: float
    plain: bool = False

    @property
    def cost(self) -> float:
        """What it took, of a run that ends in a model that serves."""
        return self.fits / 2 if self.refused else 1.0


class Runs:
    """Runs of the pipeline over one history.

    Args:
        history: What there is to learn from.
        here: Folder that the recipe and modules of one's own are in.
        kept: Folder for what was done; of other settings another folder inside it.
        threads: Native threads that the recipe's libraries may use.
    """

    def __init__(self, history: History, here: Path, kept: Path, threads: int = 1) -> None:
        self._history, self._here, self._threads = history, here, threads
        config = history.config
        code = recipes.file_of(config.recipe, here).read_bytes()
        known = hashlib.sha256(np.ascontiguousarray(history.known).tobytes()).hexdigest()
        identity = [
            history.training.manifest.sha256,
            known,
            config.model_dump_json(),
            hashlib.sha256(code).hexdigest(),
        ]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self._kept = kept / digest[:16]
        self._kept.mkdir(parents=True, exist_ok=True)
        self._fit = recipes.load_function(config.recipe, here)

    def run(self, as_of: datetime, champion: Run | None, *, plain: bool = False) -> Run:
        """Return the run at `as_of` against the model that serves; done if it was not before.

        A plain one is what a script under cron does: the recipe, on everything that is known.
        """
        rival = "first" if champion is None else _stamp(champion.as_of)
        rival = "plain" if plain else rival
        path = self._kept / f"run-{_stamp(as_of)}-{rival}.json"
        if path.is_file():
            return _read(path)
        began = time.perf_counter()
        found, fits, parts = self._plain(as_of) if plain else self._run(as_of, champion)
        ended = time.perf_counter() - began
        table = parts.table.column("event_timestamp")
        ends = [table[0].as_py(), table[len(table) - 1].as_py()] if len(table) else [as_of] * 2
        refused, metrics = found.refused, {} if found.judged is None else found.judged.metrics
        gain, error = gain_of((gate.difference, gate.low, gate.high) for gate in found.gates)
        run = Run(
            as_of,
            refused,
            dict(metrics),
            gain,
            error,
            ends[0],
            ends[1],
            fits,
            round(ended, 3),
            plain,
        )
        with whole_file(path) as partial:
            partial.write_text(json.dumps(asdict(run), default=datetime.isoformat))
        return run

    def predictions(self, run: Run) -> np.ndarray:
        """Return what the model of a run says of each row from its hold-out on; NaN before."""
        return np.load(self._path(run.as_of, run.plain), mmap_mode="r")  # type: ignore[no-any-return]

    def _plain(self, as_of: datetime) -> tuple[Any, int, Any]:
        training, config = self._history.known_by(as_of), self._history.config
        with recipes.limited(self._threads):
            fitted = fit_on(self._fit, training, training.table, config, self._here)
            self._keep(as_of, Model(fitted, self._history.target), as_of, plain=True)
        parts = split(training.table, config, as_of)
        return Challenge(parts, ()), 1, parts

    def _run(self, as_of: datetime, champion: Run | None) -> tuple[Any, int, Any]:
        training, config = self._history.known_by(as_of), self._history.config
        live = None if champion is None else self._live(champion)
        with recipes.limited(self._threads):
            found = challenge(
                training,
                self._fit,
                config,
                as_of,
                live,
                folder=self._here,
                target=self._history.target,
            )
            if found.judged is None:
                return found, 0, found.split
            if found.refused:
                return found, 1, found.split
            path = self._path(as_of)
            if path.is_file():
                return found, 2, found.split
            serving = refit(training, self._fit, config, found.judged, folder=self._here)
            self._keep(as_of, serving, found.split.start)
        return found, 2 if config.refit == "all" else 1, found.split

    def _keep(self, as_of: datetime, model: Model, start: datetime, *, plain: bool = False) -> None:
        """Keep what a model says of every row from `start` on."""
        whole = self._history.training.table
        first = self._history.rows(start, max(start, as_of)).start
        said = self._history.target.aligned(model.predict(whole.slice(first)), model.target.classes)
        every = np.full((whole.num_rows, *said.shape[1:]), np.nan, np.float32)
        every[first:] = said
        with whole_file(self._path(as_of, plain)) as partial, partial.open("wb") as file:
            np.save(file, every)

    def _live(self, champion: Run) -> Live:
        said = self.predictions(champion)

        def predict(table: pa.Table) -> np.ndarray:
            return np.asarray(said[table.column(ROW).to_numpy()], np.float64)

        training = self._history.training
        return Live(
            version=champion.as_of.isoformat(),
            predict=predict,
            features=training.features,
            classes=self._history.target.classes,
            as_of=champion.as_of,
            trained_before=champion.as_of + timedelta(microseconds=1),
            contract=training.manifest.contract,
        )

    def _path(self, as_of: datetime, plain: bool = False) -> Path:
        return self._kept / f"{'plain' if plain else 'served'}-{_stamp(as_of)}.npy"


def _stamp(at: datetime) -> str:
    return f"{at:%Y%m%dT%H%M%S}"


def _read(path: Path) -> Run:
    given = json.loads(path.read_text(encoding="utf-8"))
    for name in ("as_of", "known_since", "known_until"):
        given[name] = datetime.fromisoformat(given[name])
    return Run(**given)
