"""Pages that are one file: headings and tables, every word escaped, nothing loaded or run.

Bottom of `pipeline`. Such a page can be mailed, opened from disk and archived.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STYLE = (
    "body{font:15px/1.45 sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:.5em 0 1.5em;display:block;overflow-x:auto}"
    "td,th{text-align:left;vertical-align:top;padding:.25em 1.2em .25em 0;"
    "border-bottom:1px solid #ddd;overflow-wrap:anywhere}"
    "th{color:#555;font-weight:600}h2{margin:1.6em 0 .3em}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"


def document(title: str, *parts: str) -> str:
    """Return a page: `title` as its heading, then what `table`, `section` and others made."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a heading with what is below it; nothing where nothing is."""
    below = "".join(parts)
    return f"<h2>{escape(title)}</h2>{below}" if below else ""


def text(words: str) -> str:
    """Return a paragraph; line breaks stay."""
    return f"<p>{'<br>'.join(escape(words).splitlines())}</p>" if words.strip() else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; nothing without rows. None is empty, a float has five digits."""
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    if not lines:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
