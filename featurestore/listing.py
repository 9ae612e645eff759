"""What is applied, for people and programs to look at: services and views. Above `store`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast.feature_view import DUMMY_ENTITY_ID

from steadfeast.featurestore.definitions import registered_views
from steadfeast.featurestore.errors import SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from steadfeast.featurestore.store import Store


def services(store: Store) -> list[dict[str, Any]]:
    """Return what each feature service is, by name.

    `service`; `contract`, its SHA-256; `keys` and `requests`, what a request gives; `features`,
    `views` and `on_demand`; `models`, those that the served log last named under this contract,
    with their versions; `problem`, why it cannot be served, or null. All but the first and the
    last are null where there is a problem.
    """
    return [_service(store, name) for name in store.services()]


def _service(store: Store, name: str) -> dict[str, Any]:
    heads = ("contract", "keys", "requests", "features", "views", "on_demand", "models")
    try:
        bundle = store.bundle(name)
    except SteadfeastError as error:
        return {"service": name, **dict.fromkeys(heads), "problem": str(error)}
    plan, sha256 = bundle.plan, bundle.contract.sha256
    return {
        "service": name,
        "contract": sha256,
        "keys": list(plan.keys),
        "requests": list(plan.requests),
        "features": list(plan.features),
        "views": [one.name for one in plan.views],
        "on_demand": [one.name for one in plan.on_demand],
        "models": [" ".join(pair).strip() for pair in store.served.models(name, sha256)],
        "problem": None,
    }


def views(store: Store) -> list[dict[str, Any]]:
    """Return what each feature view is, by name; those that are computed on demand last.

    `view`; `kind`, of Feast's class; `keys`; `features`; `ttl_seconds`, null where values never
    grow too old; `online`, null
    where it is computed; `materialized_until`, ISO 8601 in UTC, null before the first time.

    Raises:
        StoreUnavailableError: The online store, which knows how far it is, does not answer.
    """
    found = [
        {
            "view": view.name,
            "kind": type(view).__name__,
            "keys": [one.name for one in view.entity_columns if one.name != DUMMY_ENTITY_ID],
            "features": [field.name for field in view.features],
            "ttl_seconds": _seconds(view.ttl),
            "online": bool(view.online),
            "materialized_until": _until(store, view.name) if view.online else None,
        }
        for view in registered_views(store.feast)
    ]
    computed = sorted(store.feast.list_on_demand_feature_views(), key=lambda one: str(one.name))
    return found + [
        {
            "view": view.name,
            "kind": type(view).__name__,
            "keys": [],
            "features": [field.name for field in view.features],
            "ttl_seconds": None,
            "online": None,
            "materialized_until": None,
        }
        for view in computed
    ]


def features(store: Store, search: str = "") -> list[dict[str, Any]]:
    """Return every feature, by name and view, whose name, view, owner, tags or text has `search`.

    `feature`, `view`, `type`; `owner` of the view; `tags` and `description` of the feature, those
    of its view where it has none; `services` that serve it; `contracts`, those of now that hold
    it; `models`, those that the served log last named with it; `materialized_until` as in `views`.
    """
    known, told = views(store), services(store)
    until = {one["view"]: one["materialized_until"] for one in known}
    by_view = _readers(store, told)
    computed = sorted(store.feast.list_on_demand_feature_views(), key=lambda one: str(one.name))
    found = []
    for view in [*registered_views(store.feast), *computed]:
        for field in view.features:
            readers = by_view.get((view.name, field.name), [])
            found.append(
                {
                    "feature": field.name,
                    "view": view.name,
                    "type": str(field.dtype),
                    "owner": view.owner,
                    "tags": {**view.tags, **field.tags},
                    "description": field.description or view.description,
                    "services": [one["service"] for one in readers],
                    "contracts": [one["contract"] for one in readers],
                    "models": sorted({name for one in readers for name in one["models"]}),
                    "materialized_until": until.get(view.name),
                }
            )
    shown = ("feature", "view", "owner", "tags", "description")
    asked = search.casefold()
    chosen = [one for one in found if any(asked in str(one[name]).casefold() for name in shown)]
    return sorted(chosen, key=lambda one: (one["feature"], one["view"]))


def _readers(
    store: Store, told: Sequence[dict[str, Any]]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return view and feature -> the services that serve it; broken ones take no part."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in told:
        if one["problem"] is None:
            for output in store.bundle(one["service"]).plan.outputs:
                found.setdefault((output.view, output.feature), []).append(one)
    return found


def feature_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return features as the rows of a table, with a head."""
    rows = [["feature", "view", "type", "owner", "tags", "services", "models", "until"]]
    for one in found:
        tags = ", ".join(f"{name}={value}" for name, value in one["tags"].items())
        lists = [", ".join(one[name]) for name in ("services", "models")]
        until = one["materialized_until"] or ""
        rows.append([one["feature"], one["view"], one["type"], one["owner"], tags, *lists, until])
    return rows


def service_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return services as the rows of a table, with a head."""
    rows = [["service", "contract", "keys", "features", "views", "models"]]
    for one in found:
        if one["problem"] is not None:
            rows.append([one["service"], one["problem"]])
            continue
        keys, read = [*one["keys"], *one["requests"]], [*one["views"], *one["on_demand"]]
        lists = [", ".join(names) for names in (keys, read, one["models"])]
        features = str(len(one["features"]))
        rows.append([one["service"], one["contract"][:12], lists[0], features, *lists[1:]])
    return rows


def view_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return views as the rows of a table, with a head."""
    rows = [["view", "keys", "features", "ttl", "materialized until"]]
    for one in found:
        ttl = _length(one["ttl_seconds"]) if one["ttl_seconds"] else "no limit"
        until = (one["materialized_until"] or "never") if one["online"] else "not online"
        if one["online"] is None:
            ttl, until = "", "on demand"
        keys, features = ", ".join(one["keys"]), str(len(one["features"]))
        rows.append([one["view"], keys, features, ttl, until])
    return rows


def _length(seconds: float) -> str:
    """Return a length of time as configurations have it, in the largest unit that is whole."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _seconds(ttl: timedelta | None) -> float | None:
    return ttl.total_seconds() or None if ttl else None


def _until(store: Store, view: str) -> str | None:
    until = store.watermark(view)
    return None if until is None else until.isoformat()
