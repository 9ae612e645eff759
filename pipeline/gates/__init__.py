"""Gates: checks of the data before a model is fitted, and of the model before it serves."""

from steadfeast.pipeline.gates.data import Examples, data_gates, own_gates
from steadfeast.pipeline.gates.gate import Gate, refusal
from steadfeast.pipeline.gates.model import HeldOut, Judged, Rival, model_gates
from steadfeast.pipeline.gates.plugs import CheckError, load_checks

__all__ = [
    "CheckError",
    "Examples",
    "Gate",
    "HeldOut",
    "Judged",
    "Rival",
    "data_gates",
    "load_checks",
    "model_gates",
    "own_gates",
    "refusal",
]
