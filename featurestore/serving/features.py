"""What a request gets: the features of its rows, as columns when somebody asks for columns.

Above `errors` alone; imports no Feast. `vectors` makes answers, `served` logs them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from steadfeast.featurestore import notebook
from steadfeast.featurestore.tables import numpy_array

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

Columns = tuple[
    pa.Table, "Mapping[str, np.ndarray[Any, np.dtype[np.uint8]]]", "Mapping[str, pa.Array]"
]
"""`table`, `statuses` and `event_times` of `OnlineFeatures`."""


class Later(Protocol):
    """Rows that were read, and become columns when they are asked for."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order of the service."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def kind(self) -> Hashable:
        """What has the same kind can be settled together."""

    def settle(self, more: Sequence[Any] = ()) -> Columns:
        """Make all columns, of this and then of more of its kind."""

    def lists(self) -> dict[str, list[Any]] | None:
        """Make what `to_dict` returns; None if it is to be made from the columns."""

    def arrays(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Make what `to_numpy` returns; None as `lists`."""

    def tally(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Make what `OnlineFeatures.tally` returns; None as `lists`."""


class OnlineFeatures:
    """What a request gets. Columns are made when they are first asked for, and then kept.

    Args:
        table: Entity columns, then features, in the order of the request.
        statuses: Feature -> one uint8 per row, the numbers of feast.serving.FieldStatus:
            1 PRESENT, 2 NULL_VALUE, 3 NOT_FOUND, 4 OUTSIDE_MAX_AGE.
        event_times: Feature view -> when each row's value is from; null when there is none.
        contract: SHA-256 of the contract that they were served under.

    Attributes:
        contract: As given.
        features: Names of the features, in the order of the service.
        rows: Number of rows.
    """

    __slots__ = ("_columns", "_later", "contract", "features", "rows")

    def __init__(
        self,
        table: pa.Table,
        statuses: Mapping[str, np.ndarray[Any, np.dtype[np.uint8]]],
        event_times: Mapping[str, pa.Array],
        contract: str,
    ) -> None:
        self._columns: Columns | None = (table, statuses, event_times)
        self._later: Later | None = None
        self.contract, self.features, self.rows = contract, tuple(statuses), table.num_rows

    @classmethod
    def later(cls, source: Later, contract: str) -> OnlineFeatures:
        """Return features whose columns `source` makes."""
        self = cls.__new__(cls)
        self._columns, self._later = None, source
        self.contract, self.features, self.rows = contract, source.features, source.rows
        return self

    def __repr__(self) -> str:
        """Say how much there is; no value is read for it."""
        return notebook.line(
            "OnlineFeatures",
            notebook.plural(self.rows, "row"),
            f"{notebook.plural(len(self.features), 'feature')}: {notebook.first(self.features)}",
            f"contract {self.contract[: notebook.DIGITS]}",
        )

    def _repr_html_(self) -> str:
        names = ("unknown", "present", "null", "not found", "too old")
        counts = zip(names, self.tally().tolist(), strict=True)
        facts = [
            notebook.plural(self.rows, "row"),
            *(f"{count:,} {name}" for name, count in counts if count),
            f"contract {self.contract[: notebook.DIGITS]}",
        ]
        return notebook.card("Online features", facts, notebook.preview(self.table))

    @property
    def packed(self) -> Later | None:
        """What was read, as long as no column has been made of it."""
        return self._later if self._columns is None else None

    @property
    def table(self) -> pa.Table:
        """Entity columns, then features, in the order of the request."""
        return self._settled()[0]

    @property
    def statuses(self) -> Mapping[str, np.ndarray[Any, np.dtype[np.uint8]]]:
        """Feature -> one number of feast.serving.FieldStatus per row."""
        return self._settled()[1]

    @property
    def event_times(self) -> Mapping[str, pa.Array]:
        """Feature view -> when each row's value is from; null when there is none."""
        return self._settled()[2]

    def _settled(self) -> Columns:
        columns = self._columns
        if columns is None and self._later is not None:
            columns = self._columns = self._later.settle()
        if columns is None:
            raise AssertionError
        return columns

    def tally(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Count all values by their number of feast.serving.FieldStatus; shape (5,)."""
        counts = None if self.packed is None else self.packed.tally()
        if counts is None:
            counts = np.zeros(5, np.int64)
            for codes in self.statuses.values():
                counts += np.bincount(codes, minlength=5)
        return counts

    def to_dict(self) -> dict[str, list[Any]]:
        """Return every column as a list of Python values."""
        packed = self.packed
        lists = None if packed is None else packed.lists()
        if lists is not None:
            return lists
        values: dict[str, list[Any]] = self.table.to_pydict()
        return values

    def to_numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the features as arrays of shape (rows,); nulls of numbers are NaN.

        Whole numbers beyond 2^53 with a null beside them are objects, with None: no float holds
        them.
        """
        packed = self.packed
        arrays = None if packed is None else packed.arrays()
        if arrays is not None:
            return arrays
        table = self.table
        return {name: numpy_array(table.column(name)) for name in self.features}


class Settled(NamedTuple):
    """Several answers with the same columns, as one table.

    Attributes:
        members: Which of the answers they are, ascending.
        table: Entity columns, then features; the rows of each member after those of the last.
        event_times: Feature view -> when each row's value is from.
    """

    members: list[int]
    table: pa.Table
    event_times: dict[str, pa.ChunkedArray]


def settled(answers: Sequence[OnlineFeatures]) -> Iterator[Settled]:
    """Make the columns of many answers, those that can be together at once.

    A thousand answers of one row cost little more than one of a thousand rows, where each by
    itself would pay for every Arrow array. An answer that has no columns yet has none afterwards.
    """
    packed = [one.packed for one in answers]
    alike: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, later in enumerate(packed):
        alike[i if later is None else later.kind].append(i)
    parts: defaultdict[Hashable, list[tuple[list[int], Columns]]] = defaultdict(list)
    for members in alike.values():
        first, *more = (packed[i] for i in members)
        if first is None:
            one = answers[members[0]]
            columns = one.table, one.statuses, one.event_times
        else:
            columns = first.settle(more)
        parts[columns[0].schema, tuple(columns[2])].append((members, columns))
    for some in parts.values():
        members = [i for group, _ in some for i in group]
        table = pa.concat_tables([columns[0] for _, columns in some])
        times = {
            view: pa.chunked_array([columns[2][view] for _, columns in some])
            for view in some[0][1][2]
        }
        if members != sorted(members):
            places = np.repeat(members, [answers[i].rows for i in members])
            order = pa.array(np.argsort(places, kind="stable"))
            table, times = table.take(order), {view: t.take(order) for view, t in times.items()}
        yield Settled(sorted(members), table, times)
