"""One set of measures: how good predictions are, for the monitor and the pipeline alike."""

from steadfeast.measures.assignment import place_of, takes_in
from steadfeast.measures.catalog import (
    MEASURES,
    Measure,
    MeasureError,
    measure_named,
    measures_of,
)
from steadfeast.measures.figures import HALF, RELIABILITY_BINS, Floats, Interval, OneClassError
from steadfeast.measures.resampling import Estimate, blocks_of, compared, measured
from steadfeast.measures.sample import Sample, Task
from steadfeast.measures.sequential import (
    AnytimeMean,
    anytime_mean,
    overdispersion,
    share_high,
    share_low,
    split_evidence,
    unit_inflation,
)

__all__ = [
    "HALF",
    "MEASURES",
    "RELIABILITY_BINS",
    "AnytimeMean",
    "Estimate",
    "Floats",
    "Interval",
    "Measure",
    "MeasureError",
    "OneClassError",
    "Sample",
    "Task",
    "anytime_mean",
    "blocks_of",
    "compared",
    "measure_named",
    "measured",
    "measures_of",
    "overdispersion",
    "place_of",
    "share_high",
    "share_low",
    "split_evidence",
    "takes_in",
    "unit_inflation",
]
