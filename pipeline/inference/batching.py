"""Requests that arrive together are answered together.

Below `edge`. One thread takes whatever has come while it was at work, and waits a moment for those
who were answered together last time; one client alone waits for nobody.
Reading features, a call of an estimator and an entry of the log cost about as much for fifty rows
as for one.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

import pyarrow as pa

from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.pipeline.inference.model import Predictions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steadfeast.pipeline.inference.model import Model

PATIENCE_SECONDS = 0.002
"""How long the ones that came together last time are waited for."""
MOST_ROWS = 1000
"""Rows that are answered at once; a request of more is answered by itself."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request.

    Attributes:
        rows: Join keys and request fields, in the types of `Model.entities`.
        request_ids: One per row.
        version: Of the model; the champion's, when empty.
        request_time: As `Model.predict` takes it.
        answer: What becomes of it.
    """

    rows: pa.Table
    request_ids: Sequence[str]
    version: str
    request_time: datetime | None
    answer: Future[Predictions] = field(default_factory=Future)


class Batcher:
    """The thread that answers for one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._queue: SimpleQueue[Waiting | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=f"predict-{model.name}")
        self._thread.start()

    def ask(self, waiting: Waiting) -> Future[Predictions]:
        """Take a request in; return what becomes of it."""
        self._queue.put(waiting)
        return waiting.answer

    def close(self) -> None:
        """Answer what has come, then end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        before = 1
        while True:
            batch = self._batch(before)
            before = len(batch)
            asked = [one for one in batch if one is not None]
            for together in _alike(asked):
                self._answer(together)
            if len(asked) < len(batch):
                return

    def _batch(self, before: int) -> list[Waiting | None]:
        """Wait for a request; return it and what has come with it.

        As many as came together last time are likely to come again: whoever was answered asks
        next. They are waited for, for a moment that is short beside the answer.
        """
        batch = [self._queue.get()]
        until = monotonic() + PATIENCE_SECONDS
        while not self._queue.empty() or (len(batch) < before and batch[-1] is not None):
            try:
                batch.append(self._queue.get(timeout=max(0.0, until - monotonic())))
            except Empty:
                break
        return batch

    def _answer(self, requests: list[Waiting]) -> None:
        """Answer requests at once; where that fails, one by one, so that none fails for others."""
        first = requests[0]
        try:
            got = self._model.predict(
                first.rows if len(requests) == 1 else pa.concat_tables([r.rows for r in requests]),
                request_ids=[name for request in requests for name in request.request_ids],
                version=first.version,
                request_time=first.request_time,
            )
        except SteadfeastError as error:
            if len(requests) == 1:
                first.answer.set_exception(error)
                return
            for request in requests:
                self._answer([request])
            return
        except BaseException as error:  # noqa: BLE001 - a bug is the caller's to see, and not the end
            for request in requests:
                request.answer.set_exception(error)
            return
        start = 0
        for request in requests:
            end = start + request.rows.num_rows
            request.answer.set_result(
                Predictions(
                    got.values[start:end], got.classes, got.version, got.contract,
                    got.request_ids[start:end], got.features,
                )
            )  # fmt: skip
            start = end


def _alike(requests: Sequence[Waiting]) -> list[list[Waiting]]:
    """Put together what can be asked at once: one version, one time, and no more than so many."""
    found: list[list[Waiting]] = []
    open_: dict[tuple[str, datetime | None], tuple[list[Waiting], int]] = {}
    for request in requests:
        key = request.version, request.request_time
        together, rows = open_.get(key, ([], 0))
        if not together or rows + request.rows.num_rows > MOST_ROWS:
            together, rows = [], 0
            found.append(together)
        together.append(request)
        open_[key] = together, rows + request.rows.num_rows
    return found
