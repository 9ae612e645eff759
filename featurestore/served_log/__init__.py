"""Every vector that was served, with predictions and labels."""

from steadfeast.featurestore.served_log.files import (
    Lineage,
    Run,
    collect,
    damaged,
    lineage,
    named,
    take_out,
)
from steadfeast.featurestore.served_log.intake import Intake, intakes
from steadfeast.featurestore.served_log.label_file import log_labels
from steadfeast.featurestore.served_log.log import KINDS, ServedLog

__all__ = [
    "KINDS",
    "Intake",
    "Lineage",
    "Run",
    "ServedLog",
    "collect",
    "damaged",
    "intakes",
    "lineage",
    "log_labels",
    "named",
    "take_out",
]
