"""Models and their versions, kept by MLflow."""

from steadfeast.pipeline.registry.registry import (
    Facts,
    LoadedModel,
    Registry,
    RegistryError,
    UntrustedModelError,
)

__all__ = ["Facts", "LoadedModel", "Registry", "RegistryError", "UntrustedModelError"]
