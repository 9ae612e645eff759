"""Reports as pages of one file. Above `side_by_side`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steadfeast.pipeline import html

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.pipeline.reports.comparison import Comparison
    from steadfeast.pipeline.reports.side_by_side import SideBySide

FITS = {"serving": "the fit that serves", "judged": "the fit that was judged"}
NOTHING = "Nothing differs."


def comparison_page(found: SideBySide) -> str:
    """Return two versions side by side as a page."""
    a, b = found.a, found.b
    measured = html.text(f"Not compared: {found.problem}")
    if found.comparison is not None:
        measured = html.text(setting(found)) + html.table(
            ("measure", a.title, b.title, "better by", "interval", f"{b.title} is"),
            figures(found.comparison),
        )
    parts = [html.section("On the same rows", measured)]
    for name, changes in found.changes.items():
        rows = [(one.what, one.a, one.b) for one in changes]
        below = html.table(("", a.title, b.title), rows) or html.text(NOTHING)
        parts.append(html.section(f"What differs: {name}", below))
    return html.document(f"{a.model}: {a.title} and {b.title}", *parts)


def runs_page(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of runs, as `run_table` gives it, as a page."""
    table = html.table(list(rows[0]), [list(row.values()) for row in rows]) if rows else ""
    return html.document("Runs", table or html.text("There is no run."))


def setting(found: SideBySide) -> str:
    """Say what was compared on which rows, in a sentence or two."""
    compared = found.comparison
    if compared is None:
        return f"not compared: {found.problem}"
    a, b = (FITS[fit] for fit in compared.fits)
    who = f"{a} of both" if a == b else f"{a} of {found.a.title}, {b} of {found.b.title}"
    return (
        f"{compared.rows:,} rows from {compared.start:%Y-%m-%d %H:%M} to "
        f"{compared.end:%Y-%m-%d %H:%M} UTC in {compared.blocks} blocks of time, none of which "
        f"either was fitted on: {who}. Each interval by itself holds the difference with a "
        f"probability of {compared.confidence:g}."
    )


def figures(compared: Comparison) -> list[Sequence[str]]:
    """Return a row of texts for each measure: name, both, difference, interval, verdict."""
    found: list[Sequence[str]] = []
    for one in compared.measures:
        known = one.low is not None and one.high is not None
        interval = f"{one.low:+.4f} to {one.high:+.4f}" if known else "unknown"
        verdict = {"undecided": "not told apart"}.get(one.verdict, one.verdict)
        found.append(
            (
                one.metric,
                f"{one.a:.4f}",
                f"{one.b:.4f}",
                f"{one.difference:+.4f}",
                interval,
                verdict,
            )
        )
    return found
