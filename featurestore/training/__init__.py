"""Training sets, and the evidence that they can be rebuilt from."""

from steadfeast.featurestore.training.manifest import (
    DATA,
    MANIFEST,
    Manifest,
    TrainingSet,
    manifests,
    remember_removal,
    removals_of,
)
from steadfeast.featurestore.training.replay import changes_of, replay
from steadfeast.featurestore.training.training_set import KNOWN_AT

__all__ = [
    "DATA",
    "KNOWN_AT",
    "MANIFEST",
    "Manifest",
    "TrainingSet",
    "changes_of",
    "manifests",
    "remember_removal",
    "removals_of",
    "replay",
]
