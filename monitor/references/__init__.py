"""How a reference is made: of a training set, or of a stretch of a source."""

from steadfeast.monitor.references.training_set import (
    STRETCH,
    own,
    reference_from,
    reference_from_stretch,
    stretch_uri,
)

__all__ = ["STRETCH", "own", "reference_from", "reference_from_stretch", "stretch_uri"]
