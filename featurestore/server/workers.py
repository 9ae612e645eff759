"""Several processes that serve as one: one pair of ports, one set of figures, one life.

Above `edge`, below `server`. Python runs one thread at a time, so a machine's cores are used by
processes. The kernel shares connections out among those that listen on one port (SO_REUSEPORT);
each has its own figures, and whoever is scraped asks the others for theirs. A worker ends when
its standard input does, so none outlives who started it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import AddressError, WorkerError
from steadfeast.featurestore.security import signals
from steadfeast.featurestore.tables import TemporaryFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_ASK_SECONDS = 1.0


class Siblings:
    """The figures of all workers of one server.

    Args:
        folder: Where the workers' sockets are; each worker has one, named after its process.
        mine: Returns this worker's figures as JSON can hold them.
    """

    def __init__(self, folder: Path, mine: Callable[[], Any]) -> None:
        self._folder, self._mine = folder, mine
        self._path = folder / str(os.getpid())
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()
        self._thread = Thread(target=self._answer, name="figures", daemon=True)
        self._thread.start()

    def others(self) -> list[Any]:
        """Return the figures of the other workers; of one that does not answer, none."""
        figures = []
        for path in sorted(self._folder.iterdir()):
            if path == self._path:
                continue
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_ASK_SECONDS)
                try:
                    client.connect(str(path))
                    parts = iter(lambda: client.recv(1 << 16), b"")
                    figures.append(json.loads(b"".join(parts)))
                except OSError:
                    continue
        return figures

    def close(self) -> None:
        """Answer no more."""
        self._path.unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed
                return
            with client:
                client.settimeout(_ASK_SECONDS)
                try:
                    client.sendall(json.dumps(self._mine()).encode())
                except OSError:
                    continue


def until_orphaned(stop: Callable[[], object]) -> None:
    """Call `stop` once standard input ends."""

    def watch() -> None:
        # Not sys.stdin: its lock, held by a thread that reads, would end the interpreter badly.
        while os.read(0, 1 << 10):
            pass
        stop()

    Thread(target=watch, name="parent", daemon=True).start()


def supervise(command: Sequence[str], addresses: Sequence[tuple[str, int]], workers: int) -> None:
    """Run `workers` processes until SIGTERM or SIGINT; SIGHUP is for all of them.

    Args:
        command: Serves one worker when the options `--grpc`, `--http` and `--worker` are added.
        addresses: Host and port of the gRPC and of the HTTP edge; port 0 takes a free one.
        workers: How many.

    Raises:
        AddressError: A port is taken.
        WorkerError: A worker ended by itself; the others are stopped.
    """
    with ExitStack() as opened:
        ports = [opened.enter_context(_reserved(host, port)) for host, port in addresses]
        folder = str(opened.enter_context(TemporaryFolder("workers")))
        options = []
        for name, (host, _), port in zip(("--grpc", "--http"), addresses, ports, strict=True):
            options += [name, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
        running = [
            subprocess.Popen(  # noqa: S603 - this very program
                [*command, *options, "--worker", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(workers)
        ]
        inbox: SimpleQueue[int] = SimpleQueue()
        opened.enter_context(signals(inbox, signal.SIGCHLD))
        try:
            for process in running:
                if process.stdout is not None and not process.stdout.readline():
                    raise WorkerError(process.wait())
            sys.stdout.write(
                f"serving gRPC on port {ports[0]}, HTTP on {ports[1]}, {workers} workers\n"
            )
            sys.stdout.flush()
            while (received := _next(inbox)) not in {signal.SIGINT, signal.SIGTERM}:
                if received == signal.SIGHUP:
                    for process in running:
                        process.send_signal(received)
                ended = [process for process in running if process.poll() is not None]
                if ended:
                    raise WorkerError(ended[0].returncode)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.communicate()


def _next(inbox: SimpleQueue[int]) -> int | None:
    """Return the next signal; None after a second without one."""
    try:
        return inbox.get(timeout=1)
    except Empty:
        return None


@contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Hold a port that processes of this user may share, without listening on it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            holder.bind((host, port))
        except OSError as error:
            raise AddressError(f"{host}:{port}", str(error.strerror)) from error
        yield int(holder.getsockname()[1])
