"""The invariants, checked over every key and every logged vector."""

from steadfeast.featurestore.audit.audit import AuditReport, audit, online_against_offline
from steadfeast.featurestore.audit.online import compare
from steadfeast.featurestore.audit.report import Redactor
from steadfeast.featurestore.audit.served import served_against_offline

__all__ = [
    "AuditReport",
    "Redactor",
    "audit",
    "compare",
    "online_against_offline",
    "served_against_offline",
]
