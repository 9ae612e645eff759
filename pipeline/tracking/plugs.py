"""Other experiment trackers, as packages register them.

Above `record`. A package registers a tracker under the entry points `steadfeast.trackers`: a
function of what stands beside its name in `steadfeast.yaml` and of the folder of that file, which
returns a function of a `Record`. MLflow is always told; these are told as well.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from steadfeast.featurestore.errors import NotFoundError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from steadfeast.pipeline.tracking.record import Record

GROUP = "steadfeast.trackers"


class Tracker(Protocol):
    """Is told of each run that was judged."""

    def __call__(self, record: Record, /) -> None:
        """Keep `record`.

        A run that was cut off is told again, with the same `run_id`. The run waits meanwhile, so
        whatever goes over a network needs a timeout. What is raised is said in the run's log.
        """


class TrackerError(UserError):
    """A tracker cannot be used.

    Attributes:
        name: As configured.
    """

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        super().__init__(f"tracker {name}: {problem}")


def load_tracker(name: str, argument: str, folder: Path) -> Tracker:
    """Return a tracker that a package registered.

    Args:
        name: Of the entry point.
        argument: What it is given.
        folder: Of the configuration file.

    Raises:
        NotFoundError: Nobody registered such a tracker.
        TrackerError: It cannot be imported, or does not take its argument.
    """
    registered = entry_points(group=GROUP)
    points = list(registered.select(name=name))
    if not points:
        raise NotFoundError("tracker", name, registered.names)
    try:
        make: Callable[[str, Path], Tracker] = points[0].load()
    except (ImportError, AttributeError) as error:
        raise TrackerError(name, f"{points[0].value} cannot be imported: {error}") from error
    try:
        return make(argument, folder)
    except Exception as error:  # whatever it is, it came of the line in the configuration
        problem = f"does not take {argument!r}: {type(error).__name__}: {error}"
        raise TrackerError(name, problem) from error


def check_trackers(configured: Mapping[str, str], folder: Path) -> list[tuple[str, str]]:
    """Return what is wrong with the configured trackers: name and problem of each."""
    problems = []
    for name, argument in configured.items():
        try:
            load_tracker(name, argument, folder)
        except UserError as error:
            problems.append((name, str(error)))
    return problems
