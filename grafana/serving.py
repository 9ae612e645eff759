"""The dashboard of the edges: what they serve, how fast, how old, and what waits to be logged.

On `frame` and `panels`.
"""

from __future__ import annotations

from typing import Any

from frame import board, filled
from panels import ANY_IS_BAD, figure, lines, query, rows

from steadfeast.featurestore.server import metrics as store
from steadfeast.pipeline.inference import metrics as model

EVERY = "[$__rate_interval]"


def serving() -> Any:
    """Return the dashboard of the store's and the models' edges."""
    made = board("serving", "Serving", "What the edges answer and log.", features=False)
    return filled(made, [*_models(), *_features()])


def _models() -> list[Any]:
    return [
        rows(
            "Versions that answer",
            "The version of each model that answers when none is asked for, by edge.",
            query(model.VERSION, instant=True),
            renamed={"Value": "serves"},
            width=20,
            height=4,
        ),
        figure(
            "Champions not served",
            "Models whose champion does not serve: it does not load, or its contract cannot be "
            "served.",
            f"sum({model.NOT_SERVED})",
            steps=ANY_IS_BAD,
        ),
        lines(
            "Requests for predictions",
            "Requests that the models' edges answered, by model and outcome.",
            query(f"sum by (model, code) (rate({model.REQUESTS}{EVERY}))", "{{model}} {{code}}"),
            unit="reqps",
        ),
        lines(
            "Rows predicted",
            "Rows that were predicted, by model and version.",
            query(f"sum by (model, version) (rate({model.ROWS}{EVERY}))", "{{model}} v{{version}}"),
            unit="rowsps",
        ),
        lines(
            "Time of each stage",
            "Time in which 99 of 100 batches were read, predicted and logged, by model.",
            query(
                "histogram_quantile(0.99, sum by (le, model, stage) "
                f"(rate({model.SECONDS}_bucket{EVERY})))",
                "{{model}} {{stage}} 99 %",
            ),
            unit="s",
        ),
    ]


def _features() -> list[Any]:
    return [
        lines(
            "Requests for features",
            "Requests that the serving edges answered, by feature service and outcome.",
            query(
                f"sum by (service, code) (rate({store.REQUESTS}{EVERY}))",
                "{{service}} {{code}}",
            ),
            unit="reqps",
        ),
        lines(
            "Time to answer",
            "Time in which 99 of 100 requests for features were answered, by feature service.",
            query(
                "histogram_quantile(0.99, sum by (le, service) "
                f"(rate({store.DURATION}_bucket{EVERY})))",
                "{{service}} 99 %",
            ),
            unit="s",
        ),
        lines(
            "Rows served",
            "Entity rows that the serving edges answered, by feature service.",
            query(f"sum by (service) (rate({store.ROWS}{EVERY}))", "{{service}}"),
            unit="rowsps",
        ),
        lines(
            "Values served, by status",
            "Feature values by what was found: present, null, not found, or outside the TTL.",
            query(
                f"sum by (service, status) (rate({store.VALUES}{EVERY}))",
                "{{service}} {{status}}",
            ),
        ),
        lines(
            "Age of features when served",
            "Mean age of the served values of each feature view, of one request in sixteen.",
            query(
                f"sum by (service, view) (rate({store.AGE}_sum{EVERY})) / "
                f"sum by (service, view) (rate({store.AGE}_count{EVERY}))",
                "{{service}} {{view}}",
            ),
            unit="s",
        ),
        lines(
            "Waiting to be logged",
            "Rows in an edge's memory that are not yet in the served log; a crash loses them, and "
            "the audit says how many.",
            query(f"sum by (service, kind) ({store.WAITING})", "{{service}} {{kind}}"),
        ),
        lines(
            "Predictions and labels taken in",
            "Rows that applications sent for the log, by service.",
            query(f"sum by (service, kind) (rate({store.LOGGED}{EVERY}))", "{{service}} {{kind}}"),
            unit="rowsps",
        ),
    ]
