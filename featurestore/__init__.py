"""The feature store: plain Feast definitions, Feast plugins, and the guarantee on top of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.answers import OnlineFeatures
    from featurestore.contract import Contract
    from featurestore.manifest import Manifest, TrainingSet
    from featurestore.served import ServedLog
    from featurestore.store import Store

_HOMES = {
    "Contract": "featurestore.contract",
    "Manifest": "featurestore.manifest",
    "OnlineFeatures": "featurestore.answers",
    "ServedLog": "featurestore.served",
    "Store": "featurestore.store",
    "TrainingSet": "featurestore.manifest",
}

__all__ = ["Contract", "Manifest", "OnlineFeatures", "ServedLog", "Store", "TrainingSet"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: Feast alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
