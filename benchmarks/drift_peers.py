"""One drift monitor of the others on one pair of Parquet files; run in its own environment.

    python benchmarks/drift_peers.py PEER WARM REFERENCE CURRENT

Prints its figures as one line of JSON. A first run on the few rows of WARM takes what is
imported late out of the time. So is the reference's side where the tool can keep it (nannyml,
whylogs, tensorflow-data-validation); the others read both sides each time. Defaults everywhere.
Imports nothing of this repository.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable


def evidently(reference: str, current: str) -> Callable[[], int]:
    """DataDriftPreset on two frames."""
    from evidently import Report
    from evidently.presets import DataDriftPreset

    def run() -> int:
        sides = pd.read_parquet(current), pd.read_parquet(reference)
        said = Report([DataDriftPreset()]).run(*sides).dict()
        return len(said["metrics"]) - 1

    return run


def nannyml(reference: str, current: str) -> Callable[[], int]:
    """Univariate drift in ten chunks, fitted beforehand."""
    import nannyml as nml

    frame = pd.read_parquet(reference)
    fitted = nml.UnivariateDriftCalculator(column_names=list(frame.columns)).fit(frame)

    def run() -> int:
        fitted.calculate(pd.read_parquet(current)).to_df()
        return len(frame.columns)

    return run


def whylogs(reference: str, current: str) -> Callable[[], int]:
    """Profile the current side, and score it against the profile of the reference."""
    import whylogs as why
    from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores

    kept = why.log(pd.read_parquet(reference)).view()

    def run() -> int:
        view = why.log(pd.read_parquet(current)).view()
        scores = calculate_drift_scores(view, kept, with_thresholds=True)
        return sum(score is not None for score in scores.values())

    return run


def tfdv(reference: str, current: str) -> Callable[[], int]:
    """Statistics of the current side, validated against those of the reference."""
    import tensorflow_data_validation as tool

    kept = tool.generate_statistics_from_dataframe(pd.read_parquet(reference))
    schema = tool.infer_schema(kept)
    for feature in schema.feature:
        feature.drift_comparator.jensen_shannon_divergence.threshold = 0.1

    def run() -> int:
        found = tool.generate_statistics_from_dataframe(pd.read_parquet(current))
        said = tool.validate_statistics(found, schema, previous_statistics=kept)
        return len(said.drift_skew_info)

    return run


def scipy(reference: str, current: str) -> Callable[[], int]:
    """Kolmogorov-Smirnov and chi-square tests in a loop."""
    from scipy import stats

    def run() -> int:
        before, after = pd.read_parquet(reference), pd.read_parquet(current)
        for name in before.columns:
            sides = before[name].dropna(), after[name].dropna()
            if pd.api.types.is_numeric_dtype(before[name]):
                stats.ks_2samp(*sides, method="asymp")
            else:
                counts = pd.concat([side.value_counts() for side in sides], axis=1).fillna(0)
                stats.chi2_contingency(counts.to_numpy())
        return len(before.columns)

    return run


PEERS: dict[str, Any] = {one.__name__: one for one in (evidently, nannyml, whylogs, tfdv, scipy)}


def used() -> float:
    """Return CPU seconds of this process and its children."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def main() -> None:
    """Measure one peer."""
    warnings.simplefilter("ignore")
    peer, warm, reference, current = sys.argv[1:]
    PEERS[peer](warm, warm)()
    run = PEERS[peer](reference, current)
    began, cpu = time.perf_counter(), used()
    columns = run()
    cpu, wall = used() - cpu, time.perf_counter() - began
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    print(json.dumps({"cpu": cpu, "wall": wall, "peak": peak, "columns": columns}))


if __name__ == "__main__":
    main()
