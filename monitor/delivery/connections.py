"""The pipelines of the configuration, connected when they are first asked.

Above `http_pipelines`; the dispatcher, the run follower and the champions share one.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from steadfeast.monitor.delivery.http_pipelines import pipeline_of
from steadfeast.monitor.delivery.pipeline import UnansweredError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from steadfeast.monitor.config import PipelineConfig
    from steadfeast.monitor.delivery.pipeline import Pipeline


class Connections:
    """Connections to pipelines by name; safe to share between threads.

    Args:
        configured: Gives the pipelines of the configuration as it is now.
    """

    def __init__(self, configured: Callable[[], Mapping[str, PipelineConfig]]) -> None:
        self._configured = configured
        self._lock = Lock()
        self._made: dict[str, tuple[PipelineConfig, Pipeline]] = {}
        self._closed = False

    def to(self, name: str) -> Pipeline:
        """Return a pipeline, made anew when its configuration has changed.

        Raises:
            UnansweredError: It is not configured, or the connections are closed.
        """
        config = self._configured().get(name)
        if config is None:
            raise UnansweredError(f"pipeline {name!r} is not configured")
        with self._lock:
            if self._closed:
                raise UnansweredError("the daemon is shutting down")
            made_for, target = self._made.get(name, (None, None))
            if target is None or made_for != config:
                if target is not None:
                    target.close()
                target = pipeline_of(config)
                self._made[name] = (config, target)
            return target

    def close(self) -> None:
        """Close every connection, which ends the watches on them; none is made any more."""
        with self._lock:
            self._closed = True
            for _, target in self._made.values():
                target.close()
