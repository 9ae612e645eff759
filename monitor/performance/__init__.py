"""How good the live model's predictions are: measured, and estimated."""

from steadfeast.monitor.performance.estimated import ESTIMATED, Estimator, fit
from steadfeast.monitor.performance.realized import (
    Performance,
    figures_of,
    judge,
    measured,
    predictions,
)

__all__ = [
    "ESTIMATED",
    "Estimator",
    "Performance",
    "figures_of",
    "fit",
    "judge",
    "measured",
    "predictions",
]
