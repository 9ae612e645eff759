"""The model edge: predictions with their features read, logged and versioned in one call.

Loaded when asked for: the command line reads this package to list its commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.pipeline.inference.edge import serve
    from steadfeast.pipeline.inference.model import Model, Predictions

__all__ = ["Model", "Predictions", "serve"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    part = "edge" if name == "serve" else "model"
    return getattr(import_module(f"{__name__}.{part}"), name)
