"""Write dashboards, Prometheus rules and docs/metrics.md from `monitor.exporter.metrics`.

Top of `grafana`. With `--check` nothing is written: the status is 1, and the files are named,
when one differs from what would be written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from alerts import rules
from boards import all_boards
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from steadfeast.monitor.exporter import document

HERE = Path(__file__).parent


def built() -> dict[Path, str]:
    """Return every generated file with its text."""
    boards = {
        HERE / "dashboards" / f"{name}.json": _text(board) for name, board in all_boards().items()
    }
    return {
        **boards,
        HERE / "rules" / "steadfeast.rules.yml": rules(),
        HERE.parent / "docs" / "metrics.md": document(),
    }


def _text(board: Any) -> str:
    """Return a dashboard as Grafana's own schema has it: without what only older ones knew."""
    plain = json.loads(json.dumps(board, cls=JSONEncoder))
    plain.pop("style", None)  # each viewer's own theme, light or dark
    for variable in plain["templating"]["list"]:
        for name in ("id", "auto", "auto_count", "auto_min"):
            variable.pop(name, None)
    for panel in plain["panels"]:
        if panel["type"] == "table":
            panel["options"].pop("footer", None)
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def main() -> int:
    """Write the files, or compare them with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = [
        path
        for path, text in built().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(f"{'differs' if check else 'written'}: {path.relative_to(HERE.parent)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(built()[path], encoding="utf-8")
    if check and stale:
        print("grafana/build.py writes them anew")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
