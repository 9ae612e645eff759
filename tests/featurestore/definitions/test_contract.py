"""The contract changes when, and only when, something that decides a value does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from steadfeast import Contract, Store
from steadfeast.featurestore.definitions.code import describe_function, libraries_of
from steadfeast.featurestore.definitions.contract import difference
from steadfeast.featurestore.errors import NotFoundError, UndescribableCodeError


def contract_of(shop, service="purchase"):
    with Store.open(shop.config) as store:
        store.apply()
        return store.contract(service)


DECIDES = {
    "source path": ("features.py", "data/sources/items.parquet", "./data/sources/items.parquet"),
    "timestamp column": ("features.py", 'timestamp_field="at")', 'timestamp_field="listed")'),
    "created column": ("features.py", '        created_timestamp_column="written",\n', ""),
    "field mapping": (
        "features.py",
        'created_timestamp_column="written",',
        'created_timestamp_column="written", field_mapping={"other": "another"},',
    ),
    "ttl": ("features.py", "timedelta(days=1)", "timedelta(days=1, microseconds=1)"),
    "dtype": ("features.py", '"price", dtype=Float32', '"price", dtype=Float64'),
    "fewer features": ("features.py", "=[users, items, aff", '=[users[["spend"]], items, aff'),
    "order of features": ("features.py", "features=[users, items,", "features=[items, users,"),
    "function": ("features.py", 'inputs["visits"] - 1', 'inputs["visits"] - 2'),
    "helper": ("helpers.py", "clip(lower=FLOOR)", "clip(FLOOR)"),
    "constant of a helper": ("helpers.py", "FLOOR = 1.0", "FLOOR = 1.5"),
    "python mode": ("features.py", "2 * price", "price * 2"),
}  # fmt: skip

DECIDES_NOTHING = {
    "comment": ("helpers.py", "FLOOR = 1.0", "FLOOR = 1.0  # no more, no less"),
    "docstring": ("features.py", "Share of spending, and one more visit.", "What it costs."),
    "docstring of a helper": ("helpers.py", "Divide, with a floor", "Divide with a floor"),
    "formatting": ("features.py", '{"label": [', '{\n        "label": ['),
    "annotation": ("features.py", "def words(inputs):", "def words(inputs: dict) -> dict:"),
    "unused helper": ("helpers.py", "return value + 1", "return value + 2"),
    "another service": ("features.py", 'users[["spend"]]', 'users[["visits"]]'),
    "description": ("features.py", 'name="purchase",', 'name="purchase", description="x",'),
    "tag": ("features.py", 'name="items",', 'name="items", tags={"a": "b"}, owner="c",'),
    "name of a source": ("features.py", 'name="items_source"', 'name="goods_source"'),
}


@pytest.mark.parametrize("change", DECIDES)
def test_what_decides_a_value_changes_the_contract(shop, change):
    file, old, new = DECIDES[change]
    with Store.open(shop.config) as store:
        before = store.contract("purchase")
    shop.edit(file, old, new)
    after = contract_of(shop)
    assert after.sha256 != before.sha256
    assert difference(before, after)


def test_a_feature_that_is_not_read_may_break_a_tie(shop):
    """Of two rows of one time the greater wins, by every column that the view declares."""
    with Store.open(shop.config) as store:
        before = store.contract("small")
    read = 'Field(name="spend", dtype=Float64),'
    shop.edit("features.py", read, f'{read} Field(name="age", dtype=Int64),')
    lines = difference(before, contract_of(shop, "small"))
    assert lines == ['view users ties age: added, "int64" (changes values)']


def test_what_decides_no_value_changes_nothing(shop):
    with Store.open(shop.config) as store:
        before = store.contract("purchase")
    shop.edit("features.py", 'return {\n        "label"', 'return {"label"')
    for file, old, new in DECIDES_NOTHING.values():
        shop.edit(file, old, new)
    after = contract_of(shop)
    assert difference(before, after) == []
    assert after.sha256 == before.sha256


def test_the_same_repo_elsewhere_and_in_another_process_has_the_same_contract(shop, tmp_path):
    with Store.open(shop.config) as store:
        here = store.contract("purchase").sha256
    there = tmp_path / "elsewhere" / "shop"
    shutil.copytree(shop.folder, there)
    code = (
        "import sys, pathlib; from steadfeast import Store\n"
        "with Store.open(pathlib.Path(sys.argv[1])) as store:\n"
        "    store.apply(); print(store.contract('purchase').sha256)"
    )
    command = [sys.executable, "-c", code, str(there / "steadfeast.yaml")]
    for seed in ("1", "2"):
        done = subprocess.run(
            command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == here


def test_differences_are_words_that_say_whether_values_change(shop):
    with Store.open(shop.config) as store:
        before = store.contract("purchase")
    shop.edit("helpers.py", "FLOOR = 1.0", "FLOOR = 2.0")
    shop.edit(
        "features.py", 'Field(name="price", dtype=Float32)', 'Field(name="cost", dtype=Float32)'
    )
    shop.edit("features.py", 'inputs["price"]', 'inputs["cost"]')
    lines = difference(before, contract_of(shop))
    changed = "its code or a constant in it changed (changes values)"
    assert f"on-demand view affinity code FLOOR: {changed}" in lines
    assert any(line.startswith("view items features cost: added") for line in lines)
    assert any(line.startswith("view items features price: removed") for line in lines)
    older = json.loads(before.canonical())
    older["libraries"]["duckdb"] = "1.0.0"
    (line,) = difference(Contract(older), before)
    assert line.startswith('library duckdb: "1.0.0" became')
    assert "may change values" in line


def test_applied_contracts_are_kept_for_good(shop):
    with Store.open(shop.config) as store:
        first = store.contract("small")
    shop.edit("features.py", "timedelta(days=1)", "timedelta(days=3)")
    assert contract_of(shop, "small").sha256 != first.sha256
    with Store.open(shop.config) as store:
        assert store.kept_contract(first.sha256[:8]) == first
        with pytest.raises(NotFoundError, match="no contract"):
            store.kept_contract("f" * 12)


CODE = """
import math, functools, statistics, helper_module
from zoneinfo import ZoneInfo
import numpy as np
ZONE, LIMITS, TABLE = ZoneInfo("Europe/Zurich"), {{"b": 1, "a": (2, 3)}}, np.arange(3)
LIVE = {live}
class Scale:
    factor = {factor}
    def apply(self, x):
        return x * self.factor + helper_module.shift(x)
@functools.lru_cache
def cached(x):
    return x + {step}
def outer(bonus):
    def inner(x, extra=LIMITS):
        from helper_module import late
        math = 3
        more = len(str(ZONE)) + TABLE.sum() + np.abs(x)
        return Scale().apply(cached(x)) + bonus + extra["b"] + late(x) + more
    return inner
function = outer({bonus})
def bad(x):
    return LIVE, x
"""


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Give what imports a module of CODE with its parts, each time from a file of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(100))

    def build(shift="x - 1", late="x", **parts):
        (tmp_path / "helper_module.py").write_text(
            f"def shift(x):\n    return {shift}\ndef late(x):\n    return {late}\n"
        )
        name = f"compiled_{next(count)}"
        defaults = {"factor": 2, "step": 1, "bonus": 5, "live": "object()"}
        (tmp_path / f"{name}.py").write_text(CODE.format(**(defaults | parts)))
        for module in ("helper_module", name):
            sys.modules.pop(module, None)
        return __import__(name)

    yield build
    for module in [m for m in sys.modules if m.startswith("compiled_")]:
        del sys.modules[module]
    sys.modules.pop("helper_module", None)


@pytest.mark.parametrize(
    "change",
    [{"factor": 3}, {"step": 2}, {"bonus": 6}, {"shift": "x - 2"}, {"late": "x + 0"}],
    ids=lambda change: next(iter(change)),
)
def test_code_is_followed_through_classes_caches_closures_and_late_imports(compiled, change):
    before = describe_function(compiled().function)
    assert describe_function(compiled().function) == before
    assert describe_function(compiled(**change).function) != before


def test_libraries_are_named_with_their_versions_and_not_followed(compiled):
    assert set(libraries_of(compiled().function)) == {"numpy"}


def test_code_that_depends_on_a_live_object_has_no_contract(compiled):
    with pytest.raises(UndescribableCodeError, match="bad uses 'LIVE', a object") as caught:
        describe_function(compiled().bad)
    assert (caught.value.function, caught.value.name) == ("bad", "LIVE")


def test_a_contract_is_canonical_json():
    described = {"b": [1, {"z": None, "a": "é"}], "a": 1}
    contract = Contract(described)
    assert contract.canonical() == '{"a":1,"b":[1,{"a":"é","z":null}]}'.encode()
    assert contract.sha256 == Contract(json.loads(contract.canonical())).sha256
    assert len(contract.sha256) == 64
