"""The dashboard of one feature: how it moved.

On `frame` and `panels`.
"""

from __future__ import annotations

from typing import Any

from frame import FEATURE, ISO_TIME, MONITOR, board, filled
from panels import RATIO_STEPS, lines, query, rows, shares, states

from steadfeast.monitor.drift import SHARES, SHIFT, STATISTICS
from steadfeast.monitor.exporter import metrics as m

LEVELS = {
    0.0: ("within limit", "green"),
    1.0: ("too little data", "text"),
    2.0: ("over limit", "red"),
    3.0: ("broken", "dark-purple"),
}
"""Value of `DRIFT_LEVEL` to its name and colour."""


def feature() -> Any:
    """Return the dashboard of one feature, or of a few beside each other."""
    made = board("feature", "Feature", "How one feature moved.", features=True)
    statistics = "|".join(m.DRIFT + name for name in (*STATISTICS, SHIFT, *SHARES))
    return filled(
        made,
        [
            lines(
                "Ratio to the limit",
                "Deciding statistic over its threshold. Above 1 is over the limit; below 0.8 for "
                "enough windows resolves its drift.",
                query(f"{m.DRIFT_RATIO}{FEATURE}", "{{monitor}} {{feature}}"),
                steps=RATIO_STEPS,
            ),
            lines(
                "Statistic and its limit",
                "The distance in the statistic's own unit, and the calibrated threshold.",
                query(
                    f'{{__name__=~"{statistics}", monitor=~"$monitor", feature=~"$feature"}}',
                    "{{__name__}} {{feature}}",
                ),
                query(f"{m.DRIFT_THRESHOLD}{FEATURE}", "limit of {{statistic}} {{feature}}"),
            ),
            shares(
                "Reference against current",
                "Share of the rows by value: the groups that the deciding statistic sums over, "
                "with null and NaN as groups of their own. Exported for the "
                f"{m.MOST_SPREADS} features of a monitor that matter most: those of open episodes, "
                "then the highest ratios.",
                f"{m.FEATURE_SHARE}{FEATURE}",
                by="side",
                across="bin",
            ),
            states(
                "Verdict",
                "What each window was judged to be.",
                query(f"{m.DRIFT_LEVEL}{FEATURE}", "{{monitor}} {{feature}}"),
                names=LEVELS,
                height=6,
            ),
            lines(
                "Unusable values",
                "Shares of the current window's rows that are null, NaN, infinite, of another "
                "type, or outside what the reference has.",
                *(
                    query(f"{name}{FEATURE}", f"{{{{feature}}}} {word}")
                    for name, word in (
                        (m.FEATURE_NULLS, "null"),
                        (m.FEATURE_NANS, "NaN"),
                        (m.FEATURE_INFINITIES, "infinite"),
                        (m.FEATURE_MISTYPED, "other type"),
                        (m.FEATURE_UNSEEN, "not in the reference"),
                    )
                ),
                unit="percentunit",
            ),
            lines(
                "Rows",
                "Rows of the current window in which the feature was there, of the window, and of "
                "the reference.",
                query(f"{m.FEATURE_ROWS}{FEATURE}", "{{feature}}"),
                query(f"{m.WINDOW_ROWS}{MONITOR}", "window of {{monitor}}"),
                query(f"{m.REFERENCE_ROWS}{MONITOR}", "reference of {{monitor}}"),
            ),
            lines(
                "Skew by kind",
                "Cells of this feature in which serving and training differed in the last audit, "
                "by kind of skew. 0 is an audit that found none; no data, that there was no audit.",
                query(
                    f"sum by (monitor, invariant, subject, kind) ({m.AUDIT_SKEW}{FEATURE}) "
                    f"or on (monitor) 0 * {m.AUDIT_AT}{MONITOR}",
                    "{{monitor}} {{invariant}} {{subject}} {{kind}}",
                ),
            ),
            lines(
                "Skew of all features",
                "The same of the whole service, with what is not of a feature: lost rows, rows "
                "that went back, mixed contracts.",
                query(
                    f"{m.AUDIT_MISMATCHES}{MONITOR}",
                    "{{invariant}} {{subject}} {{kind}}",
                ),
            ),
            rows(
                "Windows",
                "End of the current window and of the reference (event time).",
                query(f"{m.WINDOW_END}{MONITOR} * 1000", instant=True),
                query(f"{m.REFERENCE_END}{MONITOR} * 1000", instant=True),
                renamed={"Value #A": "current window until", "Value #B": "reference until"},
                units={"current window until": ISO_TIME, "reference until": ISO_TIME},
                width=24,
                height=4,
            ),
        ],
    )
