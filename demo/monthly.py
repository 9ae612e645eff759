"""What a dumb calendar earns: the model refitted on the first of each month, on all that was known.

No gates and no hold-out: the recipe, on every label that was known by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from steadfeast.backtest import History
from steadfeast.pipeline import recipes
from steadfeast.pipeline.training import Model

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from steadfeast.pipeline.config import ModelConfig


def monthly(path: Path, config: ModelConfig, start: datetime, until: datetime) -> pa.Table:
    """Return the score that a monthly refit gives each labelled request of [start, until).

    Args:
        path: The configuration file.
        config: How the model is retrained.
        start: When the first model was trained, at the beginning of a month.
        until: The end of the replay.

    Returns:
        Columns `request_id` and `monthly`.
    """
    history = History.build(path, config)
    fit = recipes.load_function(config.recipe, path.resolve().parent)
    ids, scores = [], []
    while start < until:
        end = (start.replace(year=start.year + 1, month=1) if start.month == 12  # noqa: PLR2004
               else start.replace(month=start.month + 1))  # fmt: skip
        rows = history.rows(start, min(end, until))
        table = history.training.table.slice(rows.start, rows.stop - rows.start)
        if table.num_rows:
            with recipes.limited(1):
                model = Model(fit(history.known_by(start)), history.target)
                scores.append(model.predict(table))
            ids.append(table["request_id"].combine_chunks())
        start = end
    return pa.table({"request_id": pa.concat_arrays(ids), "monthly": np.concatenate(scores)})
