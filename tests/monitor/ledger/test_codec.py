"""What the ledger keeps comes back as the types that its fields declare."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import PydanticUserError

from steadfeast.monitor.ledger import codec

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

DECLARING = """
from __future__ import annotations
from dataclasses import dataclass
from enum import StrEnum

class Kind(StrEnum):
    ONE = "{0}"

@dataclass(frozen=True)
class Kept:
    kind: Kind
"""
IMPORTING = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from column import Kind

@dataclass(frozen=True)
class Borrowed:
    kind: Kind
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that imports a module of its source."""

    def made(name: str, source: str) -> ModuleType:
        file = tmp_path / f"{name}.py"
        file.write_text(source, encoding="utf-8")
        spec = spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return made


@pytest.mark.parametrize("reverse", [False, True])
def test_of_two_types_with_one_name_it_takes_the_declared(
    module: Any, monkeypatch: pytest.MonkeyPatch, *, reverse: bool
):
    both = [module(name, DECLARING.format(name)) for name in ("column", "episode")]
    names = codec._names(*(reversed(both) if reverse else both))
    monkeypatch.setattr(codec, "_NAMES", names)
    for one in both:
        value = one.Kept(one.Kind.ONE)
        text = codec.dump(value)
        assert text == f'{{"kind":"{one.__name__}"}}'
        back = codec.from_json(one.Kept, text)
        assert back == value
        assert type(back.kind) is one.Kind


def test_it_finds_a_type_that_is_imported_for_typing_only(
    module: Any, monkeypatch: pytest.MonkeyPatch
):
    declaring, importing = module("column", DECLARING.format("c")), module("other", IMPORTING)
    monkeypatch.setattr(codec, "_NAMES", codec._names(declaring, importing))
    back = codec.from_json(importing.Borrowed, '{"kind":"c"}')
    assert back.kind is declaring.Kind.ONE


def test_it_refuses_to_guess_between_two_types(module: Any, monkeypatch: pytest.MonkeyPatch):
    both = [module(name, DECLARING.format(name)) for name in ("column", "episode")]
    importing = module("other", IMPORTING)
    monkeypatch.setattr(codec, "_NAMES", codec._names(*both, importing))
    with pytest.raises((NameError, PydanticUserError), match="Kind"):
        codec.from_json(importing.Borrowed, '{"kind":"column"}')
