"""training."""

from steadfeast.featurestore.training.manifest import (
    DATA,
    Manifest,
    TrainingSet,
    manifests,
    remember_removal,
    removals_of,
)
from steadfeast.featurestore.training.replay import changes_of, replay

__all__ = [
    "DATA",
    "Manifest",
    "TrainingSet",
    "changes_of",
    "manifests",
    "remember_removal",
    "removals_of",
    "replay",
]
