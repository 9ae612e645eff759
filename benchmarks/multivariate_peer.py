"""nannyml's looks at all features for `benchmarks/multivariate.py`; run in its own environment.

    python benchmarks/multivariate_peer.py FOLDER

Reads `reference.parquet` and every `window-*.parquet`. The reference is cut into its weeks, each
window is one chunk; defaults otherwise. Prints, as one line of JSON, for each window whether the
domain classifier and the PCA reconstruction alert. Imports nothing of this repository.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nannyml
import pandas as pd


def main() -> None:
    """Fit on the reference, judge window by window."""
    pd.set_option("future.infer_string", False)
    folder = Path(sys.argv[1])
    reference = pd.read_parquet(folder / "reference.parquet")
    columns = [name for name in reference.columns if name != "t"]
    found = []
    calculators = [
        nannyml.DomainClassifierCalculator(feature_column_names=columns, chunk_number=8),
        nannyml.DataReconstructionDriftCalculator(column_names=columns, chunk_number=8),
    ]
    for one in calculators:
        one.fit(reference[columns])
        one.chunker = nannyml.chunk.CountBasedChunker(chunk_number=1)
    for path in sorted(folder.glob("window-*.parquet")):
        window = pd.read_parquet(path)[columns]
        flags = []
        for one, what in zip(
            calculators, ("domain_classifier_auroc", "reconstruction_error"), strict=True
        ):
            frame = one.calculate(window).filter(period="analysis").to_df()
            flags.append(bool(frame[(what, "alert")].iloc[0]))
        found.append(flags)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
