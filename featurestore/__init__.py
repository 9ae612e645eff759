"""The feature store: plain Feast definitions, Feast plugins, and the guarantee on top of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.featurestore.definitions.contract import Contract
    from steadfeast.featurestore.served_log.log import ServedLog
    from steadfeast.featurestore.serving.features import OnlineFeatures
    from steadfeast.featurestore.store import Store
    from steadfeast.featurestore.training.manifest import Manifest, TrainingSet

_HOMES = {
    "Contract": "steadfeast.featurestore.definitions.contract",
    "Manifest": "steadfeast.featurestore.training.manifest",
    "OnlineFeatures": "steadfeast.featurestore.serving.features",
    "ServedLog": "steadfeast.featurestore.served_log.log",
    "Store": "steadfeast.featurestore.store",
    "TrainingSet": "steadfeast.featurestore.training.manifest",
}

__all__ = ["Contract", "Manifest", "OnlineFeatures", "ServedLog", "Store", "TrainingSet"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: Feast alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
