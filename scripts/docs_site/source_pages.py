"""Reference of what the source says: public Python, RPCs, errors, metrics of the servers."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from typing import TYPE_CHECKING

from command_pages import cell

from steadfeast.featurestore.server import WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARTS = ("featurestore", "measures", "monitor", "pipeline", "backtest", "doctor", "testing")


def python_page() -> str:
    """Return the page of every public name, which mkdocstrings fills in."""
    parts = [
        "# Python\n",
        (
            "Every public name, from its docstring. `from steadfeast import Store` imports nothing "
            "else until a name is used.\n"
        ),
    ]
    for package in ("steadfeast", "steadfeast.testing"):
        names = [n for n in import_module(package).__all__ if not n.startswith("_")]
        parts += [f"::: {package}.{name}\n" for name in names]
    return "\n".join(parts)


# RPCs


def rpcs_page(root: Path) -> str:
    """Return the page of every service, call, message and enumeration of the protocols."""
    parts = [
        "# RPCs\n",
        "Made from the files in `protos/steadfeast/v1/`, which come with the package.\n",
    ]
    for path in sorted((root / "protos" / "steadfeast" / "v1").glob("*.proto")):
        lines = path.read_text("utf-8").splitlines()
        parts += [f"## {path.name}\n", *_proto(lines)]
    return "\n".join(parts)


def _proto(lines: list[str]) -> Iterator[str]:
    """Give a file of protocol as Markdown: a heading for each block, its lines as a table."""
    said: list[str] = []
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith("//"):
            said.append(text.removeprefix("//").strip())
            continue
        if opened := re.match(r"(service|message|enum) (\w+) \{", line):
            yield f"### {opened[1]} {opened[2]}\n"
            if said:
                yield " ".join(said) + "\n"
            yield from _members(opened[1], lines[number + 1 :])
        elif line.startswith("syntax") and said:
            yield " ".join(said) + "\n"
        said = []


def _members(kind: str, lines: list[str]) -> Iterator[str]:
    rows: list[tuple[str, str, str]] = []
    said: list[str] = []
    pattern = {
        "service": r"rpc (\w+)\((.*?)\) returns \((.*?)\)",
        "enum": r"(\w+) = (-?\d+)",
        "message": r"((?:repeated |optional )?[\w.]+(?:<[^>]*>)?) (\w+) = (\d+)",
    }[kind]
    joined = _joined(lines)
    for line in joined:
        text, _, beside = line.partition("//") if not line.startswith("//") else (line, "", "")
        if line.startswith("//"):
            said.append(line.removeprefix("//").strip())
        elif found := re.match(pattern, text):
            words = " ".join([*said, beside.strip()]).strip()
            if kind == "service":
                rows.append((f"`{found[1]}`", f"{found[2]} → {found[3]}", words))
            elif kind == "enum":
                rows.append((f"`{found[1]}`", found[2], words))
            else:
                rows.append((f"`{found[2]}`", found[1], words))
            said = []
        elif not text.startswith("oneof"):
            said = []
    head = {
        "service": "call | request → answer",
        "enum": "value | number",
        "message": "field | type",
    }
    if rows:
        yield f"| {head[kind]} | meaning |\n| --- | --- | --- |"
        yield "\n".join(f"| {a} | {cell(b)} | {cell(c)} |" for a, b, c in rows) + "\n"


def _joined(lines: list[str]) -> Iterator[str]:
    """Give the lines of a block up to its end, statements of several lines as one."""
    open_statement = ""
    for line in lines:
        if line.startswith("}"):
            return
        text = f"{open_statement} {line.strip()}".strip()
        ends = not text or text.startswith(("//", "}")) or text.endswith(("{", "}"))
        if ends or ";" in text:
            open_statement = ""
            yield text
        else:
            open_statement = text


# Errors


def errors_page(root: Path) -> str:
    """Return the page of every error: where it is, what ends a command with which code."""
    found = {name: one for part in PARTS for name, one in _classes(root, part)}
    parts = [
        "# Errors\n",
        (
            "Every error that Steadfeast raises derives from `SteadfeastError`. One "
            "that the user can "
            "put right is a `UserError`, and ends a command with 2; the others end it with 1. Each "
            "carries its data as attributes.\n"
        ),
    ]
    for name, (module, bases, text) in sorted(found.items()):
        line = _line(name, found)
        if "SteadfeastError" not in line:
            continue
        code = 2 if "UserError" in line else 1
        head, _, listed = text.partition("Attributes:")
        parts.append(f"## {name}\n")
        parts.append(f"{head.strip()}\n")
        parts.append(f"`{module}`, a `{bases[0]}`; exit code {code}.\n")
        entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", listed, re.MULTILINE)
        if entries:
            parts.append("| attribute | meaning |\n| --- | --- |")
            parts.append("\n".join(f"| `{a}` | {cell(b)} |" for a, b in entries) + "\n")
    return "\n".join(parts)


def _classes(root: Path, part: str) -> Iterator[tuple[str, tuple[str, list[str], str]]]:
    for path in sorted((root / part).rglob("*.py")):
        module = ".".join(("steadfeast", *path.relative_to(root).with_suffix("").parts))
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                yield node.name, (module, bases, ast.get_docstring(node) or "")


def _line(name: str, found: dict[str, tuple[str, list[str], str]]) -> set[str]:
    """Return the names of an error and of all that it derives from."""
    above = found[name][1] if name in found else []
    return {name}.union(*(_line(base, found) for base in above))


# Metrics of the servers


def server_metrics_page(root: Path) -> str:
    """Return the page of what the serving edges export on `/metrics`."""
    parts = [
        "# Metrics of the servers\n",
        "What `/metrics` of the two serving edges has. Times are in seconds.\n",
    ]
    for title, path in (
        ("steadfeast store serve", "featurestore/server/metrics.py"),
        ("steadfeast model serve", "pipeline/inference/metrics.py"),
    ):
        rows = "\n".join(_series((root / path).read_text("utf-8")))
        parts.append(f"## {title}\n\n| name | type | labels | meaning |\n| --- | --- | --- | --- |")
        parts.append(rows + "\n")
    return "\n".join(parts)


def _series(source: str) -> Iterator[str]:
    """Give a row for each metric that a module makes."""
    tree = ast.parse(source)
    names = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        kind = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        found = re.fullmatch(r"(Counter|Gauge|Histogram|Summary)(MetricFamily)?", kind)
        if not found or len(node.args) < 2 or not isinstance(node.args[0], ast.Name):  # noqa: PLR2004
            continue
        labels = [one.value for one in node.keywords if one.arg == "labels"] + node.args[2:3]
        listed = ast.literal_eval(labels[0]) if labels else ()
        shown = ", ".join(f"`{one}`" for one in listed)
        said = _text(node.args[1], names)
        name = names.get(node.args[0].id, WAITING)
        yield f"| `{name}` | {found[1].lower()} | {shown} | {cell(said)} |"


def _text(node: ast.expr, names: dict[str, object]) -> str:
    """Return a text of the source, with the module's constants put in."""
    if not isinstance(node, ast.JoinedStr):
        return str(ast.literal_eval(node))
    return "".join(
        str(one.value if isinstance(one, ast.Constant) else names[ast.unparse(one.value)])
        for one in node.values
        if isinstance(one, ast.Constant | ast.FormattedValue)
    )
