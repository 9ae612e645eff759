"""Every vector that was served, with predictions and labels."""

from steadfeast.featurestore.served_log.files import Lineage, Run, collect, lineage, named, take_out
from steadfeast.featurestore.served_log.log import KINDS, ServedLog

__all__ = ["KINDS", "Lineage", "Run", "ServedLog", "collect", "lineage", "named", "take_out"]
