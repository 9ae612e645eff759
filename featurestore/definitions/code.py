"""The identity of a Python function: its normalised syntax tree and that of all it calls.

Above `errors`; knows nothing of features. Comments, formatting, docstrings and annotations do
not count; a changed helper, constant or default does. Functions of the standard library and of
installed packages are named by their distribution and version instead of being followed.
"""

from __future__ import annotations

import ast
import builtins
import datetime as dt
import decimal
import dis
import functools
import importlib
import inspect
import sys
import sysconfig
import textwrap
import types
import zoneinfo
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from steadfeast.featurestore.errors import UndescribableCodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FEAST_DECORATOR = "on_demand_feature_view"
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, dt.date, dt.time,
    dt.timedelta, decimal.Decimal, zoneinfo.ZoneInfo, np.generic, np.dtype, range,
)  # fmt: skip


def describe_function(function: Callable[..., Any]) -> dict[str, Any]:
    """Return `qualified name -> normalised tree or value` for all that decides its result.

    Raises:
        UndescribableCodeError: It depends on an object that has no stable description.
    """
    return _Closure(function).parts


def late_imports_of(function: Callable[..., Any]) -> set[str]:
    """Return the project's own modules that `function` imports only when it is called."""
    return _Closure(function).late


def libraries_of(function: Callable[..., Any]) -> dict[str, str]:
    """Return distribution -> version of the installed packages that `function` uses."""
    return _Closure(function).libraries


class _Closure:
    """Follows names from one function until nothing of the project is left."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.parts: dict[str, Any] = {}
        self.libraries: dict[str, str] = {}
        self.late: set[str] = set()
        self._seen: set[int] = set()
        self._entry = function
        self._code("function", function, function.__name__)

    def _code(self, label: str, item: Any, name: str) -> None:
        """Describe a function or class of the project, and follow the names in it."""
        if id(item) in self._seen:
            return
        self._seen.add(id(item))
        wrapped = inspect.unwrap(item)
        if wrapped is not item:
            self._code(f"{label} wrapped", wrapped, name)
            return
        tree = _syntax(item, name)
        self._keep(label, _canonical(tree))
        namespace, outer = _namespace(item), _outer_names(item, tree)
        for chain in sorted(_chains(tree)):
            root, *attributes = chain
            if root in outer and root in namespace:
                self._name(root, namespace[root], attributes, name)
        for module, attribute, alias in _imports(tree):
            found = importlib.import_module(module)
            if _is_ours(found):
                self.late.add(module)
            value = found if attribute is None else getattr(found, attribute)
            for chain in sorted(_chains(tree)):
                if chain[0] == alias:
                    self._name(alias, value, chain[1:], name)

    def _keep(self, label: str, part: Any) -> None:
        """Two modules may use one name for two things: both count."""
        while label in self.parts and self.parts[label] != part:
            label += "'"
        self.parts[label] = part

    def _name(self, name: str, value: Any, attributes: Any, user: str) -> None:
        attributes = list(attributes)
        while isinstance(value, types.ModuleType) and _is_ours(value) and attributes:
            attribute = attributes.pop(0)
            name, value = f"{name}.{attribute}", getattr(value, attribute)
        if isinstance(value, types.ModuleType):
            if _is_ours(value):
                raise UndescribableCodeError(user, name, "a module passed around as a value")
            self._library(value.__name__)
        elif isinstance(value, (types.FunctionType, type)) and _is_ours(value):
            self._code(name, value, value.__qualname__)
        elif isinstance(value, functools.partial):
            self._name(f"{name}.func", value.func, (), user)
            arguments = self._value([*value.args, value.keywords], name, user)
            self._keep(f"{name}.arguments", arguments)
        elif isinstance(getattr(value, "__wrapped__", None), types.FunctionType):
            self._name(name, value.__wrapped__, (), user)  # a function behind a cache
        elif callable(value):
            self._library(getattr(value, "__module__", None) or type(value).__module__)
            self._keep(name, {"external": _qualified(value)})
        else:
            self._keep(name, {"value": self._value(value, name, user)})

    def _value(self, value: Any, name: str, user: str) -> Any:
        if isinstance(value, _PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, (list, tuple)):
            return [type(value).__name__, [self._value(item, name, user) for item in value]]
        if isinstance(value, (set, frozenset)):
            items = [self._value(item, name, user) for item in value]
            return [type(value).__name__, sorted(items, key=repr)]
        if isinstance(value, dict):
            pairs = [
                [self._value(key, name, user), self._value(item, name, user)]
                for key, item in value.items()
            ]
            return [type(value).__name__, pairs]
        if isinstance(value, np.ndarray) and value.dtype != object:
            return ["ndarray", str(value.dtype), list(value.shape), value.tobytes().hex()]
        if isinstance(value, (types.FunctionType, type)):
            self._name(f"{name}.{value.__qualname__}", value, (), user)
            return ["code", value.__qualname__]
        raise UndescribableCodeError(user, name, f"a {type(value).__qualname__}")

    def _library(self, module: str) -> None:
        top = module.partition(".")[0]
        for distribution in packages_distributions().get(top, ()):
            self.libraries[distribution.lower()] = version(distribution)


def _syntax(item: Any, name: str) -> ast.AST:
    try:
        source = textwrap.dedent(inspect.getsource(item))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError) as error:
        raise UndescribableCodeError(name, name, "whose source cannot be read") from error
    node: ast.AST = tree.body[0]
    if name == "<lambda>":
        lambdas = [child for child in ast.walk(tree) if isinstance(child, ast.Lambda)]
        if len(lambdas) == 1:
            node = lambdas[0]
    return _Normalise().visit(node)  # type: ignore[no-any-return]


class _Normalise(ast.NodeTransformer):
    """Drop what does not decide a value: docstrings, annotations, Feast's own decorator."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        node.decorator_list = [
            item for item in node.decorator_list if _FEAST_DECORATOR not in ast.dump(item)
        ]
        _drop_docstring(node)
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        _drop_docstring(node)
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        _drop_docstring(node)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value))

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]


def _canonical(node: Any) -> Any:
    """Nested lists of a tree, the same in every Python version: empty fields are left out."""
    if isinstance(node, ast.AST):
        fields: list[Any] = [type(node).__name__]
        for field, value in ast.iter_fields(node):
            if value is None and field != "value":
                continue
            if value == [] or field in ("kind", "type_comment", "type_ignores"):
                continue
            fields.append([field, _canonical(value)])
        return fields
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    return [type(node).__name__, repr(node)]


def _namespace(item: Any) -> dict[str, Any]:
    """Names that `item` can see outside itself: builtins, globals, closure."""
    if isinstance(item, types.FunctionType):
        cells = dict(zip(item.__code__.co_freevars, item.__closure__ or (), strict=True))
        return {**item.__globals__, **{name: cell.cell_contents for name, cell in cells.items()}}
    return vars(sys.modules[item.__module__]) if item.__module__ in sys.modules else {}


def _outer_names(item: Any, tree: ast.AST) -> set[str]:
    """Names that `item` takes from outside itself."""
    if isinstance(item, types.FunctionType):
        names = set(item.__code__.co_freevars)
        codes = [item.__code__]
        while codes:  # what the compiler resolved: a local of the same name cannot be mistaken
            code = codes.pop()
            codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
            names |= {
                step.argval
                for step in dis.get_instructions(code)
                if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
            }
        # Defaults are evaluated outside the body.
        return names | {node.id for node in ast.walk(tree) if _is_default(node, tree)}
    bound = {
        node.name if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else node.id
        for node in ast.iter_child_nodes(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Name)) and node is not tree
    }
    return {chain[0] for chain in _chains(tree)} - bound


def _is_default(node: ast.AST, tree: ast.AST) -> TypeGuard[ast.Name]:
    if not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return False
    defaults = [*tree.args.defaults, *tree.args.kw_defaults]
    return isinstance(node, ast.Name) and any(
        child is node for item in defaults if item is not None for child in ast.walk(item)
    )


def _chains(tree: ast.AST) -> set[tuple[str, ...]]:
    """Attribute chains that start at a name which `tree` reads, as ("helpers", "ratio")."""
    inner: set[int] = set()
    chains: set[tuple[str, ...]] = set()
    for top in ast.walk(tree):
        if id(top) in inner:
            continue
        node, attributes = top, list[str]()
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
            inner.add(id(node))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            chains.add((node.id, *attributes))
    return {chain for chain in chains if not hasattr(builtins, chain[0])}


def _imports(tree: ast.AST) -> Iterator[tuple[str, str | None, str]]:
    """`(module, attribute, name)` of each import inside `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                top = item.name.partition(".")[0]
                yield (item.name, None, item.asname) if item.asname else (top, None, top)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for item in node.names:
                yield node.module, item.name, item.asname or item.name


@functools.cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib")})


def _is_ours(item: Any) -> bool:
    """Whether the source of `item` belongs to the project, not to Python or a package."""
    try:
        file = inspect.getsourcefile(item)
    except TypeError:  # built in
        return False
    if file is None:
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(folder) for folder in _installed()) and path.exists()


def _qualified(value: Any) -> str:
    module = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{module}.{name}"
