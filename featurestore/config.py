"""`steadfeast.yaml`, read into frozen models.

Each package owns one section of the file and gives its model to `load_section`; what is
unknown, missing or of the wrong type is one `ConfigError` naming file, field and problem.
Relative paths in the file are relative to the file. `${NAME}` and `${NAME:-default}` are taken
from the environment, so that addresses and secrets stay out of the file.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from steadfeast.featurestore.errors import ConfigError, DurationError

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema

SECTIONS = ("security", "store", "monitor", "pipeline")

_UNITS = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = r"(\d+(?:\.\d+)?)(ms|[smhdw])"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(_DURATION, str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write a number and a unit, as 30s, 6h, 7d")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


def duration(text: str) -> timedelta:
    """Return a length of time, written as in the file: 30s, 6h, 7d.

    Raises:
        DurationError: It is written in another way.
    """
    try:
        return cast("timedelta", _duration(text))
    except ValueError as error:
        raise DurationError(text) from error


def written(length: timedelta) -> str:
    """Return a length of time as the file has it, in the greatest unit that says it whole."""
    milliseconds = length // timedelta(milliseconds=1)
    for unit in ("d", "h", "m", "s"):
        size = round(1000 * _UNITS[unit])
        if milliseconds % size == 0 and (milliseconds or unit == "s"):
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


class AlsoWritten:
    """Tells the JSON Schema another form that a validator takes, as a short one."""

    def __init__(self, **schema: Any) -> None:
        self._schema = schema

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [self._schema, handler(core)]}


def is_loopback(address: str) -> bool:
    """Say whether the host of `host:port` is this machine only; of names, localhost is."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _beside_the_file(value: object, info: ValidationInfo) -> object:
    base = (info.context or {}).get("folder")
    return value if base is None else (Path(base) / str(value)).resolve()


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION}$", "examples": ["30s", "7d"]}),
]
"""A length of time, written as Prometheus writes it: 500ms, 30s, 15m, 6h, 7d, 4w."""

FilePath = Annotated[Path, BeforeValidator(_beside_the_file), WithJsonSchema({"type": "string"})]
"""A path; relative ones start at the folder of the configuration file."""


Address = Annotated[
    str,
    Field(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]+):\d{1,5}$", examples=["127.0.0.1:9464", "[::1]:9464"]
    ),
]
"""`host:port`; an IPv6 address stands in brackets."""

FOLDER_NAME = r"^\w[\w .-]{0,99}$"
"""What may name a folder of the state: no name leads out of it, and none is hidden."""

FolderName = Annotated[str, Field(pattern=FOLDER_NAME)]
"""A name that becomes a folder."""


class Section(BaseModel, frozen=True, extra="forbid"):
    """Base of every configuration model: frozen, and unknown keys are errors."""


class LogConfig(Section):
    """Section `store.log`: how the served log is kept.

    Attributes:
        rows_per_file: When so many rows of a service wait, they are written.
        rows_waiting: Rows of a service that may wait in memory.
        flush_every: How long a row may wait: what a crash can lose.
        when_full: "block" makes requests wait for room, "drop" leaves their vectors out and
            counts them, which voids the audit of what was served in that time.
        edge: Whether `steadfeast store serve` logs what it serves. Turn it off only where whoever
            asks logs the vectors itself.
    """

    rows_per_file: PositiveInt = 100_000
    rows_waiting: PositiveInt = 400_000
    flush_every: Duration = timedelta(minutes=1)
    when_full: Literal["block", "drop"] = "block"
    edge: bool = True


class TrainingConfig(Section):
    """Section `store.training`: what is kept of the sources that training sets are made of.

    Attributes:
        pin: "copy" keeps the source rows that a training set used, so that it replays whatever
            becomes of the source; "hash" keeps the hashes of the files, which say that it changed.
        event_time_only: Source rows count from their event time on, whenever they became known:
            for sources that were filled afterwards, whose created column says when that was.
    """

    pin: Literal["copy", "hash"] = "copy"
    event_time_only: bool = False


class StoreConfig(Section):
    """Section `store`.

    Attributes:
        repo: Folder with Feast's `feature_store.yaml` and the definitions.
        data: Folder that Steadfeast writes to: `served/`, `labels/`, `training/`, `pins/`,
            `contracts/`.
        log: How the served log is kept.
        training: What counts in training sets, and what is kept for replay.
    """

    repo: FilePath
    data: FilePath
    log: LogConfig = LogConfig()
    training: TrainingConfig = TrainingConfig()


_Model = TypeVar("_Model", bound=BaseModel)


def sections(path: Path) -> set[str]:
    """Return the names of the sections that the file at `path` has.

    Raises:
        ConfigError: It is missing, is not YAML, or has an unknown section.
    """
    return set(_read(path))


def load_section(path: Path, name: str, model: type[_Model]) -> _Model:
    """Read section `name` of the file at `path` into `model`.

    Raises:
        ConfigError: The file is missing, is not YAML, has an unknown section, lacks this one,
            names an unset variable, or a field is unknown, missing or wrong.
    """
    raw = _read(path)
    if name not in raw:
        raise ConfigError(path, [(name, "this section is missing")])
    section = _expand(raw[name], path, name)
    try:
        return model.model_validate(section, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError(path, [_problem(name, detail) for detail in error.errors()]) from error


def read_mapping(path: Path, expected: str) -> dict[Any, Any]:
    """Read the YAML mapping in the file at `path`; `expected` says what would be right.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds no mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(path, [("", f"cannot be read: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(path, [("", f"is not YAML: {error}")]) from error
    if not isinstance(raw, dict):
        raise ConfigError(path, [("", f"holds no mapping; expected {expected}")])
    return raw


def _read(path: Path) -> dict[str, Any]:
    raw = read_mapping(path, f"sections {list(SECTIONS)}")
    unknown = [str(key) for key in raw if key not in SECTIONS]
    if unknown:
        known = ", ".join(SECTIONS)
        raise ConfigError(path, [(key, f"unknown section; known are {known}") for key in unknown])
    return raw


def _expand(value: Any, path: Path, field: str) -> Any:
    """Replace `${NAME}` in every string of `value`."""
    if isinstance(value, dict):
        return {key: _expand(item, path, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path, f"{field}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise ConfigError(path, [(field, f"environment variable {match[1]} is not set")])
        return found

    return _VARIABLE.sub(variable, value)


def _problem(section: str, detail: Any) -> tuple[str, str]:
    field = ".".join([section, *map(str, detail["loc"])])
    if detail["type"] == "extra_forbidden":
        return field, "unknown key"
    if detail["type"] == "missing":
        return field, "this field is missing"
    if isinstance(detail["input"], dict) or field.endswith(("token", "key")):
        return field, detail["msg"]  # what was given may be, or hold, a secret
    return field, f"{detail['msg']} (got {detail['input']!r})"
