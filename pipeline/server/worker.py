"""The thread that works on runs, one at a time.

Above `retrain`. A run is executed in a thread of its own while another watches it: whatever it
raises is that run's end and never the queue's, and a stop need not wait for a long fit. What is
cut off stays `running` in the queue and is started again by the next worker.
"""

from __future__ import annotations

import logging
import threading
import traceback
from multiprocessing.pool import ThreadPool
from time import monotonic
from typing import TYPE_CHECKING, Self

from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.pipeline.queue import ENDED, POLL_SECONDS, worker_lock
from steadfeast.pipeline.training import RunCancelledError, RunInterruptedError
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from steadfeast.pipeline.queue import RunQueue

log = logging.getLogger(__name__)


class RunExitedError(SteadfeastError):
    """What a run calls wanted to end the process.

    Attributes:
        code: The exit code it asked for.
    """

    def __init__(self, code: object) -> None:
        self.code = code
        super().__init__(f"called for the process to exit with {code}")


class Worker:
    """Takes runs from `queue` and gives them to `execute`, from its entering to its exit.

    Args:
        queue: The runs.
        execute: Brings a run to its end; see `Retrain`.
        folder: The pipeline's state; holds the lock that makes this the only worker.
    """

    def __init__(
        self,
        queue: RunQueue,
        execute: Callable[[pb.Run, Callable[[], None]], None],
        folder: Path,
    ) -> None:
        self._queue, self._execute = queue, execute
        self._folder = folder
        self._pool: ThreadPool
        self._stopping = threading.Event()
        self._leave_at = float("inf")
        self._loop = threading.Thread(target=self._work, name="pipeline-worker", daemon=True)
        self.ended = threading.Event()
        """Set when the worker has ended, whether asked to or not."""

    def __enter__(self) -> Self:
        self._pool = ThreadPool(1)
        self._loop.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self, grace_seconds: float = 5) -> None:
        """Stop at the run's next step, or leave it to the next start after the grace."""
        self._leave_at = monotonic() + grace_seconds
        self._stopping.set()
        self._loop.join()
        self._pool.terminate()

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                with worker_lock(self._folder) as mine:
                    while mine and not self._stopping.is_set():
                        if not self.step():
                            self._queue.wait(POLL_SECONDS)
                self._stopping.wait(POLL_SECONDS)
        finally:
            self.ended.set()

    def follow(self, run_id: str) -> pb.Run:
        """Return the run once it has ended, or this worker has.

        Whoever holds the lock works on it, this process or another one.
        """
        while not self.ended.is_set() and self._queue.get(run_id).state not in ENDED:
            self._queue.wait(POLL_SECONDS)
        return self._queue.get(run_id)

    def step(self) -> bool:
        """Bring the next run to its end; return False when there is none, or on leaving."""
        run = self._queue.claim()
        if run is None:
            return False
        log.info("run %s of %s starts", run.run_id, run.model)
        errors: list[BaseException] = []
        result = self._pool.apply_async(self._attempt, (run,), error_callback=errors.append)
        while not result.ready():
            if monotonic() > self._leave_at:
                log.warning("run %s is left as it is; the next start resumes it", run.run_id)
                return False
            result.wait(0.1)
        for error in errors:
            self._record(run, error)
        ended = self._queue.get(run.run_id)
        name = pb.RunState.Name(ended.state).removeprefix("RUN_STATE_").lower()
        log.info("run %s of %s: %s %s", run.run_id, run.model, name, ended.reason)
        return True

    def _attempt(self, run: pb.Run) -> None:
        def check() -> None:
            reason = self._queue.cancelled(run.run_id)
            if reason is not None:
                raise RunCancelledError(reason)
            if self._stopping.is_set():
                raise RunInterruptedError

        check()
        try:
            self._execute(run, check)
        except SystemExit as error:  # would end the thread, and with it the queue
            raise RunExitedError(error.code) from error

    def _record(self, run: pb.Run, error: BaseException) -> None:
        if isinstance(error, RunInterruptedError):
            self._queue.release(run.run_id)
        elif isinstance(error, RunCancelledError):
            self._queue.finish(run.run_id, pb.RUN_STATE_CANCELLED, str(error))
        else:
            log.error("run %s of %s failed", run.run_id, run.model, exc_info=error)
            self._queue.finish(run.run_id, pb.RUN_STATE_FAILED, _reason(error))


def _reason(error: BaseException) -> str:
    """Return in one line what was raised, and where."""
    text = " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
