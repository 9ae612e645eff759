"""What the layers in pyproject.toml cannot say: a package is used by what its `__init__` gives."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("featurestore", "monitor", "pipeline", "measures", "backtest", "doctor", "testing")
LAZY = {"steadfeast.monitor.cli", "steadfeast.monitor.drift.multivariate"}
"""Packages without an `__init__` that imports: what they need is heavy, or an extra."""


def _imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steadfeast.")
    ]


def _home(module: str) -> Path:
    return ROOT / module.removeprefix("steadfeast.").replace(".", "/")


def test_other_packages_import_from_a_package_and_not_from_its_modules():
    wrong = []
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            mine = "steadfeast." + ".".join(path.relative_to(ROOT).parent.parts)
            for module in _imports(path):
                package = module.rpartition(".")[0]
                inside = f"{mine}.".startswith(f"{package}.") or f"{package}.".startswith(
                    f"{mine}."
                )
                if (
                    not _home(module).is_dir()
                    and package.count(".") > 1
                    and not package.startswith("steadfeast.protos")
                    and package not in LAZY
                    and not inside
                ):
                    wrong.append(f"{path.relative_to(ROOT)} imports from {module}")
    assert wrong == []


def test_every_package_says_what_it_gives():
    silent = []
    for part in PARTS:
        for path in (ROOT / part).rglob("__init__.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            given = {
                name.asname or name.name
                for node in tree.body
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steadfeast")
                for name in node.names
            }
            listed = {
                item.value
                for node in tree.body
                if isinstance(node, ast.Assign)
                and getattr(node.targets[0], "id", "") == "__all__"
                and isinstance(node.value, ast.List)
                for item in node.value.elts
                if isinstance(item, ast.Constant)
            }
            if not given <= listed:
                silent.append(f"{path.relative_to(ROOT)}: {sorted(given - listed)}")
    assert silent == []
