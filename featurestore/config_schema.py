"""The JSON Schema of `steadfeast.yaml`, from the models that read it. Above `config`.

Each package names the model of its section by an entry point in `steadfeast.sections`; the
descriptions are those of the models' docstrings. Editors complete and check the file by it.
"""

from __future__ import annotations

import inspect
import json
import re
from datetime import timedelta
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr
from pydantic.json_schema import GenerateJsonSchema

from steadfeast.featurestore.config import SECTIONS, written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import core_schema

FILE = "steadfeast.schema.json"
"""Name of the file beside a project's `steadfeast.yaml`."""

_DRAFT = "http://json-schema.org/draft-07/schema#"  # what every editor reads
_VARIABLE = {"$ref": "#/definitions/Variable"}
_DEFINED = {
    "type": "string",
    "pattern": r"\$\{\w+(:-[^}]*)?\}",
    "description": "Taken from the environment: ${NAME}, or ${NAME:-default}.",
}


class _Generator(GenerateJsonSchema):
    """Writes defaults as the file has them: `7d`, and `{}` for a section of defaults."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, timedelta):
            return written(dft)
        if isinstance(dft, BaseModel):
            return {}
        return dft.get_secret_value() if isinstance(dft, SecretStr) else super().encode_default(dft)

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        made = super().model_schema(schema)
        model = schema["cls"]
        made["description"] = inspect.cleandoc(model.__doc__ or "").partition("\n")[0]
        said = described(model)
        for name, field in made.get("properties", {}).items():
            field.pop("title", None)
            if name in said:
                field["description"] = said[name]
        made.pop("title", None)
        return made


def described(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a model and its bases say of each key."""
    said: dict[str, str] = {}
    for one in reversed(model.__mro__):
        _, _, listed = inspect.cleandoc(one.__dict__.get("__doc__") or "").partition("Attributes:")
        for entry in re.finditer(r"^    (\w+): (.*(?:\n {6,}.*)*)", listed, re.MULTILINE):
            said[entry[1]] = " ".join(entry[2].split())
    aliases = {name: one.alias or name for name, one in model.model_fields.items()}
    return {aliases.get(name, name): text for name, text in said.items()}


def models() -> dict[str, type[BaseModel]]:
    """Return the model of each section whose package is installed."""
    found = {one.name: one for one in entry_points(group="steadfeast.sections")}
    return {name: found[name].load() for name in SECTIONS if name in found}


def schema(sections: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Return the JSON Schema of a file with these sections."""
    generator = _Generator(ref_template="#/definitions/{model}")
    keys, definitions = generator.generate_definitions(
        [(name, "validation", one.__pydantic_core_schema__) for name, one in sections.items()]
    )
    return {
        "$schema": _DRAFT,
        "title": "steadfeast.yaml",
        "description": "Configuration of Steadfeast, one section for each part of it.",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _plain(keys[name, "validation"]) for name in sections},
        "definitions": {
            **{name: _plain(one) for name, one in sorted(definitions.items())},
            "Variable": _DEFINED,
        },
    }


def text() -> str:
    """Return the schema of every installed section, as the file has it."""
    return json.dumps(schema(models()), indent=2) + "\n"


def _plain(node: Any) -> Any:
    """Return `node` for draft 07, with `${NAME}` where a number, a choice or a pattern stands."""
    if isinstance(node, list):
        return [_plain(one) for one in node]
    if not isinstance(node, dict):
        return node
    named = {"properties", "definitions"}
    made = {
        key: {name: _plain(one) for name, one in value.items()} if key in named else _plain(value)
        for key, value in node.items()
        if key not in {"discriminator", "title", "default", "examples", "enum", "const"}
    }
    kept = {key: node[key] for key in ("default", "examples", "enum", "const") if key in node}
    made |= kept
    if "$ref" in made and len(made) > 1:  # beside a reference draft 07 reads nothing
        made["allOf"] = [{"$ref": made.pop("$ref")}]
    scalar = node.get("type") in {"boolean", "integer", "number", "string"}
    narrow = node.get("type") != "string" or {"pattern", "enum"} & set(node)
    if scalar and narrow and "const" not in node:
        outer = {
            key: made.pop(key) for key in ("description", "default", "examples") if key in made
        }
        return {**outer, "anyOf": [made, _VARIABLE]}
    return made
