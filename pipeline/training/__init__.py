"""One run: from examples to a judged challenger, to the model that serves."""

from steadfeast.pipeline.training.challenge import (
    Challenge,
    JudgedFit,
    Live,
    Model,
    Split,
    challenge,
    refit,
    split,
    target_of,
)
from steadfeast.pipeline.training.retrain import ExamplesError, Retrain, examples

__all__ = [
    "Challenge",
    "ExamplesError",
    "JudgedFit",
    "Live",
    "Model",
    "Retrain",
    "Split",
    "challenge",
    "examples",
    "refit",
    "split",
    "target_of",
]
