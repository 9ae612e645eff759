"""references."""

from steadfeast.monitor.references.training_set import (
    STRETCH,
    own,
    reference_from,
    reference_from_stretch,
    stretch_uri,
)

__all__ = ["STRETCH", "own", "reference_from", "reference_from_stretch", "stretch_uri"]
