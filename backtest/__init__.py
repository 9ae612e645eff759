"""Policies of retraining, replayed over a repo's own history. Above `monitor` and `pipeline`.

A name is imported when it is first asked for: the command line reads this file to list its
commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.backtest.command import compare
    from steadfeast.backtest.history import History
    from steadfeast.backtest.judgement import Earned, Verdict
    from steadfeast.backtest.report import Verdicts

_MODULES = {
    "Earned": "judgement",
    "History": "history",
    "Verdict": "judgement",
    "Verdicts": "report",
    "compare": "command",
}

__all__ = ["Earned", "History", "Verdict", "Verdicts", "compare"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
