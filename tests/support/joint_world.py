"""Rows whose columns hang together, until they do so otherwise."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def day(number, size=200, *, what="", seed=0, jitter=0.05, season=0.1):
    """Two columns that rise together, a third that another follows, categories; each day its own.

    `flip`: the two fall with each other. `swap`: the third and what follows it change places.
    `mean`: a column moves. Every single column keeps its distribution in the first two.
    """
    rng = np.random.default_rng([seed, number, len(what)])
    z = rng.standard_normal((size, 8))
    at = START + number * DAY
    moves = season * np.sin(2 * np.pi * number / 7) + jitter * rng.standard_normal(5)
    follows, leads = 0.8 * z[:, 0] + 0.6 * z[:, 3], z[:, 2]
    columns = {
        "a": z[:, 0],
        "b": (-0.6 if what == "flip" else 0.6) * z[:, 0] + 0.8 * z[:, 1],
        "c": follows if what == "swap" else leads,
        "d": leads if what == "swap" else follows,
        "e": z[:, 4] + (1.0 if what == "mean" else 0.0),
    }
    columns = {name: one + moves[i] for i, (name, one) in enumerate(columns.items())}
    columns["f"] = np.where(z[:, 5] < 0.5, 0.0, z[:, 5])
    kind = np.array(["u", "v", "w"])[np.where(z[:, 0] + z[:, 6] > 0.7, 0, rng.integers(1, 3, size))]
    seconds = np.sort(rng.uniform(0, 86_400, size))
    return pa.table(
        {
            "t": pa.array([at + timedelta(seconds=s) for s in seconds], pa.timestamp("us", "UTC")),
            **columns,
            "g": pa.array(z[:, 7], mask=rng.random(size) < 0.1),
            "kind": kind,
        }
    )


def days(first, many, **options):
    return pa.concat_tables(day(first + i, **options) for i in range(many))
