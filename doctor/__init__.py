"""What is missing or risky in a repo, looked at before it hurts. Above `monitor` and `pipeline`.

A name is imported when it is first asked for: the command line reads this file to list its
commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.doctor.examination import examine
    from steadfeast.doctor.findings import CHECKS, Finding, Level

_MODULES = {
    "CHECKS": "findings",
    "Finding": "findings",
    "Level": "findings",
    "examine": "examination",
}

__all__ = ["CHECKS", "Finding", "Level", "examine"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
