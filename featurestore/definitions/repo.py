"""The Python definitions under the repo folder: applying them, and finding their functions.

Above `errors`. Feast's registry keeps an on-demand function as source text and restores it
without the names around it, so that one that calls a helper cannot run from there. The function
that runs, and that a contract describes, is therefore the one in the repo folder; where the
registry was applied from another text, that is an error and not a mixture.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import linecache
import os
import sys
import textwrap
import warnings
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from feast import FeatureStore, OnDemandFeatureView
from feast.repo_operations import apply_total, get_repo_files

from steadfeast.featurestore.errors import DefinitionsError, RefusedDefinitionError
from steadfeast.featurestore.tables import TemporaryFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from feast import RepoConfig

_OURS = ("steadfeast",)
_IMPORTS = RLock()
_repos: set[Path] = set()


def apply(config: RepoConfig, repo: Path) -> str:
    """Do what `feast apply` does in `repo`, and return what it prints.

    Changes the working folder while it runs, as Feast does.
    """
    said = io.StringIO()
    before = os.getcwd()  # noqa: PTH109 - the pair of chdir, which Feast calls
    with _fresh_imports(repo), contextlib.redirect_stdout(said), warnings.catch_warnings():
        # Feast warns that on-demand views are slow offline: it does not run them here.
        warnings.filterwarnings("ignore", "On demand feature view", RuntimeWarning)
        try:
            apply_total(config, repo, skip_source_validation=False)
        except KeyError as error:  # what Feast says of a Set(Json)
            kind = str(error.args[0])
            if not kind.endswith(("_SET", "_LIST")):
                raise
            subject, problem = "a field of the definitions", f"is {kind}, which Feast cannot keep"
            raise RefusedDefinitionError(subject, problem) from error
        finally:
            os.chdir(before)
    return said.getvalue()


@contextlib.contextmanager
def preview(config: RepoConfig, repo: Path) -> Iterator[FeatureStore]:
    """Give the store that `apply` would make of the definitions, with nothing applied.

    Its registry and its online store are empty ones of their own, and go when the block ends.
    """
    with TemporaryFolder("preview") as folder:
        aside = config.model_copy()
        aside.registry_config = {"registry_type": "file", "path": f"{folder}/registry.db"}
        aside._registry = None  # noqa: SLF001 - where Feast keeps what it made of the above
        aside.online_config = {"type": "sqlite", "path": f"{folder}/online.db"}
        aside._online_store = None  # noqa: SLF001
        apply(aside, repo)
        yield FeatureStore(config=aside)


def on_demand_views(repo: Path) -> dict[str, OnDemandFeatureView]:
    """Import the files of `repo` that define on-demand views, and return these by name."""
    with _fresh_imports(repo):
        return _imported(repo)


@contextlib.contextmanager
def views_of_then(code: Path) -> Iterator[dict[str, OnDemandFeatureView]]:
    """Give the on-demand views of kept files; their modules are gone when the block ends.

    What is imported now stays imported: both live side by side, each function with its own names.
    """
    with _IMPORTS:
        present = dict(sys.modules)
        try:
            with _fresh_imports(code):
                yield _imported(code)
        finally:
            _repos.discard(code)
            sys.path.remove(str(code))
            for name, module in list(sys.modules.items()):
                origin = getattr(module, "__file__", None)
                if origin is not None and Path(origin).is_relative_to(code):
                    del sys.modules[name]
            sys.modules.update(present)


def _imported(repo: Path) -> dict[str, OnDemandFeatureView]:
    found: dict[str, OnDemandFeatureView] = {}
    for path in get_repo_files(repo):
        text = path.read_text(encoding="utf-8")
        if "on_demand_feature_view" not in text and "OnDemandFeatureView" not in text:
            continue  # spares the imports of files that only build data or train
        name = ".".join(path.relative_to(repo).with_suffix("").parts)
        module = importlib.import_module(name)
        found.update(
            (item.name, item)
            for item in vars(module).values()
            if isinstance(item, OnDemandFeatureView)
        )
    return found


def function_of(
    applied: OnDemandFeatureView, live: Mapping[str, OnDemandFeatureView], repo: Path
) -> Callable[[Any], Any]:
    """Return the function of `applied`, from the definitions.

    Raises:
        DefinitionsError: The definitions lack the view, or hold another text than was applied.
    """
    name = applied.name
    if name not in live:
        raise DefinitionsError(name, repo, "is in the registry but not in the definitions")
    mine, theirs = live[name].feature_transformation, applied.feature_transformation
    if mine is None or theirs is None:
        raise DefinitionsError(name, repo, "has no function")
    if _tree(mine.udf_string) != _tree(theirs.udf_string):
        raise DefinitionsError(name, repo, "was applied with another function than is defined")
    function: Callable[[Any], Any] = mine.udf
    return function


def _tree(source: str) -> str:
    return ast.dump(ast.parse(textwrap.dedent(source)))


@contextlib.contextmanager
def _fresh_imports(repo: Path) -> Iterator[None]:
    """Import from `repo` what its files import from each other, as they are now.

    Modules that came from this folder, or from another repo, are forgotten first: Python would
    hand out the old text, or a neighbour's file of the same name.
    """
    with _IMPORTS:
        _repos.add(repo)
        for name, module in list(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            if origin is None or "site-packages" in origin or name.partition(".")[0] in _OURS:
                continue
            if any(Path(origin).is_relative_to(folder) for folder in _repos):
                del sys.modules[name]
        importlib.invalidate_caches()
        linecache.checkcache()
        sys.path.insert(0, str(repo))
        try:
            yield
        finally:
            # The folder stays last on the path: a function may import a neighbour when called.
            sys.path.remove(str(repo))
            if str(repo) not in sys.path:
                sys.path.append(str(repo))
