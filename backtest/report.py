"""A backtest of policies in words: as a table, as JSON, and as one HTML file. Above `judgement`."""

from __future__ import annotations

import json
import math
from html import escape
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from steadfeast.backtest.judgement import Verdict
from steadfeast.backtest.pictures import Line, Point, frontier, over_time
from steadfeast.featurestore import notebook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steadfeast.backtest.judgement import Difference, Earned

HEADS = ("policy", "runs", "refused", "mean by {period}", "against never", "calendar of as many")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#222}table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .8rem;text-align:right;
border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}svg{width:100%}
.advice{font-weight:600}h2{margin-top:2rem;font-size:1.1rem}details{margin:.3rem 0}"""


class Verdicts(dict[str, Verdict]):
    """The verdict on each model by its name, as a notebook shows it."""

    def __repr__(self) -> str:
        """Return the advice on each model."""
        said = (f"{name}: {one.best} of {len(one.earned)}" for name, one in self.items())
        return notebook.line("Verdicts", *said)

    def _repr_html_(self) -> str:
        return "".join(
            notebook.card(name, [one.advice], notebook.table(_heads(one), _rows(one)))
            for name, one in self.items()
        )


def table(verdict: Verdict, title: str) -> Table:
    """Return the policies as `rich` prints them."""
    found = Table(box=box.SIMPLE, title=title, title_justify="left")
    for number, head in enumerate(_heads(verdict)):
        found.add_column(head, justify="right" if number else "left")
    for row in _rows(verdict):
        found.add_row(*row)
    return found


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """Return everything as plain values, for JSON."""
    return {
        "metric": verdict.measure.name,
        "lower_is_better": verdict.measure.lower_is_better,
        "period": verdict.period,
        "periods": list(verdict.periods),
        "recommended": verdict.best,
        "advice": verdict.advice,
        "policies": [_policy(one) for one in verdict.earned],
    }


def as_json(verdicts: Mapping[str, Verdict]) -> str:
    """Return the verdict of each model as JSON."""
    return json.dumps({name: as_dict(one) for name, one in verdicts.items()}, indent=2)


def page(verdicts: Mapping[str, Verdict]) -> str:
    """Return one HTML file with tables and pictures."""
    parts = "".join(_section(name, one) for name, one in verdicts.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>When to retrain</title>'
        f"<style>{_STYLE}</style><h1>When to retrain</h1>{parts}</html>\n"
    )


def _section(name: str, verdict: Verdict) -> str:
    figure = verdict.measure.name
    points = [
        Point(one.replayed.name, one.replayed.runs, one.figure, one.replayed.is_calendar)
        for one in verdict.earned
    ]
    lines = [Line(one.replayed.name, one.by_period) for one in verdict.earned]
    better = "lower" if verdict.measure.lower_is_better else "higher"
    head = "".join(f"<th>{escape(one)}</th>" for one in _heads(verdict))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in _rows(verdict)
    )
    asked = "".join(_asked(one) for one in verdict.earned if one.replayed.asked)
    return (
        f'<h2>{escape(name)}</h2><p class="advice">{escape(verdict.advice)}</p>'
        f"<table><tr>{head}</tr>{body}</table>"
        f"<h2>{escape(figure)} against runs ({better} is better; the line joins calendars)</h2>"
        f"{frontier(points, figure)}<h2>{escape(figure)} by {verdict.period}</h2>"
        f"{over_time(lines, verdict.periods, figure)}<h2>Runs</h2>{asked}"
    )


def _asked(one: Earned) -> str:
    items = "".join(
        f"<li>{each.at:%Y-%m-%d}: {escape(each.why)}"
        f"{escape(f'; refused: {each.run.refused}' if each.run.refused else '')}</li>"
        for each in one.replayed.asked
    )
    name = escape(one.replayed.name)
    return (
        f"<details><summary>{name}: {len(one.replayed.asked)}</summary><ol>{items}</ol></details>"
    )


def _heads(verdict: Verdict) -> tuple[str, ...]:
    return tuple(
        f"{verdict.measure.name}, {head.format(period=verdict.period)}" if "{" in head else head
        for head in HEADS
    )


def _rows(verdict: Verdict) -> Sequence[tuple[str, ...]]:
    return [
        (
            one.replayed.name,
            f"{one.replayed.runs:g}",
            str(sum(bool(each.run.refused) for each in one.replayed.asked)),
            f"{one.figure:.4g}",
            _difference(one.against_never),
            "-" if one.frontier is None else f"{one.frontier:.4g}",
        )
        for one in verdict.earned
    ]


def _difference(found: Difference | None) -> str:
    if found is None or math.isnan(found.value):
        return "-"
    reach = (found.high - found.low) / 2
    return f"{found.value:+.3g} (+- {reach:.2g})"


def _policy(one: Earned) -> dict[str, Any]:
    against = one.against_never
    return {
        "name": one.replayed.name,
        "runs": one.replayed.runs,
        "figure": one.figure,
        "by_period": [value if math.isfinite(value) else None for value in one.by_period],
        "against_never": None
        if against is None
        else {"value": against.value, "low": against.low, "high": against.high},
        "frontier": one.frontier,
        "asked": [
            {
                "at": each.at.isoformat(),
                "why": each.why,
                "refused": each.run.refused,
                "seconds": each.run.seconds,
                "metrics": dict(each.run.metrics),
            }
            for each in one.replayed.asked
        ],
    }
