"""Objects as a notebook shows them: a line of facts and a short table, every word escaped.

Bottom of `featurestore`: imports nothing of ours. Notebooks have their own style for tables, so
there is none here.
"""

from __future__ import annotations

from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

SHOWN = 5
"""Rows of data that are shown."""

DIGITS = 12
"""Hexadecimal digits of a hash that are shown."""

_WIDEST = 60
_COLUMNS = 20


def line(kind: str, *facts: str) -> str:
    """Return a `repr`: what it is, and the facts that are not empty."""
    return f"<{kind} {', '.join(filter(None, facts))}>"


def card(title: str, facts: Sequence[str] = (), *tables: str) -> str:
    """Return HTML: a title, facts in one line, and what `table` made, as it is."""
    said = " · ".join(escape(fact) for fact in facts if fact)
    below = f"<br><small>{said}</small>" if said else ""
    return f"<div><b>{escape(title)}</b>{below}{''.join(tables)}</div>"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, more: str = "") -> str:
    """Return an HTML table; null is shown as such, long texts are cut.

    Args:
        heads: Of the columns.
        rows: Their cells.
        more: What is not shown, in words.
    """
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    left = f"<small>{escape(more)}</small>" if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{left}"


def whole_lines(texts: Iterable[str]) -> str:
    """Return texts below each other in full, where `table` would cut them."""
    return "".join(f"<p><small>{escape(text)}</small></p>" for text in texts)


def preview(data: pa.Table) -> str:
    """Return the first rows and columns of a table as HTML."""
    names = data.column_names[:_COLUMNS]
    some = data.select(names).slice(0, SHOWN).to_pylist()
    left = []
    if data.num_rows > SHOWN:
        left.append(f"{data.num_rows - SHOWN:,} more rows")
    if len(data.column_names) > len(names):
        left.append(f"{len(data.column_names) - len(names)} more columns")
    return table(names, ([row[name] for name in names] for row in some), more=" and ".join(left))


def first(names: Sequence[str], most: int = SHOWN) -> str:
    """Return the first few names in one line, and how many are left."""
    left = len(names) - most
    return ", ".join(islice(names, most)) + (f" and {left} more" if left > 0 else "")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 row, 2 rows."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _cell(value: Any) -> str:
    text = "null" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
