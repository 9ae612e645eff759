"""Days of normal features, each with a jitter of its own, and a reference made of them."""

import math

import numpy as np
import pyarrow as pa
from scipy import stats as sp

from steadfeast.monitor.drift.detector import detect
from steadfeast.monitor.drift.reference import reference_of
from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.profile import ColumnProfile, Profile, Window
from support.drift_world import CONFIG, DAY, T0


def normal_days(edges, days, rows, *, jitter, week=0.1, seed=0, shift=0.0):
    """Profiles of days of a normal feature per column of `edges`, each breathing on its own."""
    rng = np.random.default_rng(seed)
    found = []
    for day in range(days):
        columns = {}
        for name, one in edges.columns.items():
            mean = shift + jitter * rng.standard_normal() + week * math.sin(2 * math.pi * day / 7)
            share = np.diff(sp.norm.cdf(np.array(one.cuts) - mean), prepend=0, append=1)
            counts = rng.multinomial(rows, share / share.sum())
            columns[name] = ColumnProfile(rows, 0, 0, 0, 0, -4.0, 4.0, mean, float(rows), counts)
        found.append(Profile(edges, rows, columns, {}))
    return found


def normal_edges(columns):
    rng = np.random.default_rng(99)
    table = pa.table({f"c{i}": rng.standard_normal(20_000) for i in range(columns)})
    return edges_of(table, table.column_names)


def made(edges, days, config=CONFIG, name="psi"):
    series = [(T0 + i * DAY, one) for i, one in enumerate(days)]
    return reference_of(series, edges, config.model_copy(update={"statistic": name}))


def judge(reference, day, number, config=CONFIG):
    """Verdicts on one day, by the name of the feature; `number` is how many days after `T0`."""
    start = T0 + number * DAY
    window = Window(start - 6 * DAY, start + DAY, day.rows)
    found = detect(reference, day, window, config, bucket=(start, day))
    return sorted(found, key=lambda one: one.feature)
