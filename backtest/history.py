"""Every labelled example of a model with its features, to be looked at as of any moment.

Bottom of `backtest`. A feature of a row is what was known at the row's own time, so one training
set of the whole history holds every earlier one: the training set as known at a moment is the
rows that lay before it and whose label was known by then. It is built once, by the store, and
shared by every policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore import Store
from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.tables import EVENT_TIMESTAMP, TIMESTAMP
from steadfeast.featurestore.training import KNOWN_AT
from steadfeast.pipeline.training import examples, target_of

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.featurestore import TrainingSet
    from steadfeast.pipeline.config import ModelConfig
    from steadfeast.pipeline.recipes import Target

ROW = "__steadfeast_row"
"""Column with the number of each row: how predictions that are kept are found again."""


class NoHistoryError(UserError):
    """There is nothing to replay.

    Attributes:
        path: The file of the examples.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} holds no labelled example that is known by now")


@dataclass(frozen=True, slots=True)
class History:
    """All examples of a model, by time.

    Attributes:
        training: Their training set, ordered by event time, with the column `ROW`.
        config: How the model is retrained.
        target: What it predicts.
        times: Event times, `datetime64[us]` in UTC, shape (rows,).
        known: When the labels became known, likewise.
    """

    training: TrainingSet
    config: ModelConfig
    target: Target
    times: np.ndarray
    known: np.ndarray

    @classmethod
    def build(
        cls, path: Path, config: ModelConfig, *, label_delay: timedelta = timedelta(0)
    ) -> History:
        """Build the training set of everything.

        Args:
            path: The configuration file.
            config: How the model is retrained.
            label_delay: Labels are taken to be known this much later than they were.

        Raises:
            NoHistoryError: There is no labelled example.
        """
        everything = config.model_copy(update={"since": None})
        entities = examples(everything, datetime.now(UTC))
        if not entities.num_rows:
            raise NoHistoryError(config.entities)
        with Store.open(path) as store:
            training = store.training_set(entities, config.service, label=config.label)
        return cls.of(training, config, label_delay=label_delay)

    @classmethod
    def of(
        cls, training: TrainingSet, config: ModelConfig, *, label_delay: timedelta = timedelta(0)
    ) -> History:
        """Return a training set, which has `known_at`, as a history."""
        table = training.table.sort_by([(EVENT_TIMESTAMP, "ascending")])
        if label_delay:
            column = table.column(KNOWN_AT).cast(TIMESTAMP)
            later = pc.add(column, pa.scalar(label_delay, pa.duration("us")))
            table = table.set_column(table.column_names.index(KNOWN_AT), KNOWN_AT, later)
        table = table.append_column(ROW, pa.array(range(table.num_rows), pa.int64()))
        return cls(
            replace(training, table=table),
            config,
            target_of(table, config),
            _instants(table, EVENT_TIMESTAMP),
            _instants(table, KNOWN_AT),
        )

    @property
    def start(self) -> datetime:
        """Of the first example."""
        return _datetime(self.times[0])

    @property
    def end(self) -> datetime:
        """Of the last example."""
        return _datetime(self.times[-1])

    @property
    def truth(self) -> np.ndarray:
        """The labels as measures read them, shape (rows,)."""
        return self.target.truth(self.training.table)

    def rows(self, start: datetime, end: datetime) -> slice:
        """Return the rows of [start, end)."""
        ends = np.searchsorted(self.times, [instant(start), instant(end)])
        return slice(int(ends[0]), int(ends[1]))

    def known_by(self, at: datetime) -> TrainingSet:
        """Return the training set as it was known at `at`."""
        moment = instant(at)
        known = (self.known <= moment) & (self.times <= moment)
        if self.config.since is not None:
            known &= self.times > moment - np.timedelta64(self.config.since)
        return replace(self.training, table=self.training.table.filter(pa.array(known)))


def instant(at: datetime) -> np.datetime64:
    """Return a moment as numpy compares it."""
    return np.datetime64(at.astimezone(UTC).replace(tzinfo=None), "us")


def _instants(table: pa.Table, name: str) -> np.ndarray:
    stamps = table.column(name).cast(TIMESTAMP, safe=False)
    return np.asarray(stamps.to_numpy().astype("datetime64[us]"))


def _datetime(moment: Any) -> datetime:
    found: datetime = moment.astype(object)
    return found.replace(tzinfo=UTC)
