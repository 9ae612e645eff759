"""The dashboard of the live models and their retraining.

On `frame` and `panels`.
"""

from __future__ import annotations

from typing import Any

from frame import ISO_TIME, MONITOR, board, filled
from panels import RATIO_STEPS, bars, lines, query, rows

from steadfeast.monitor.exporter import metrics as m


def model() -> Any:
    """Return the dashboard of the live models and their retraining."""
    made = board("model", "Model", "How the live model does, and its retraining.", features=False)
    figures = [
        lines(
            name.replace("_", " "),
            f"Live model's {name} on the labels that are in with its 95 % interval, what it is "
            "estimated to be before they are, and what it had when it was trained.",
            query(f"{m.PERFORMANCE}{name}{MONITOR}", "{{monitor}} live"),
            query(
                f'{m.PERFORMANCE_BOUND}{{monitor=~"$monitor", figure="{name}"}}',
                "{{monitor}} {{side}}",
            ),
            *(
                [query(f"{m.PERFORMANCE_ESTIMATED}{name}{MONITOR}", "{{monitor}} estimated")]
                if name in m.ESTIMATED_FIGURES
                else []
            ),
            query(f"{m.PERFORMANCE_REFERENCE}{name}{MONITOR}", "{{monitor}} when trained"),
            minimum=None,
            width=6,
        )
        for name in m.PERFORMANCE_FIGURES
    ]
    return filled(
        made,
        [
            rows(
                "Live models",
                "Version and contract of the model that each monitor believes to be live.",
                query(f"{m.MONITOR_INFO}{MONITOR}", instant=True),
                renamed={"Value": "watched"},
                width=24,
                height=5,
            ),
            lines(
                "How much worse than when trained",
                "The deciding figure's fall below the hold-out, in multiples of `max_drop`: by the "
                "labels that are in, and by the estimate before they are. Above 1 by the labels "
                "opens an episode; above 1 by the estimate is a warning.",
                query(f"{m.PERFORMANCE_DROP}{MONITOR}", "{{monitor}} by {{basis}}"),
                steps=RATIO_STEPS,
            ),
            lines(
                "Prediction drift",
                "Distance of the live model's predictions from those on its hold-out, in multiples "
                "of the limit.",
                query(
                    f'{m.DRIFT_RATIO}{{monitor=~"$monitor", source="predictions"}}', "{{monitor}}"
                ),
                steps=RATIO_STEPS,
            ),
            *figures,
            lines(
                "Error of the estimate",
                "The last estimate that could be compared, less what the labels then said: above 0 "
                "the estimate was too high.",
                query(f"{m.PERFORMANCE_ERROR}{MONITOR}", "{{monitor}} {{figure}}"),
                minimum=None,
            ),
            bars(
                "What matters most of what changed",
                "Effect x importance: the shift in standard deviations that a feature's distance "
                "stands for, times the share of the model's skill that hangs on it.",
                f"topk(10, {m.DRIFT_IMPACT}{MONITOR})",
                "{{monitor}} {{feature}}",
                steps=((None, "blue"),),
            ),
            lines(
                "Relations between features",
                "How much otherwise than in the reference the features hang together, in multiples "
                "of the limit: as a classifier tells the rows apart, and as the reference's "
                "principal components reconstruct them. For monitors with `multivariate: true`.",
                *(
                    query(
                        f"{m.distance(name, '').name}{MONITOR} / ignoring(statistic) "
                        f'{m.DRIFT_THRESHOLD}{{monitor=~"$monitor", statistic="{name}"}}',
                        f"{{{{monitor}}}} {shown}",
                    )
                    for name, shown in m.NAMES.items()
                ),
                steps=RATIO_STEPS,
                width=24,
            ),
            rows(
                "Segments",
                "Rows with one value of a column that the monitor splits by: how many, how far "
                "their furthest feature is in multiples of its limit, and the deciding figure.",
                query(f"{m.SEGMENT_ROWS}{MONITOR}", instant=True),
                query(f"{m.SEGMENT_RATIO}{MONITOR}", instant=True),
                query(f"{m.SEGMENT_PERFORMANCE}{MONITOR}", instant=True),
                renamed={"Value #A": "rows", "Value #B": "of the limit", "Value #C": "live"},
                width=24,
            ),
            lines(
                "Labelled rows",
                "Rows behind the live figures; below the configured least there is no figure.",
                query(f"{m.PERFORMANCE_ROWS}{MONITOR}", "{{monitor}}"),
            ),
            rows(
                "Challenger against champion",
                "Gates of the last run that came to them: what the challenger measured, and what "
                "the champion or a limit asked for.",
                query(f"{m.GATE_VALUE}{MONITOR}", instant=True),
                query(f"{m.GATE_LIMIT}{MONITOR}", instant=True),
                query(f"{m.GATE_PASSED}{MONITOR}", instant=True),
                renamed={"Value #A": "challenger", "Value #B": "asked for", "Value #C": "passed"},
                units={"passed": "bool_yes_no"},
            ),
            lines(
                "Challenger and champion, run by run",
                "What the challenger of the last run and the champion of then measured on the same "
                "held-out rows, and what was asked for. A step is a run; the marks say how it "
                "ended.",
                query(
                    f"{m.GATE_VALUE}{MONITOR} and on (monitor, gate) {m.GATE_CHAMPION}",
                    "{{monitor}} challenger",
                ),
                query(f"{m.GATE_CHAMPION}{MONITOR}", "{{monitor}} champion"),
                query(
                    f"{m.GATE_LIMIT}{MONITOR} and on (monitor, gate) {m.GATE_CHAMPION}",
                    "{{monitor}} asked for",
                ),
                minimum=None,
            ),
            rows(
                "Retrain history",
                "When a run last came into each state (wall clock), and how many runs are in it.",
                query(f"{m.RUN_CHANGED}{MONITOR} * 1000", instant=True),
                query(f"{m.RUNS}{MONITOR} > 0", instant=True),
                renamed={"Value #A": "last", "Value #B": "runs"},
                units={"last": ISO_TIME},
            ),
            lines(
                "Runs by state",
                "Runs of the last 100 triggers. Refused is a normal end: a gate kept the champion.",
                query(f"{m.RUNS}{MONITOR}", "{{monitor}} {{state}}"),
            ),
            lines(
                "Live figures behind the latest event",
                "How far the end of the window of the live figures is behind the latest event.",
                query(
                    f"scalar({m.LATEST_EVENT}) - {m.PERFORMANCE_END}{MONITOR}",
                    "{{monitor}}",
                ),
                unit="s",
                minimum=None,
            ),
        ],
    )
