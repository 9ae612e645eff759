"""The reference retraining pipeline: recipe, runs, gates, registry, promotion.

What a recipe needs is imported from here, and loaded when asked for: the command line reads
this file to list its commands, and pandas takes longer than that.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.pipeline.gates import Gate
    from steadfeast.pipeline.inference import Model
    from steadfeast.pipeline.recipes import Fitted, Recipe, frame
    from steadfeast.pipeline.registry import OnnxModel

__all__ = ["Fitted", "Gate", "Model", "OnnxModel", "Recipe", "frame"]

_PARTS = {"Gate": "gates", "Model": "inference", "OnnxModel": "registry"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in __all__:
        part = _PARTS.get(name, "recipes")
        return getattr(import_module(f"steadfeast.pipeline.{part}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
