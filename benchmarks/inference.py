"""Predictions over HTTP, features included: the model edge, its peers, and the floor.

`python benchmarks/inference.py [--quick] [--seed N]`: Markdown on standard output. The flights'
model of the demo, one worker each, four connections over loopback, 1 and 100 rows a request. What
each does for a request:

- steadfeast: reads features under the model's contract, runs on-demand code, predicts (by the
  estimator itself, or its ONNX), logs features and prediction before it answers.
- Feast + FastAPI: `inference_peer.py`, Feast's SDK on its own SQLite store and the same estimator.
- Feast + mlflow models serve: the client asks `feast serve` for the features, and MLflow's server
  with features that it has ready (what converting them costs a client is not counted).
- the floor: the same estimator, called in a loop with rows that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

import duckdb
import measure
import online_load
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast import Store
from steadfeast.pipeline.config import load
from steadfeast.pipeline.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
REPO = HERE.parent / "feature_repo"
PROGRAMS = Path(sys.executable).parent
MODEL = "late_arrival"
AS_OF = datetime(2013, 3, 1, 5, tzinfo=UTC)
SIZES = (1, 100)
REACH = {"1 row": 5.0, "100 rows": 5.0, "p99 of p50, 1 row": 3.0}
ESTIMATOR = (
    "from steadfeast.pipeline.registry.onnx_export import OnnxServing\n"
    "OnnxServing.read = lambda *_: None\n"
)
SERVE = "from steadfeast.featurestore.cli import main; main()"
KEYS = ("origin", "dest", "route", "carrier_origin", "tailnum")
REQUEST = ("scheduled_departure", "carrier", "distance_miles")


def world(folder: Path) -> Path:
    """Build the flights' repo with values online and one trained version; return its config."""
    repo = folder / "steadfeast"
    shutil.copytree(REPO, repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    config = repo / "steadfeast.yaml"
    # One fit for everybody: a blend of three would be three estimators to the peers.
    config.write_text(
        config.read_text().replace("      recipe:", "      window: all\n      recipe:", 1)
    )
    subprocess.run([sys.executable, repo / "sources.py"], check=True, capture_output=True)
    with Store.open(config) as store:
        store.apply()
        store.materialize(AS_OF, since=AS_OF - timedelta(days=59))
    command = [PROGRAMS / "steadfeast", "pipeline", "train", MODEL, "--as-of", AS_OF.isoformat()]
    subprocess.run([*command, "--config", str(config)], check=True, capture_output=True)
    return config


def peer_world(folder: Path, config: Path) -> Path:
    """Build the same repo on Feast's own stores, with the same newest values online."""
    repo, own = folder / "feast", config.parent
    shutil.copytree(own, repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (repo / "data").mkdir()
    (repo / "data" / "sources").symlink_to(own / "data" / "sources")
    (repo / "feature_store.yaml").write_text(
        "project: flights\nprovider: local\nregistry: data/registry.db\n"
        "online_store: {type: sqlite, path: data/online.db}\noffline_store: {type: file}\n"
        "entity_key_serialization_version: 3\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "inference_feast.py", AS_OF.isoformat()],
        cwd=repo, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return repo


def requests_of(config: Path, rows: int, seed: int) -> list[dict[str, list[Any]]]:
    """Return 64 requests of real flights as JSON columns."""
    table = pq.read_table(config.parent / "data" / "sources" / "examples.parquet")
    wanted = table.select([*KEYS, *REQUEST]).drop_null().slice(0, 20_000).to_pylist()
    rng = random.Random(seed)
    picked = [rng.sample(wanted, rows) for _ in range(64)]
    return [
        {
            name: [row[name].isoformat() if name == REQUEST[0] else row[name] for row in some]
            for name in (*KEYS, *REQUEST)
        }
        for some in picked
    ]


@contextmanager
def serving(command: list[Any], port: int, folder: Path, log: Path, **more: str) -> Iterator[Any]:
    """Run a server until it listens; give its process."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **more}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*map(str, command)], cwd=folder, stdout=out, stderr=out, env=environment
        )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command}: {log.read_text()[-2000:]}") from None
                time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peak_mib(process: Any) -> float:
    """Return the most memory a process and its children held, in MiB."""
    total, waiting = 0, [process.pid]
    while waiting:
        pid = waiting.pop()
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except OSError:
            continue
        total += next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))
    return total / 1024


def loaded(steps: Any, options: Any) -> dict[str, float]:
    """Put the load on servers from a process of its own."""
    given = {
        "steps": [[port, [one.decode("latin-1") for one in requests]] for port, requests in steps],
        "connections": 4, "seconds": 2 if options.quick else 6, "most": 20_000,
    }  # fmt: skip
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import online_load\n"
        "given = json.load(sys.stdin)\n"
        "steps = [(p, [r.encode('latin-1') for r in rs]) for p, rs in given.pop('steps')]\n"
        "print(json.dumps(online_load.run(steps, **given)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(HERE)],
        input=json.dumps(given), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return dict(json.loads(done.stdout))


class Contest:
    """The servers on one world, each asked in turn.

    Args:
        folder: For all files.
        options: Of the command line.
    """

    def __init__(self, folder: Path, options: Any) -> None:
        self.folder, self.options = folder, options
        self.config = world(folder)
        self.feast = peer_world(folder, self.config)
        pipeline = load(self.config)[0]
        self.loaded = Registry.open(pipeline).champion(MODEL)
        if self.loaded is None:
            raise RuntimeError("no version passed its gates")
        self.model = folder / "model.pickle"
        features = list(self.loaded.features)
        self.model.write_bytes(pickle.dumps((self.loaded.estimator, features)))
        self.requests = {rows: requests_of(self.config, rows, options.seed) for rows in SIZES}

    def ours(self, *, onnx: bool) -> dict[Any, dict[str, float]]:
        """Load the model edge."""
        port, other = free_port(), free_port()
        command = [sys.executable, "-W", "ignore", "-P", "-c", ("" if onnx else ESTIMATOR) + SERVE]
        command += ["model", "serve", "--http", f"127.0.0.1:{port}", "--grpc", f"127.0.0.1:{other}"]
        command += ["--config", self.config]
        log = self.folder / "ours.log"
        with serving(command, port, self.config.parent, log) as process:
            return self._asked(
                process, lambda body: [(port, f"/predict/{MODEL}", {"entities": body})]
            )

    def fastapi(self) -> dict[Any, dict[str, float]]:
        """Load Feast's SDK and the estimator in FastAPI."""
        port = free_port()
        command = [sys.executable, "-W", "ignore", "-m", "uvicorn", "inference_peer:app"]
        command += ["--port", port, "--log-level", "warning", "--app-dir", HERE]
        more = {"PEER_REPO": str(self.feast), "PEER_MODEL": str(self.model)}
        with serving(command, port, self.feast, self.folder / "fastapi.log", **more) as process:
            return self._asked(process, lambda body: [(port, "/predict", {"entities": body})])

    def mlflow(self) -> dict[Any, dict[str, float]]:
        """Load `feast serve`, and then `mlflow models serve`."""
        import mlflow.sklearn

        assert self.loaded is not None  # noqa: S101 - as __init__ saw to
        saved, features = self.folder / "mlflow-model", list(self.loaded.features)
        mlflow.sklearn.save_model(
            self.loaded.estimator, saved, pyfunc_predict_fn="predict_proba",
            serialization_format="cloudpickle",
        )  # fmt: skip
        ports = free_port(), free_port()
        feast = [PROGRAMS / "feast", "serve", "-h", "127.0.0.1", "-p", ports[0], "-w", 1]
        feast += ["--max-requests", "0", "--no-access-log"]
        server = [PROGRAMS / "mlflow", "models", "serve", "-m", saved, "--env-manager", "local"]
        server += ["-p", ports[1], "-w", 1]
        rows = {size: self._features(size, features) for size in SIZES}

        def steps(body: Any) -> Any:
            size = len(body["origin"])
            read = {"feature_service": MODEL, "entities": body}
            split = {"columns": features, "data": rows[size]}
            return [
                (ports[0], "/get-online-features", read),
                (ports[1], "/invocations", {"dataframe_split": split}),
            ]

        path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        with (
            serving(feast, ports[0], self.feast, self.folder / "feast.log") as first,
            serving(server, ports[1], self.folder, self.folder / "mlflow.log", PATH=path) as second,
        ):
            return self._asked(first, steps, second)

    def floor(self) -> dict[Any, dict[str, float]]:
        """Call the estimator in a loop."""
        assert self.loaded is not None  # noqa: S101
        found = {}
        for rows in SIZES:
            table = self._table(rows)
            took = measure.latencies(lambda: self.loaded.predict(table), seconds=2)  # noqa: B023
            found[rows] = {"rate": 1e6 / took["p50"], "p50": took["p50"] / 1e3,
                           "p99": took["p99"] / 1e3, "memory": 0.0}  # fmt: skip
        return found

    def _table(self, rows: int) -> pa.Table:
        """Return rows of the training set, as the estimator reads them."""
        folder = next((self.config.parent / "data" / "training").glob("*/"))
        found = duckdb.sql(f"FROM read_parquet('{folder}/*.parquet') LIMIT {rows}").to_arrow_table()
        assert self.loaded is not None  # noqa: S101
        return found.select(self.loaded.features)

    def _features(self, rows: int, features: list[str]) -> list[list[Any]]:
        table = self._table(rows).to_pydict()
        numbers = {n: [None if v is None else float(v) for v in table[n]] for n in features[:-2]}
        columns = [numbers.get(name, table[name]) for name in features]
        return [list(row) for row in zip(*columns, strict=True)]

    def _asked(
        self, process: Any, steps_of: Callable[[Any], Any], *others: Any
    ) -> dict[Any, dict[str, float]]:
        found = {}
        for rows, bodies in self.requests.items():
            sent = [steps_of(body) for body in bodies]
            steps = [
                (sent[0][step][0], [online_load.post(*one[step]) for one in sent])
                for step in range(len(sent[0]))
            ]
            figures = loaded(steps, self.options)
            figures["memory"] = sum(map(peak_mib, (process, *others)))
            found[rows] = figures
        return found


def main() -> int:
    """Run the comparison; return 1 if a ratio falls short."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="Within four minutes.")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(measure.versions(("feast", "mlflow", "scikit-learn", "onnxruntime", "fastapi")) + "\n")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contest = Contest(folder, options)
        servers: dict[str, Callable[[], dict[Any, dict[str, float]]]] = {
            "steadfeast, ONNX": lambda: contest.ours(onnx=True),
            "steadfeast, estimator": lambda: contest.ours(onnx=False),
            "Feast SDK in FastAPI": contest.fastapi,
            "feast serve, mlflow models serve": contest.mlflow,
            "the estimator in a loop": contest.floor,
        }
        runs: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(1 if options.quick else 3):
            for name, serve in servers.items():
                for rows, figures in serve().items():
                    runs.setdefault((name, rows), []).append(figures)
    middle = {
        key: {
            k: statistics.median(run[k] for run in some) for k in ("rate", "p50", "p99", "memory")
        }
        for key, some in runs.items()
    }
    body = [
        [name]
        + ["{rate:,.0f} ({p50:.1f}, {p99:.1f})".format_map(middle[name, rows]) for rows in SIZES]
        + [f"{middle[name, 1]['memory']:,.0f}" if middle[name, 1]["memory"] else ""]
        for name in servers
    ]
    print("Requests/s (p50, p99 in milliseconds)\n")
    print(measure.table(["server", "1 row", "100 rows", "MiB"], body))
    ours, peers = "steadfeast, ONNX", list(servers)[2:4]
    ratios = {
        f"{rows} row{'s' if rows > 1 else ''}": middle[ours, rows]["rate"]
        / max(middle[peer, rows]["rate"] for peer in peers)
        for rows in SIZES
    }
    spread = middle[ours, 1]["p99"] / middle[ours, 1]["p50"]
    short = [name for name, ratio in ratios.items() if ratio < REACH[name]]
    short += ["p99 of p50, 1 row"] * (spread > REACH["p99 of p50, 1 row"])
    told = ", ".join(f"{name} {ratio:.1f} (of {REACH[name]:g})" for name, ratio in ratios.items())
    told += f", p99 of p50, 1 row {spread:.1f} (at most {REACH['p99 of p50, 1 row']:g})"
    print(f"{told}; short: {', '.join(short) or 'none'}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
