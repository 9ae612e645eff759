"""What a request gets: the features of its rows, as columns when somebody asks for columns.

Above `errors` alone; imports no Feast. `vectors` makes answers, `served` logs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping

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

    def settle(self) -> Columns:
        """Make all columns."""

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
        """Return the features as arrays of shape (rows,); nulls of numbers are NaN."""
        packed = self.packed
        arrays = None if packed is None else packed.arrays()
        if arrays is not None:
            return arrays
        table = self.table
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in self.features}
