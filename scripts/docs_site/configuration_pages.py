"""Reference of the configuration, a page for each section, from docs/steadfeast.schema.json.

Examples are values that the guides and the example projects have for a key; a key that none of
them sets has its schema's example, or a value that its type allows.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

import yaml
from command_pages import cell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "minItems": "entries at least",
    "maxItems": "entries at most",
    "minProperties": "names at least",
}
_DURATION, _ADDRESS = "(ms|[smhdw])$", r"\d{1,5}$"


def section_pages(root: Path) -> dict[str, str]:
    """Return the page of each section of `steadfeast.yaml`: its path to its Markdown."""
    schema = json.loads((root / "docs" / "steadfeast.schema.json").read_text("utf-8"))
    seen = written_values(root, schema)
    return {
        f"reference/configuration/{name}.md": _page(schema, name, seen)
        for name in schema["properties"]
    }


def keys(schema: dict[str, Any], section: str) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Give each key of a section: its path, its definition, its name and its schema.

    A definition that stands in several places is gone through in the first of them.
    """
    first = schema["properties"][section]["$ref"].rpartition("/")[2]
    waiting, done = [(section, first)], set()
    while waiting:
        path, kind = waiting.pop(0)
        if kind in done:
            continue
        done.add(kind)
        for name, node in schema["definitions"][kind].get("properties", {}).items():
            yield f"{path}.{name}", kind, name, node
            for steps, below in references(schema, node):
                waiting.append((f"{path}.{name}{steps}", below))


def references(schema: dict[str, Any], node: Any, steps: str = "") -> Iterator[tuple[str, str]]:
    """Give each mapping that a value may be: what leads to it below the key, and its name."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if "properties" in schema["definitions"][name]:
            yield steps, name
    for one in chain.from_iterable(node.get(key, []) for key in ("anyOf", "oneOf", "allOf")):
        yield from references(schema, one, steps)
    if isinstance(node.get("items"), dict):
        yield from references(schema, node["items"], f"{steps}[]")
    named = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    for one in named:
        if isinstance(one, dict):
            yield from references(schema, one, f"{steps}.NAME")


def kinds(  # noqa: PLR0911 - one return for each form of a schema
    schema: dict[str, Any], node: dict[str, Any]
) -> list[str]:
    """Return in words what values a key takes, one for each kind of value."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name == "Variable":
            return []
        target = schema["definitions"][name]
        return kinds(schema, target) if "enum" in target else ["mapping"]
    below = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
    if below:
        return list(dict.fromkeys(chain.from_iterable(kinds(schema, one) for one in below)))
    if "const" in node:
        return [f"`{node['const']}`"]
    if "enum" in node:
        return [f"`{one}`" for one in node["enum"]]
    if node.get("type") == "null":
        return ["nothing"]
    return [_structured(schema, node)]


def _structured(schema: dict[str, Any], node: dict[str, Any]) -> str:
    kind = node.get("type")
    if kind == "array":
        entries = node.get("items", {})
        return "list of " + (" or ".join(kinds(schema, entries)) or "text") + _bounds(node)
    if kind == "object":
        named = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        held = [one for one in named if isinstance(one, dict)]
        text = " or ".join(kinds(schema, held[0])) if held else ""
        return (f"mapping of names to {text}" if text else "mapping") + _bounds(node)
    if kind == "string":
        pattern = node.get("pattern", "")
        if pattern.endswith(_DURATION):
            return "duration: a number and `ms`, `s`, `m`, `h`, `d` or `w`"
        if pattern.endswith(_ADDRESS):
            return "address, `host:port`"
        return (f"text, as `{pattern}`" if pattern else "text") + _bounds(node)
    return _KINDS.get(kind or "", "any value") + _bounds(node)


def _bounds(node: dict[str, Any]) -> str:
    return "".join(f", {text} {node[key]}" for key, text in _BOUNDS.items() if key in node)


# Examples


def written_values(root: Path, schema: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Return what the guides and examples write for each key, the first of them that differs."""
    texts = [(root / "feature_repo" / "steadfeast.yaml").read_text("utf-8")]
    for page in sorted((root / "docs").rglob("*.md")):
        blocks = re.findall(
            r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
        )
        texts += blocks
    seen: dict[tuple[str, str], Any] = {}
    for text in texts:
        try:
            mapping = yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        if isinstance(mapping, dict):
            for name in schema["properties"].keys() & mapping.keys():
                _note(schema, schema["properties"][name], mapping[name], seen)
    return seen


def _note(schema: dict[str, Any], node: Any, value: Any, seen: dict[tuple[str, str], Any]) -> None:
    """Keep the values of a mapping by the definition that it fits."""
    for _, kind in references(schema, node):
        properties = schema["definitions"][kind]["properties"]
        for one in _mappings(value):
            if one and one.keys() <= properties.keys():
                for name, below in one.items():
                    if below != properties[name].get("default"):
                        seen.setdefault((kind, name), below)
                    _note(schema, properties[name], below, seen)


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _mappings(one)


def example(schema: dict[str, Any], kind: str, name: str, seen: dict[tuple[str, str], Any]) -> Any:
    """Return a value that the key takes; other than its default where there is one."""
    node = schema["definitions"][kind]["properties"][name]
    if (kind, name) in seen:
        return seen[kind, name]
    return _made(schema, node, seen, name, node.get("default"))


def _made(  # noqa: PLR0911 - the same
    schema: dict[str, Any], node: Any, seen: dict[tuple[str, str], Any], name: str, unlike: Any
) -> Any:
    for value in node.get("examples", []):
        if value != unlike:
            return value
    if "$ref" in node:
        kind = node["$ref"].rpartition("/")[2]
        target = schema["definitions"][kind]
        if "properties" not in target:
            return _made(schema, target, seen, name, unlike)
        wanted = target.get("required") or list(target["properties"])[:1]
        return {one: example(schema, kind, one, seen) for one in wanted}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in node:
            first = next(one for one in node[key] if one.get("type") != "null")
            return _made(schema, first, seen, name, unlike)
    if "const" in node:
        return node["const"]
    if "enum" in node:
        return next((one for one in node["enum"] if one != unlike), node["enum"][0])
    return _plain_value(schema, node, seen, name, unlike)


def _plain_value(  # noqa: PLR0911 - the same
    schema: dict[str, Any], node: Any, seen: dict[tuple[str, str], Any], name: str, unlike: Any
) -> Any:
    kind = node.get("type")
    if kind == "array":
        return [_made(schema, node.get("items", {}), seen, name, None)]
    if kind == "object":
        held = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        return {
            "NAME": _made(schema, next(o for o in held if isinstance(o, dict)), seen, name, None)
        }
    if kind == "boolean":
        return not unlike
    if kind in {"integer", "number"}:
        low, high = node.get("exclusiveMinimum", node.get("minimum", 0)), node.get("maximum")
        if isinstance(unlike, int | float) and not isinstance(unlike, bool) and unlike:
            doubled = unlike * 2
            fits = high is None or doubled <= high
            top = node.get("exclusiveMaximum")
            return doubled if fits and (top is None or doubled < top) else unlike
        return (low or 0) + 1 if kind == "integer" or high is None else high
    if (node.get("pattern") or "").startswith("^https"):
        return "https://example.org"
    return unlike or name


# The page


def _page(schema: dict[str, Any], section: str, seen: dict[tuple[str, str], Any]) -> str:
    parts = [
        f"# Section {section}\n",
        (
            "Made from the JSON Schema that `steadfeast schema` prints. `NAME` stands for a name "
            "of "
            "your own, `[]` for each entry of a list. Numbers, choices and durations may also "
            "be taken "
            "from the environment: `${NAME}`, or `${NAME:-default}`.\n"
        ),
    ]
    last = ""
    for path, kind, name, node in keys(schema, section):
        if kind != last:
            definition = schema["definitions"][kind]
            parts.append(f"## {path.rpartition('.')[0]}\n\n{definition.get('description', '')}\n")
            last = kind
        parts.append(_entry(schema, path, kind, name, node, seen))
    return "\n".join(parts)


def _entry(
    schema: dict[str, Any],
    path: str,
    kind: str,
    name: str,
    node: dict[str, Any],
    seen: dict[tuple[str, str], Any],
) -> str:
    required = name in schema["definitions"][kind].get("required", [])
    value = " or ".join(kinds(schema, node))
    default = node.get("default")
    shown = "none" if default in (None, "") else f"`{json.dumps(default)}`".replace('"', "")
    if "default" not in node:
        shown = "required" if required else "none"
    text = yaml.safe_dump(
        {name: example(schema, kind, name, seen)},
        default_flow_style=None,
        sort_keys=False,
        width=80,
    )
    return (
        f"### {name} {{ #{path.replace('[]', '').replace('.', '-')} }}\n\n"
        f"{node.get('description', '')}\n\n"
        f"| path | value | default |\n| --- | --- | --- |\n"
        f"| `{path}` | {cell(value)} | {shown} |\n\n```yaml\n{text}```\n"
    )
