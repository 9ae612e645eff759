"""Which Feast offline store keeps which rule: one table, printed.

    python benchmarks/semantics.py [STORE]...

Runs tests/featurestore/offline/test_semantics.py once for each store (ours, Feast's
DuckDB and Dask stores by default; any dotted `type:` will do) and prints each test's rule with
the share of its cases that hold. Feast's DuckDB store needs `feast[duckdb]`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "tests" / "featurestore" / "offline" / "test_semantics.py"
STORES = ("steadfeast.DuckDBOfflineStore", "duckdb", "dask")


def rules() -> dict[str, str]:
    """Return each test's rule, the first line of its docstring, in order."""
    tree = ast.parse(SUITE.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: (ast.get_docstring(node) or "").split("\n", 1)[0]
        for node in functions
        if node.name.startswith("test_")
    }


def run(store: str) -> tuple[Counter[str], Counter[str]]:
    """Run the suite on one store; return cases held and cases run, by test."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(SUITE)],
            env={**os.environ, "STEADFEAST_OFFLINE_STORE": store},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            sys.exit(done.stdout + done.stderr)
        cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314 - our own report
        held: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for case in cases:
            name = case.get("name", "").split("[", 1)[0]
            total[name] += 1
            held[name] += len(case) == 0 or all(child.tag == "properties" for child in case)
    return held, total


def main() -> None:
    """Print the table."""
    stores = sys.argv[1:] or list(STORES)
    results = {store: run(store) for store in stores}
    names = dict(zip(STORES, ("ours", "Feast DuckDB", "Feast Dask"), strict=True))
    labels = [names.get(store, store) for store in stores]
    print(f"| rule | {' | '.join(labels)} |")
    print(f"| --- |{' --- |' * len(labels)}")
    for name, rule in rules().items():
        cells = []
        for held, total in results.values():
            share = f"{held[name]} of {total[name]}" if 0 < held[name] < total[name] else ""
            cells.append(share or ("yes" if held[name] else "no"))
        print(f"| {rule} | {' | '.join(cells)} |")
    sums = [f"{held.total()} of {total.total()}" for held, total in results.values()]
    print(f"| cases | {' | '.join(sums)} |")


if __name__ == "__main__":
    main()
