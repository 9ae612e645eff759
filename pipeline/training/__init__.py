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

__all__ = [
    "Challenge",
    "JudgedFit",
    "Live",
    "Model",
    "Split",
    "challenge",
    "refit",
    "split",
    "target_of",
]
