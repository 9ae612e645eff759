"""One run: from examples to a judged challenger, to the model that serves."""

from steadfeast.pipeline.training.challenge import (
    Challenge,
    JudgedFit,
    Live,
    Model,
    Split,
    challenge,
    fit_on,
    judged_by,
    new_to,
    refit,
    split,
    target_of,
    times_of,
)
from steadfeast.pipeline.training.retrain import (
    ExamplesError,
    Retrain,
    RunCancelledError,
    RunInterruptedError,
    examples,
)

__all__ = [
    "Challenge",
    "ExamplesError",
    "JudgedFit",
    "Live",
    "Model",
    "Retrain",
    "RunCancelledError",
    "RunInterruptedError",
    "Split",
    "challenge",
    "examples",
    "fit_on",
    "judged_by",
    "new_to",
    "refit",
    "split",
    "target_of",
    "times_of",
]
