"""How good a model is thought to be before its labels are in, against what the labels then say.

    python benchmarks/estimates.py [--quick] [--seed N] [--cache FOLDER]

*Classifier*: the flights of 2013, the model trained on January and February and left alone; its
last week there is held out, and all that the estimate is fitted on. Every window of seven days
that ends in March to December is estimated from its scores, and compared with its labels.
*Regressor*: rows whose error grows with a feature that moves, and with a category that becomes
frequent.

Beside it stand the guess that all is as on the hold-out, and nannyml's CBPE and DLE on the same
rows, in an environment of its own, made with pip below `--cache`; its time is its estimates' alone.
`--quick`: every seventh window, and nannyml only where its environment is there already.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.drift import environment
from benchmarks.flights_world import (
    CATEGORICAL,
    DAY,
    DAYS,
    HOLDOUT_DAYS,
    REFERENCE_DAYS,
    START,
    year,
)
from benchmarks.measure import table, versions
from steadfeast.measures import MEASURES, Sample, Task
from steadfeast.monitor.performance import fit
from steadfeast.monitor.profiles import edges_of, profile

FIGURES = {
    Task.BINARY: ("roc_auc", "accuracy", "f1"),
    Task.REGRESSION: ("mean_absolute_error", "root_mean_squared_error"),
}
REACH = {
    "roc_auc": 0.85,
    "accuracy": 0.5,
    "mean_absolute_error": 0.25,
    "root_mean_squared_error": 0.25,
}
"""Mean error at most, as a share of that of taking the hold-out's figure for what holds now."""
PEER = "nannyml"

Floats = npt.NDArray[np.float64]


def flights(folder: Path, step: int, seed: int) -> tuple[pa.Table, list[pa.Table]]:
    """Return the scored hold-out, and the scored windows."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder
    from threadpoolctl import threadpool_limits

    rows, features = year(folder)
    rows = rows.filter(pc.is_valid(rows["late"]))
    day = rows["event_timestamp"].cast("int64").to_numpy() // 86_400_000_000
    day = day - int(START.timestamp()) // 86_400
    frame = rows.select(list(features)).to_pandas()
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    model = make_pipeline(
        ColumnTransformer([("c", encoder, list(CATEGORICAL))], remainder="passthrough"),
        HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, min_samples_leaf=100, l2_regularization=1.0,
            random_state=seed,
        ),
    )  # fmt: skip
    label = rows["late"].to_numpy()
    seen = day < REFERENCE_DAYS - HOLDOUT_DAYS
    with threadpool_limits(limits=1):
        said = model.fit(frame[seen], label[seen]).predict_proba(frame)[:, 1]
    scored = pa.table({"prediction": said, "label": label.astype(np.float64)})
    held = scored.filter(pa.array(~seen & (day < REFERENCE_DAYS)))
    ends = range(REFERENCE_DAYS + 7, DAYS + 1, step)
    return held, [scored.filter(pa.array((day >= end - 7) & (day < end))) for end in ends]


def numbers(step: int, seed: int) -> tuple[pa.Table, list[pa.Table]]:
    """Return a regressor's hold-out and windows: its error is not the same everywhere."""
    rng = np.random.default_rng(seed)

    def drawn(rows: int, shift: float, wild: float) -> pa.Table:
        x, said = rng.normal(shift, 1, rows), rng.normal(10, 2, rows)
        kind = rng.choice(["calm", "wild"], rows, p=[1 - wild, wild])
        spread = 1 + np.clip(x, 0, None) + 2 * (kind == "wild")
        truth = said + spread * rng.normal(size=rows)
        return pa.table({"x": x, "kind": kind, "prediction": said, "label": truth})

    moves = np.sin(np.linspace(0, 4 * np.pi, 301))[::step]
    return drawn(5_000, 0, 0.2), [drawn(5_000, move, 0.2 + 0.15 * move) for move in moves]


def estimated(held: pa.Table, windows: list[pa.Table], task: Task) -> dict[str, Floats]:
    """Return our estimates of every window, by figure."""
    columns = [name for name in held.column_names if name != "label"]
    edges = edges_of(held, columns)
    estimator = fit(held, edges, task)
    if estimator is None:
        raise SystemExit("there is nothing to fit on")
    found = [
        estimator.estimate(one["prediction"].to_numpy(), profile(one.to_batches(), edges))
        for one in windows
    ]
    return {name: np.array([one[name] for one in found]) for name in FIGURES[task]}


def by_month(ours: dict[str, Floats], windows: list[pa.Table], step: int) -> str:
    """Return the classifier's estimates and the truth, month by month."""
    last = [START + (REFERENCE_DAYS + 6 + i * step) * DAY for i in range(len(windows))]
    months = np.array([f"{day:%Y-%m}" for day in last])
    rows = [[month] for month in dict.fromkeys(months.tolist())]
    for figure in ("roc_auc", "accuracy"):
        truth = figures(figure, windows)
        for row in rows:
            mine = months == row[0]
            off = np.abs(ours[figure] - truth)[mine].mean()
            row += [f"{ours[figure][mine].mean():.3f}", f"{truth[mine].mean():.3f}", f"{off:.3f}"]
    head = [
        f"{f}{what}" for f in ("AUC", "accuracy") for what in (" estimated", ", truth", ", off")
    ]
    return table(["month", *head], rows)


def figures(name: str, windows: list[pa.Table]) -> Floats:
    """Return what the labels say of every window."""
    measure = MEASURES[name].value
    return np.array(
        [measure(Sample(one["label"].to_numpy(), one["prediction"].to_numpy())) for one in windows]
    )


def peer(
    held: pa.Table, windows: list[pa.Table], task: Task, folder: Path, python: Path
) -> dict[str, Any]:
    """Return nannyml's estimates by figure, and its `seconds`."""
    where = folder / task.value
    where.mkdir()
    pq.write_table(held, where / "held.parquet")
    many = [pa.array([i] * one.num_rows) for i, one in enumerate(windows)]
    both = pa.concat_tables(
        one.append_column("window", at) for one, at in zip(windows, many, strict=True)
    )
    pq.write_table(both, where / "windows.parquet")
    script = str(Path(__file__).with_name("estimates_peer.py"))
    done = subprocess.run(
        [str(python), "-W", "ignore", script, task.value, str(where)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        return {"stopped": why[:120]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> int:
    """Measure and report; 0 where everything asked for is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every seventh window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "steadfeast-benchmarks",
        help="where the peer's environment is",
    )  # fmt: skip
    options = parser.parse_args()
    step = 7 if options.quick else 1
    print(versions(["numpy", "scipy", "scikit-learn"]), "\n")
    python, why = environment(PEER, options.cache, make=not options.quick)
    if python is None:
        print(f"{PEER}: {why}", file=sys.stderr)
    rows, reached = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task, (held, windows) in (
            (Task.BINARY, flights(folder, step, options.seed)),
            (Task.REGRESSION, numbers(step, options.seed)),
        ):
            began = time.process_time()
            ours = estimated(held, windows, task)
            seconds = time.process_time() - began
            theirs = {} if python is None else peer(held, windows, task, folder, python)
            if "stopped" in theirs:
                print(f"{PEER}: {theirs['stopped']}", file=sys.stderr)
            if task is Task.BINARY:
                print("The flights by month, means over the windows that end in it.\n")
                print(by_month(ours, windows, step))
            for figure in FIGURES[task]:
                truth = figures(figure, windows)
                before = float(figures(figure, [held])[0])
                off = float(np.abs(ours[figure] - truth).mean())
                guess = float(np.abs(before - truth).mean())
                beside = "" if figure not in theirs else np.abs(theirs[figure] - truth).mean()
                rows.append(
                    [
                        figure,
                        len(windows),
                        f"{before:.3f}",
                        f"{truth.min():.3f} to {truth.max():.3f}",
                        f"{guess:.3f}",
                        f"{beside:.3f}" if figure in theirs else "",
                        f"{off:.3f}",
                        f"{np.corrcoef(ours[figure], truth)[0, 1]:.2f}",
                        f"{seconds:.1f}",
                        f"{theirs['seconds']:.1f}" if "seconds" in theirs else "",
                    ]
                )
                if figure in REACH:
                    share = off / guess
                    words = f"{figure} {share:.2f} of the guess's error, of {REACH[figure]:g}"
                    reached[words] = share <= REACH[figure]
    print("Mean absolute error over all windows, either way.\n")
    head = ["figure", "windows", "hold-out", "truth", "guess", PEER, "ours", "correlation"]
    print(table([*head, "CPU s, ours", f"CPU s, {PEER}"], rows))
    print("; ".join(f"{what}{'' if held else ' (SHORT)'}" for what, held in reached.items()))
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
