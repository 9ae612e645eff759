"""Checks of the data that others wrote: one's own functions, pandera schemas, Great Expectations.

Above `data`. A package registers more of them under the entry points `steadfeast.checks`: a
function of what stands beside its name in `steadfeast.yaml` and of the folder of that file, which
returns a function from the rows to gates. A library is imported when a check names it.
"""

from __future__ import annotations

import json
import os
import warnings
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.pipeline.gates.gate import Gate
from steadfeast.pipeline.recipes import load_function

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from steadfeast.pipeline.gates.data import Check

GROUP = "steadfeast.checks"
_SHOWN = 3


class CheckError(UserError):
    """A check cannot be loaded.

    Attributes:
        name: As configured.
    """

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        super().__init__(f"check {name}: {problem}")


def load_checks(
    configured: Sequence[str | Mapping[str, str]], folder: Path
) -> list[tuple[str, Check]]:
    """Return the checks that a configuration names, each with its name.

    Args:
        configured: `module:function` of the user's own, or `{plug: argument}`.
        folder: Of the configuration file.

    Raises:
        RecipeError: The function cannot be loaded.
        NotFoundError: Nobody registered such a plug.
        CheckError: The plug's library is missing, or cannot read what it is given.
    """
    checks: list[tuple[str, Check]] = []
    for one in configured:
        if isinstance(one, str):
            checks.append((one, load_function(one, folder)))
            continue
        for plug, argument in one.items():
            checks.append((plug, _plug(plug)(argument, folder)))
    return checks


def _plug(name: str) -> Callable[[str, Path], Check]:
    registered = entry_points(group=GROUP)
    points = list(registered.select(name=name))
    if not points:
        raise NotFoundError("kind of check", name, registered.names)
    loaded: Callable[[str, Path], Check] = points[0].load()
    return loaded


def pandera(argument: str, folder: Path) -> Check:
    """Return a check by a pandera schema or model, `module:name` beside the configuration file.

    Raises:
        CheckError: pandera is not installed.
    """
    try:
        from pandera.errors import SchemaErrors  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise CheckError("pandera", "is not installed: pip install 'steadfeast[checks]'") from error
    schema: Any = load_function(argument, folder)

    def check(table: pa.Table) -> Gate:
        try:
            schema.validate(table.to_pandas(), lazy=True)
        except SchemaErrors as error:
            cases = error.failure_cases
            first = [
                f"{row.column}: {row.check} ({row.failure_case})"
                for row in cases.head(_SHOWN).itertuples()
            ]
            more = f" and {len(cases) - _SHOWN:,} more" if len(cases) > _SHOWN else ""
            return Gate(argument, False, len(cases), 0, "; ".join(first) + more)
        return Gate(argument, True, 0, 0, f"{table.num_rows:,} rows fit the schema")

    return check


def great_expectations(argument: str, folder: Path) -> Check:
    """Return a check by a suite of Great Expectations, a JSON file beside the configuration file.

    Raises:
        CheckError: Great Expectations is not installed, or the file is no suite.
    """
    try:
        suite = json.loads((folder / argument).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckError(argument, f"cannot be read as a suite: {error}") from error
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # it reports its use to its makers
    try:
        with warnings.catch_warnings(action="ignore"):  # of modules that Python deprecates
            import great_expectations  # noqa: PLC0415 - large, and an extra
    except ImportError as error:
        problem = "is not installed: pip install 'steadfeast[checks]'"
        raise CheckError("great_expectations", problem) from error

    def check(table: pa.Table) -> Gate:
        context: Any = great_expectations.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
        whole = asset.add_batch_definition_whole_dataframe("rows")
        batch = whole.get_batch({"dataframe": table.to_pandas()})
        expectations = great_expectations.ExpectationSuite(
            name=suite.get("name", argument), expectations=suite["expectations"]
        )
        results = batch.validate(expectations).results
        failed = [one.expectation_config for one in results if not one.success]
        first = "; ".join(f"{one.type} {one.kwargs.get('column', '')}" for one in failed[:_SHOWN])
        detail = first or f"{len(results)} expectations are met"
        return Gate(argument, not failed, len(failed), 0, detail)

    return check
