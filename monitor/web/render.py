"""The page's HTML, served or as one file.

Above `page`, which decides what is said; `web` serves what is made here, and `cli` writes the
report. The report is the same page with its style inside, under a policy that allows that style
and nothing else: it can be mailed, opened from disk and archived.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from steadfeast.monitor.web.page import page
from steadfeast.monitor.web.text import lasting, moment

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.monitor.ledger import State

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at the page and may act on it.

    Attributes:
        actor: The name that is kept with what they do.
        key: What a form of theirs has to carry.
    """

    actor: str
    key: str


def breakable(name: str) -> Markup:
    """Return a name as markup that a narrow line may break after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


class Renderer:
    """Holds the templates; safe to share between threads.

    Attributes:
        report_policy: The content security policy that a report carries.
    """

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"moment": moment, "lasting": lasting, "breakable": breakable}
        self._css = (HERE / "static" / "page.css").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(self._css.encode()).digest()).decode()
        self.report_policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'"

    def page(
        self,
        state: State,
        unhealthy: str,
        now: datetime,
        viewer: Viewer | None = None,
        *,
        may_sign_in: bool = False,
    ) -> str:
        """Return the page as the daemon serves it.

        Args:
            state: The last committed state.
            unhealthy: Why the daemon is not healthy; empty when it is.
            now: Wall clock, UTC.
            viewer: Who may act; None shows no button.
            may_sign_in: Whether anybody could.
        """
        html: str = self._templates.get_template("page.html.jinja").render(
            page=page(state, unhealthy, now),
            css="",
            policy="",
            viewer=viewer,
            may_sign_in=may_sign_in,
        )
        return html

    def report(self, state: State, unhealthy: str, now: datetime) -> str:
        """Return the page as one self-contained file; arguments as `page` has them."""
        html: str = self._templates.get_template("page.html.jinja").render(
            page=page(state, unhealthy, now),
            css=Markup(self._css),  # noqa: S704 - our own style sheet, a file of this package
            policy=self.report_policy,
            viewer=None,
            may_sign_in=False,
        )
        return html

    def backtest(self, **told: Any) -> str:
        """Return what `monitor.backtest.report` says of a backtest as one self-contained file."""
        html: str = self._templates.get_template("backtest.html.jinja").render(
            css=Markup(self._css),  # noqa: S704 - our own style sheet, a file of this package
            policy=self.report_policy,
            **told,
        )
        return html

    def sign_in(self, title: str, problem: str = "", *, ask: bool = True) -> str:
        """Return the page that asks for name and token, or that says what went wrong."""
        html: str = self._templates.get_template("sign-in.html.jinja").render(
            title=title, problem=problem, ask=ask
        )
        return html
