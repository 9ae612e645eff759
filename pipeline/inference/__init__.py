"""The model edge: predictions with their features read, logged and versioned in one call."""

from steadfeast.pipeline.inference.edge import serve
from steadfeast.pipeline.inference.model import Model, Predictions

__all__ = ["Model", "Predictions", "serve"]
