"""Every service as it is defined now, and as it was under each contract that was applied.

Above `serving` and `kept`, below `store`. A service is resolved once and kept as a `Bundle`. A
contract of before is resolved from the definitions that were kept with it. Training sets and
logged vectors are replayed under it as they are; serving it takes more, since what is online was
written under the definitions of now: `obstacles` says what stands against it, and nothing is
served that they have not passed.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, replace
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

from feast.errors import FeastObjectNotFoundException

from steadfeast.featurestore.config import FOLDER_NAME
from steadfeast.featurestore.definitions import repo as definitions
from steadfeast.featurestore.definitions.archive import Kept, keep
from steadfeast.featurestore.definitions.bundle import Bundle
from steadfeast.featurestore.definitions.checks import check_views
from steadfeast.featurestore.definitions.code import late_imports_of
from steadfeast.featurestore.definitions.contract import (
    Contract,
    by_event_time,
    describe,
    describe_source,
    difference,
)
from steadfeast.featurestore.definitions.on_demand import Executor
from steadfeast.featurestore.definitions.plan import registered_views, resolve
from steadfeast.featurestore.definitions.refresher import Refresher
from steadfeast.featurestore.errors import (
    ArchiveError,
    ContractMismatchError,
    DefinitionsError,
    NotFoundError,
    RefusedDefinitionError,
    SteadfeastError,
)
from steadfeast.featurestore.tables import arrow_type, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from feast import FeatureStore, FeatureView, OnDemandFeatureView

    from steadfeast.featurestore.definitions.plan import ServicePlan, StoredView

LAYOUT = 1
"""Version of the packed rows of the online store."""


@dataclass(frozen=True, slots=True)
class LiveChange:
    """What applying the definitions would do to a service that models are served from.

    Attributes:
        models: `(model, version)` of each.
        differences: Between the contract that they are served under and the one to come.
        obstacles: Why requests for their contract would be refused then; empty when they would
            go on being answered, by the definitions that were kept with it.
    """

    models: tuple[tuple[str, str], ...]
    differences: tuple[str, ...]
    obstacles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Defined:
    """What the files of the repo folder define, beside what is applied.

    Attributes:
        views: Their feature views.
        services: Names of their feature services.
        pending: Service -> what `apply` would change; absent where it would change nothing.
    """

    views: tuple[FeatureView, ...]
    services: tuple[str, ...]
    pending: Mapping[str, tuple[str, ...]]


class Catalog:
    """The services of one Feast repo. Safe to share between threads.

    Args:
        feast: Feast's store.
        repo: Folder of the definitions.
        data: Folder that holds `contracts/`.
    """

    def __init__(self, feast: FeatureStore, repo: Path, data: Path) -> None:
        self._feast, self._repo, self._folder = feast, repo, data / "contracts"
        self._refresher = Refresher(feast.config.registry.cache_ttl_seconds)
        self._bundles: dict[str, Bundle] = {}
        self._live: dict[tuple[str, str], Bundle | list[str]] = {}
        self._kept: dict[str, Kept] = {}
        self._before: dict[tuple[str, str], Bundle | list[str]] = {}
        self._views: dict[str, FeatureView] | None = None
        self._lock = RLock()

    def close(self) -> None:
        """Wait for a refresh that is under way."""
        self._refresher.wait()

    def apply(self) -> str:
        """Do `feast apply`, keep contracts and definitions for good, return what Feast says.

        All or nothing: every view and service is resolved beside what is applied first.

        Raises:
            UserError: What one of them means, or to whom, cannot be said; nothing was applied.
        """
        with definitions.preview(self._feast.config, self._repo) as after:
            self._checked(after)
        said = definitions.apply(self._feast.config, self._repo)
        self.refresh()
        for service in self.services():
            self.keep(self.bundle(service).contract)
        return said

    def defined(self) -> Defined:
        """Return what the files define, and what `apply` would change; nothing is applied.

        Raises:
            UserError: `apply` would refuse them.
        """
        applied = self.services()
        with definitions.preview(self._feast.config, self._repo) as after:
            found = self._checked(after)
            views = tuple(registered_views(after))
        pending: dict[str, tuple[str, ...]] = {}
        for name, bundle in found.items():
            if name not in applied:
                pending[name] = ("it is not applied",)
                continue
            try:
                lines = difference(self.bundle(name).contract, bundle.contract)
            except DefinitionsError as error:
                lines = [error.problem]
            if lines:
                pending[name] = tuple(lines)
        pending |= {name: ("the files define it no more",) for name in applied if name not in found}
        return Defined(views, tuple(sorted(found)), pending)

    def _checked(self, after: FeatureStore) -> dict[str, Bundle]:
        """Return the services of a preview by name, or refuse what cannot be meant."""
        check_views(after)
        found = {}
        for item in after.list_feature_services():
            if not re.match(FOLDER_NAME, item.name):
                problem = "names a folder of the log: letters, digits, _, ., - and spaces only"
                raise RefusedDefinitionError(f"feature service {item.name!r}", problem)
            found[item.name] = self._resolve(item.name, after)
        return found

    def live_changes(
        self, models_of: Callable[[str, str], tuple[tuple[str, str], ...]]
    ) -> dict[str, LiveChange]:
        """Return service -> what `apply` would change under a model that is live.

        Args:
            models_of: Gives the `(model, version)` pairs that are live for a service under a
                contract, as the newest file of the served log names them.
        """
        live = {}
        for service in self.services():
            models = models_of(service, self.bundle(service).contract.sha256)
            if models:
                live[service] = models
        if not live:
            return {}
        changes = {}
        with definitions.preview(self._feast.config, self._repo) as after:
            known = {item.name for item in after.list_feature_services()}
            for service, models in live.items():
                before = self.bundle(service)
                if service not in known:
                    gone = ("the service is removed",)
                    changes[service] = LiveChange(models, gone, gone)
                    continue
                lines = difference(before.contract, self._resolve(service, after).contract)
                if lines:
                    kept = self._restored(service, before.contract.sha256)
                    against = kept if isinstance(kept, list) else []
                    against = against or obstacles(before.plan, after, self._repo)
                    changes[service] = LiveChange(models, tuple(lines), tuple(against))
        return changes

    def refresh(self) -> None:
        """Read the registry and the definitions again."""
        with self._lock:
            self._feast.refresh_registry()  # type: ignore[no-untyped-call]
            self._bundles.clear()
            self._live.clear()
            self._views = None

    def _refresh_bundles(self) -> None:
        """Resolve anew what is in use, while requests go on with what they have."""
        self._feast.refresh_registry()  # type: ignore[no-untyped-call]
        fresh = {service: self._resolve(service) for service in tuple(self._bundles)}
        with self._lock:
            self._bundles, self._views = fresh, None
            self._live.clear()

    def services(self) -> list[str]:
        """Return the names of the feature services in the registry."""
        return sorted(item.name for item in self._feast.list_feature_services())

    def online_views(self, names: Sequence[str]) -> list[FeatureView]:
        """Return feature views that are online; all of them when no names are given.

        Raises:
            NotFoundError: There is no such view.
        """
        views = self._views
        if views is None:
            listed = registered_views(self._feast)
            views = self._views = {view.name: view for view in listed if view.online}
        for name in names:
            if name not in views:
                raise NotFoundError("online feature view", name, views)
        return [views[name] for name in names or sorted(views)]

    def bundle(self, service: str, contract: str | None = None) -> Bundle:
        """Return the resolved `service`, as it is served now or under a contract of before.

        Raises:
            NotFoundError: There is no such service.
            DefinitionsError: An on-demand view differs between registry and repo folder.
            ContractMismatchError: The contract was never applied here, its definitions no longer
                make it, or what is online does not hold its values.
        """
        if self._refresher.is_due():
            self._refresher.start(self._refresh_bundles)
        bundle = self._bundles.get(service)
        if bundle is None:
            with self._lock:
                bundle = self._bundles[service] = self._resolve(service)
        if not contract or contract == bundle.contract.sha256:
            return bundle
        found = self._live.get((service, contract))
        if found is None:
            with self._lock:
                found = self._beside(service, contract)
                if self._path(contract).is_file():  # so that requests cannot fill the memory
                    self._live[service, contract] = found
        if isinstance(found, Bundle):
            return found
        raise self._mismatch(service, contract, bundle.contract, found)

    def of_then(self, service: str, contract: str) -> Bundle:
        """Return `service` as it was under a contract, to replay what was made under it.

        Raises:
            NotFoundError: There is no such service, now or among what was kept.
            ContractMismatchError: The contract was never applied here, or its definitions no
                longer make it.
        """
        now = self._of_now(service, contract)
        if now is not None:
            return now
        with self._lock:
            found = self._restored(service, contract)
        if isinstance(found, Bundle):
            return found
        now = self.bundle(service)
        if contract == now.contract.sha256:
            return now
        raise self._mismatch(service, contract, now.contract, found)

    def kept_contract(self, sha256: str) -> Contract:
        """Return a contract that was applied here once, by its SHA-256 or the start of it.

        Raises:
            NotFoundError: No applied contract starts so, or more than one does.
            ArchiveError: What was kept is another contract.
        """
        known = self.kept_contracts()
        found = [name for name in known if sha256 and name.startswith(sha256)]
        if len(found) != 1:
            raise NotFoundError("contract", sha256, found or known)
        path = self._path(found[0])
        contract = Contract(json.loads(path.read_text(encoding="utf-8")))
        if contract.sha256 != path.stem:
            raise ArchiveError(path, f"holds contract {contract.sha256[:16]}")
        return contract

    def kept_contracts(self) -> list[str]:
        """Return the SHA-256 of every contract that was applied here."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def keep(self, contract: Contract) -> None:
        """Keep a contract of now, and the definitions that make it."""
        keep(self._path(contract.sha256).with_suffix(".zip"), self._feast, self._repo)
        path = self._path(contract.sha256)
        if not path.exists():
            write_whole(path, contract.canonical())

    def differences(self, asked: str, served: Contract) -> list[str]:
        """Say in words what differs between a contract of before and one of now."""
        return difference(self.kept_contract(asked), served) if self._is_kept(asked) else []

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.json"

    def _is_kept(self, sha256: str) -> bool:
        return sha256.isalnum() and self._path(sha256).is_file()

    def _mismatch(
        self, service: str, asked: str, served: Contract, reasons: Sequence[str]
    ) -> ContractMismatchError:
        differences = self.differences(asked, served)
        return ContractMismatchError(service, asked, served.sha256, differences, reasons)

    def _resolve(self, service: str, feast: FeatureStore | None = None) -> Bundle:
        plan = resolve(feast or self._feast, service)
        live = definitions.on_demand_views(self._repo) if plan.on_demand else {}
        return _bundle(plan, live, self._repo, self._repo)

    def _of_now(self, service: str, contract: str) -> Bundle | None:
        """Return `service` as it is now under `contract`, if that is how it is."""
        now = self._bundles.get(service)
        return None if now is None else _under(now, contract)

    def _beside(self, service: str, contract: str) -> Bundle | list[str]:
        """Return what serves a contract of before from what is online, or why nothing does."""
        now = self._of_now(service, contract)
        if now is not None:
            return now
        before = self._restored(service, contract)
        if not isinstance(before, Bundle):
            return before
        against = obstacles(before.plan, self._feast, self._repo)
        if against:
            return against
        plan = copy.copy(before.plan)
        plan.views = tuple(
            # Rows online have the layout of the view as it is now.
            replace(view, view=_view_of_now(self._feast, view.view.name))
            for view in before.plan.views
        )
        return replace(before, plan=plan)

    def _restored(self, service: str, contract: str) -> Bundle | list[str]:
        if not self._is_kept(contract):
            return []
        known = self._before.get((service, contract))
        if known is None:
            known = self._before[service, contract] = self._restore(service, contract)
        return known

    def _restore(self, service: str, contract: str) -> Bundle | list[str]:
        path = self._path(contract).with_suffix(".zip")
        if not path.is_file():
            return ["no definitions were kept with it"]
        try:
            kept = self._kept.get(contract)
            if kept is None:
                kept = self._kept[contract] = Kept(path, self._feast.config)
            plan = resolve(kept.feast, service)
            if not plan.on_demand:
                found = _bundle(plan, {}, self._repo, kept.code)
            else:
                with definitions.views_of_then(kept.code) as views:
                    functions = _functions(plan, views, kept.code).values()
                    late = {name for one in functions for name in late_imports_of(one)}
                    if late:
                        names = ", ".join(sorted(late))
                        return [f"its code imports {names} when it is called: that is of now"]
                    found = _bundle(plan, views, self._repo, kept.code)
        except (SteadfeastError, ImportError, OSError) as error:
            return [f"its definitions cannot be read: {error}"]
        under = _under(found, contract)
        if under is None:
            there = self.kept_contract(contract)
            lines = difference(there, found.contract)
            return ["its definitions make another contract here", *lines]
        return under


def _under(bundle: Bundle, contract: str) -> Bundle | None:
    """Return the bundle under its contract, or that of training by event time; None if neither."""
    if contract == bundle.contract.sha256:
        return bundle
    other = by_event_time(bundle.contract)
    return replace(bundle, contract=other) if contract == other.sha256 else None


def _bundle(
    plan: ServicePlan, views: Mapping[str, OnDemandFeatureView], repo: Path, code: Path
) -> Bundle:
    functions = _functions(plan, views, code)
    executors = tuple(
        Executor(view, functions[view.name], view.view.mode, singleton=bool(view.view.singleton))
        for view in plan.on_demand
    )
    return Bundle(plan, executors, describe(plan, functions, repo, LAYOUT))


def _functions(
    plan: ServicePlan, views: Mapping[str, OnDemandFeatureView], code: Path
) -> dict[str, Callable[[Any], Any]]:
    return {view.name: definitions.function_of(view.view, views, code) for view in plan.on_demand}


def obstacles(before: ServicePlan, now: FeatureStore, repo: Path) -> list[str]:
    """Say why a plan of before cannot be answered from what is online under definitions of now.

    What is online holds the values of before when each view still has the source and the join
    keys of then, and the features that were read, of the same types. Then TTLs, lists of features
    and on-demand functions may differ: they are applied when a request is answered.
    """
    found = []
    for view in before.views:
        name = view.view.name
        try:
            current = _view_of_now(now, name)
        except FeastObjectNotFoundException:
            found.append(f"view {name} is gone")
            continue
        found += [f"view {name}: {what}" for what in _against(view, current, repo)]
    return found


def _against(before: StoredView, now: FeatureView, repo: Path) -> list[str]:
    found = []
    old, new = before.view.batch_source, now.batch_source
    described = [None if one is None else describe_source(one, repo) for one in (old, new)]
    if described[0] != described[1]:
        found.append("what is online is from another source now")
    keys = [{item.name: arrow_type(item) for item in v.entity_columns} for v in (before.view, now)]
    if keys[0] != keys[1]:
        found.append("what is online has other join keys now")
    types = {item.name: arrow_type(item) for item in now.features}
    found += [
        f"feature {name} is {types.get(name, 'not')} online now"
        for name, kind in before.columns.items()
        if types.get(name) != kind
    ]
    if not now.online:
        found.append("is not online now")
    ttl = 0 if now.ttl is None else round(now.ttl.total_seconds() * 1_000_000)
    longer = ttl and (not before.ttl_us or before.ttl_us > ttl)
    if longer and not getattr(new, "created_timestamp_column", ""):
        # Without a created column, late rows are looked for as far back as the TTL of now.
        found.append("rows that come late are brought online only within the shorter TTL of now")
    return found


def _view_of_now(feast: FeatureStore, name: str) -> FeatureView:
    found = feast.registry.get_any_feature_view(name, feast.project, allow_cache=True)
    return cast("FeatureView", found)
