"""Models and their versions, kept by MLflow."""

from steadfeast.pipeline.registry.formats import MissingLibraryError, OnnxModel, UntrustedModelError
from steadfeast.pipeline.registry.mlflow_runs import MlflowRuns
from steadfeast.pipeline.registry.registry import Registry, RegistryError
from steadfeast.pipeline.registry.version import Facts, LoadedModel

__all__ = [
    "Facts",
    "LoadedModel",
    "MissingLibraryError",
    "MlflowRuns",
    "OnnxModel",
    "Registry",
    "RegistryError",
    "UntrustedModelError",
]
