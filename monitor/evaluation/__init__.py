"""One closed bucket after the other: measured, decided, committed."""

from steadfeast.monitor.evaluation.causes import Causes, ForeignAlert, NotYetError
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.evaluation.preflight import check, project
from steadfeast.monitor.evaluation.window_profiles import rows_of

__all__ = ["Causes", "Evaluator", "ForeignAlert", "NotYetError", "check", "project", "rows_of"]
