"""The one executor of on-demand views: training, serving and audits all call it.

Above `service`; pure apart from the user's function. Feast runs such a function on float64
columns online and float32 offline, and on whichever types pandas guesses from the nulls that
a batch happens to hold. Here every input has one type, whatever the batch:

- mode "pandas": integers and booleans are pandas' nullable dtypes (an int64 beside a null stays
  exact), floats are numpy's with NaN for null, strings are objects with None, timestamps are
  `datetime64[us, UTC]`. A NaN in a numpy float column of the result means null.
- mode "python": lists of Python values, None for null; NaN stays NaN.

The function sees the inputs that it declares and nothing else, as `feature` and as
`view__feature`. What it returns is cast to the declared Arrow types, or refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from steadfeast.featurestore.errors import OnDemandError, UnsupportedTypeError
from steadfeast.featurestore.tables import array_of, cast_array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from steadfeast.featurestore.definitions.plan import OnDemandView

_THREADED_ROWS = 10_000
_EXACT = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


class Executor:
    """Runs one on-demand view.

    Args:
        view: Its inputs and declared outputs.
        function: The user's function.
        mode: "pandas" or "python", as Feast names them.
        singleton: For mode "python": the function takes one row, not lists.

    Raises:
        OnDemandError: The mode is one that cannot run at request time.
    """

    def __init__(
        self, view: OnDemandView, function: Callable[[Any], Any], mode: str, *, singleton: bool
    ) -> None:
        if mode not in ("pandas", "python"):
            raise OnDemandError(
                view.name, "", f"mode {mode!r} is not supported; use pandas or python"
            )
        self.view, self._function, self._mode = view, function, mode
        self._singleton = singleton
        self._names = _input_names(view)
        self._sources = list(dict.fromkeys(self._names.values()))
        self._columns = [self._sources.index(source) for source in self._names.values()]

    def run(
        self,
        stored: Mapping[tuple[str, str], pa.Array],
        requests: Mapping[str, pa.Array],
        rows: int,
    ) -> dict[str, pa.Array]:
        """Execute on `rows` rows and return each declared feature, in its declared type.

        Args:
            stored: `(view, feature)` -> values, at least those that the view declares.
            requests: Request field -> values.
            rows: Length of every array.

        Raises:
            OnDemandError: The result lacks a feature, has another number or order of rows, or
                holds what the declared type cannot.
        """
        if not rows:
            return {name: pa.array([], kind) for name, kind in self.view.outputs.items()}
        values = [
            requests[source] if isinstance(source, str) else stored[source]
            for source in self._sources
        ]
        if self._mode == "pandas":
            return self._pandas(values, rows)
        return self._python(values, rows)

    def _pandas(self, values: list[pa.Array], rows: int) -> dict[str, pa.Array]:
        names = [str(number) for number in range(len(values))]
        frame = pa.table(values, names=names).to_pandas(
            types_mapper=_EXACT.get,
            use_threads=rows > _THREADED_ROWS,  # waking threads costs a request more than the work
        )
        # Taking columns copies, so every one is writable: Arrow hands out read-only memory for
        # columns without nulls, and whether a function may assign must not depend on the data.
        frame = frame.take(self._columns, axis=1)
        frame.columns = pd.Index(list(self._names))
        result = self._function(frame)
        if not isinstance(result, pd.DataFrame):
            self._refuse("", f"returned {type(result).__name__}, not a DataFrame")
        if len(result) != rows:
            self._refuse("", f"returned {len(result)} rows for {rows}")
        if not result.index.equals(pd.RangeIndex(rows)):
            self._refuse("", "returned its rows under another index; keep the order of the input")
        return {
            name: self._declared(name, kind, result, pandas=True)
            for name, kind in self.view.outputs.items()
        }

    def _python(self, values: list[pa.Array], rows: int) -> dict[str, pa.Array]:
        lists = {
            name: values[place].to_pylist()
            for name, place in zip(self._names, self._columns, strict=True)
        }
        if self._singleton:
            results = [
                self._function({name: column[row] for name, column in lists.items()})
                for row in range(rows)
            ]
            for name in self.view.outputs:
                if any(name not in result for result in results):
                    self._refuse(name, "is missing from the result")
            result: dict[str, Any] = {
                name: [item[name] for item in results] for name in self.view.outputs
            }
        else:
            result = self._function(lists)
        return {
            name: self._declared(name, kind, result, pandas=False, rows=rows)
            for name, kind in self.view.outputs.items()
        }

    def _declared(
        self, name: str, kind: pa.DataType, result: Any, *, pandas: bool, rows: int | None = None
    ) -> pa.Array:
        if name not in result:
            self._refuse(name, "is missing from the result")
        values = result[name]
        try:
            if pandas:
                column = pa.array(values, from_pandas=True)
                if isinstance(column, pa.ChunkedArray):
                    column = column.combine_chunks()
                column = cast_array(column, kind, name)
            else:
                column = array_of(values, kind, name)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnsupportedTypeError) as error:
            raise OnDemandError(
                self.view.name, name, f"does not fit its declared type {kind}: {error}"
            ) from error
        if rows is not None and len(column) != rows:
            self._refuse(name, f"has {len(column)} values for {rows} rows")
        return column

    def _refuse(self, feature: str, problem: str) -> None:
        raise OnDemandError(self.view.name, feature, problem)


def _input_names(view: OnDemandView) -> dict[str, tuple[str, str] | str]:
    """Name that the function sees -> where the value is from.

    A plain name that two inputs share is left out: which of them it means would depend on the
    order of the definitions. The full names are always there.
    """
    names: dict[str, tuple[str, str] | str] = {field: field for field in view.requests}
    plain = [feature for _, feature in view.inputs]
    for source in view.inputs:
        if plain.count(source[1]) == 1 and source[1] not in view.requests:
            names[source[1]] = source
    names |= {f"{source[0]}__{source[1]}": source for source in view.inputs}
    return names
