"""What is known, in one DuckDB file."""

from steadfeast.monitor.ledger.codec import dump, from_json
from steadfeast.monitor.ledger.database import LedgerWriteError, fault
from steadfeast.monitor.ledger.ledger import Following, Ledger, Message
from steadfeast.monitor.ledger.messages import ENDED, RUN_STATES, state_name, timestamp
from steadfeast.monitor.ledger.queries import FrozenBucket, Position
from steadfeast.monitor.ledger.state import (
    AuditCheck,
    AuditState,
    EpisodeRecord,
    JobState,
    MonitorState,
    PastWindow,
    PromotionRecord,
    State,
    TriggerRecord,
)

__all__ = [
    "ENDED",
    "RUN_STATES",
    "AuditCheck",
    "AuditState",
    "EpisodeRecord",
    "Following",
    "FrozenBucket",
    "JobState",
    "Ledger",
    "LedgerWriteError",
    "Message",
    "MonitorState",
    "PastWindow",
    "Position",
    "PromotionRecord",
    "State",
    "TriggerRecord",
    "dump",
    "fault",
    "from_json",
    "state_name",
    "timestamp",
]
