"""Models and their versions, kept by MLflow."""

from steadfeast.pipeline.registry.formats import MissingLibraryError, OnnxModel, UntrustedModelError
from steadfeast.pipeline.registry.registry import Facts, LoadedModel, Registry, RegistryError

__all__ = [
    "Facts",
    "LoadedModel",
    "MissingLibraryError",
    "OnnxModel",
    "Registry",
    "RegistryError",
    "UntrustedModelError",
]
