"""Gates: checks of the data before a model is fitted, and of the model before it serves."""

from steadfeast.pipeline.gates.data import data_gates
from steadfeast.pipeline.gates.gate import Gate, refusal
from steadfeast.pipeline.gates.model import HeldOut, Judged, Rival, model_gates

__all__ = ["Gate", "HeldOut", "Judged", "Rival", "data_gates", "model_gates", "refusal"]
