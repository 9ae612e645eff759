"""Policies of retraining, replayed over a repo's own history. Above `monitor` and `pipeline`."""

from steadfeast.backtest.command import compare
from steadfeast.backtest.history import History
from steadfeast.backtest.judgement import Earned, Verdict

__all__ = ["Earned", "History", "Verdict", "compare"]
