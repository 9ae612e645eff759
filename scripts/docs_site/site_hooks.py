"""What MkDocs calls while it builds the site: pages made from the code, and links out of `docs/`.

`mkdocs.yml` names this file. A page that the code decides is made here and never typed; a page
that stands elsewhere in the repository is shown under the name in `OUTSIDE`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from command_pages import commands_page, exit_codes_page
from configuration_pages import section_pages
from mkdocs.structure.files import File
from source_pages import errors_page, python_page, rpcs_page, server_metrics_page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "deploy/README.md": "deploy.md",
    "grafana/README.md": "grafana.md",
}
"""Page of the repository outside `docs/` to its page of the site."""

_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def pages() -> dict[str, str]:
    """Return every page that is made from the code: its path to its Markdown."""
    return {
        "reference/python.md": python_page(),
        "reference/commands.md": commands_page(),
        "reference/exit-codes.md": exit_codes_page(),
        "reference/rpcs.md": rpcs_page(ROOT),
        "reference/errors.md": errors_page(ROOT),
        "reference/server-metrics.md": server_metrics_page(ROOT),
        **section_pages(ROOT),
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code, and those that stand outside `docs/`."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for source, path in OUTSIDE.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links that leave `docs/` to the page of the site that they mean."""
    origin = next((key for key, path in OUTSIDE.items() if path == page.file.src_uri), "")
    return relinked(markdown, origin or f"docs/{page.file.src_uri}", page.file.src_uri)


def relinked(markdown: str, source: str, uri: str) -> str:
    """Return the text of `source`, a path in the repository, with links that hold at `uri`."""

    def link(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(PurePosixPath(source).parent / target)
        path = OUTSIDE.get(path, path.removeprefix("docs/"))
        here = os.path.relpath(path, PurePosixPath(uri).parent)
        return f"{before}{here}{anchor or ''}{after}"

    return _LINK.sub(link, markdown)
