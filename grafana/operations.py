"""The dashboard of the daemon itself: how it does its work.

On `frame` and `panels`.
"""

from __future__ import annotations

from typing import Any

from frame import MONITOR, board, filled
from panels import figure, lines, query, rows

from steadfeast.monitor.exporter import metrics as m


def operations() -> Any:
    """Return the dashboard of the daemon itself."""
    made = board("operations", "Operations", "How the daemon does its work.", features=False)
    every = "[$__rate_interval]"
    return filled(
        made,
        [
            rows(
                "Daemons",
                "Version of each daemon that is scraped.",
                query(m.BUILD_INFO, instant=True),
                renamed={"Value": "up"},
                width=8,
                height=4,
            ),
            figure(
                "At rest",
                "Yes when all closed buckets are evaluated, nothing is to deliver and no run "
                "goes on.",
                f"min({m.IDLE})",
                names={0.0: ("at work", "blue"), 1.0: ("yes", "green")},
            ),
            figure("To deliver", "Triggers committed and not yet delivered.", m.OUTBOX_MESSAGES),
            figure(
                "Oldest undelivered",
                "Age of the oldest trigger that is not yet delivered; no data means none.",
                f"time() - {m.OUTBOX_OLDEST}",
                unit="s",
                steps=((None, "green"), (600.0, "red")),
            ),
            figure("Alerts", "Alerts sent over the life of the ledger.", f"max({m.ALERTS})"),
            lines(
                "Since the last success",
                "Time since a job last ended well.",
                query(f"time() - {m.JOB_SUCCEEDED}", "{{task}}"),
                unit="s",
            ),
            lines(
                "Time in jobs",
                "Mean time of a job's runs, and that of the last one.",
                query(
                    f"rate({m.JOB_SECONDS}_sum{every}) / rate({m.JOB_SECONDS}_count{every})",
                    "{{task}} mean",
                ),
                query(m.JOB_LAST_SECONDS, "{{task}} last"),
                unit="s",
            ),
            lines(
                "Failed and left out",
                "Runs of jobs that failed, or that were left out because the last one still ran.",
                query(f"increase({m.JOB_FAILURES}{every})", "{{task}} failed"),
                query(f"increase({m.JOB_MISFIRES}{every})", "{{task}} left out"),
            ),
            lines(
                "Behind the latest event",
                "How far the last evaluated bucket is behind the latest event that was seen.",
                query(f"scalar({m.LATEST_EVENT}) - {m.MONITOR_WATERMARK}{MONITOR}", "{{monitor}}"),
                unit="s",
                minimum=None,
            ),
            lines(
                "Decisions",
                "Decisions about retraining, by outcome.",
                query(f"{m.DECISIONS}{MONITOR}", "{{monitor}} {{outcome}}"),
            ),
            lines(
                "Triggers",
                "The last 100 triggers, by state.",
                query(f"{m.TRIGGERS}{MONITOR}", "{{monitor}} {{state}}"),
            ),
            lines(
                "Deliveries tried",
                "Attempts to deliver a trigger; more than one a trigger means a pipeline that "
                "does not answer.",
                query(f"increase({m.OUTBOX_ATTEMPTS}{every})", "attempts"),
            ),
            lines(
                "Rows frozen",
                "Rows in snapshots, those that came too late for theirs, snapshots, and how many "
                "of them are damaged now.",
                query(f"increase({m.SNAPSHOT_ROWS}{MONITOR}{every})", "{{monitor}} rows"),
                query(f"increase({m.SNAPSHOT_LATE_ROWS}{MONITOR}{every})", "{{monitor}} late rows"),
                query(f"increase({m.SNAPSHOTS}{MONITOR}{every})", "{{monitor}} snapshots"),
                query(f"{m.SNAPSHOTS_DAMAGED}{MONITOR}", "{{monitor}} damaged"),
            ),
            lines(
                "Configurations",
                "Configurations taken over on SIGHUP, and refused.",
                query(m.RELOADS, "{{result}}"),
            ),
            lines(
                "Memory",
                "Resident memory of the daemon.",
                query(
                    "process_resident_memory_bytes and on (instance) " + m.BUILD_INFO, "resident"
                ),
                unit="bytes",
            ),
        ],
    )
