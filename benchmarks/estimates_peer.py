"""nannyml's estimates of performance for `benchmarks/estimates.py`; run in its own environment.

    python benchmarks/estimates_peer.py classification|regression FOLDER

Reads `held.parquet` and `windows.parquet`, with the number of the window in `window`; defaults
everywhere. Prints its estimates by figure as one line of JSON. Imports nothing of this repository.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import nannyml
import pandas as pd


def main() -> None:
    """Fit on what was held out, estimate window by window."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    pd.set_option("future.infer_string", False)  # it cannot reshape pandas 3's strings
    held, rows = (pd.read_parquet(folder / f"{name}.parquet") for name in ("held", "windows"))
    if task == "classification":
        figures = {"roc_auc": "roc_auc", "accuracy": "accuracy", "f1": "f1"}
        for frame in (held, rows):
            frame["said"] = (frame["prediction"] >= 0.5).astype(int)
            frame["label"] = frame["label"].astype(int)
        estimator = nannyml.CBPE(
            problem_type="classification_binary", y_pred_proba="prediction", y_pred="said",
            y_true="label", metrics=list(figures.values()), chunk_number=10,
        )  # fmt: skip
    else:
        figures = {
            "mean_absolute_error": "mae",
            "root_mean_squared_error": "rmse",
        }
        estimator = nannyml.DLE(
            feature_column_names=["x", "kind"], y_pred="prediction", y_true="label",
            metrics=list(figures.values()), chunk_number=10,
        )  # fmt: skip
    began = time.process_time()
    estimator.fit(held)
    found: dict[str, list[float]] = {name: [] for name in figures}
    for _, one in rows.groupby("window", sort=True):
        # Each window is one chunk: the chunker is asked anew.
        estimator.chunker = nannyml.chunk.CountBasedChunker(chunk_number=1)
        results = estimator.estimate(one.drop(columns=["label", "window"])).filter(
            period="analysis"
        )
        frame = results.to_df()
        for name, theirs in figures.items():
            found[name].append(float(frame[(theirs, "value")].iloc[0]))
    print(json.dumps({**found, "seconds": time.process_time() - began}))


if __name__ == "__main__":
    main()
