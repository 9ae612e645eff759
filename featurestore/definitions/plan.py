"""What a feature service resolves to: views, keys, types and names, worked out once.

Above `errors`, below everything that joins, serves or audits: all of them read the same
`ServicePlan`, so that none can have its own idea of a column's name, type or TTL.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from feast import utils as feast_utils
from feast.errors import FeastObjectNotFoundException
from feast.feature_view import DUMMY_ENTITY_FIELD, DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME

from steadfeast.featurestore.errors import NotFoundError, RefusedDefinitionError
from steadfeast.featurestore.tables import (
    EVENT_TIMESTAMP,
    LOGGED,
    arrow_type,
    is_personal,
    personal_fields,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from feast import FeatureStore, FeatureView, Field, OnDemandFeatureView
    from feast.feature_view_projection import FeatureViewProjection


@dataclass(frozen=True, slots=True)
class StoredView:
    """One feature view whose values are stored, as one service reads it.

    Attributes:
        view: Feast's object, projected to what is read.
        name: The name the service uses for it; an alias, where it has one.
        keys: Join key of the view -> column of the request or entity frame.
        key_types: Arrow type per join key of the view.
        columns: Features read -> their Arrow types, those of on-demand inputs included.
        ttl_us: Microseconds a value may be old, 0 for no limit.
    """

    view: FeatureView
    name: str
    keys: Mapping[str, str]
    key_types: Mapping[str, pa.DataType]
    columns: Mapping[str, pa.DataType]
    ttl_us: int

    def key_table(self, entities: pa.Table) -> pa.Table:
        """Return the view's join keys, under the view's own names, for each row."""
        if not self.keys:  # Feast stores a view without entities under one dummy key
            return pa.table({DUMMY_ENTITY_ID: pa.array([""] * entities.num_rows, pa.string())})
        return pa.table(
            {
                key: _narrow(entities.column(column), self.key_types[key])
                for key, column in self.keys.items()
            }
        )


def _narrow(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return whole numbers as the view's own type; what that cannot hold is no key of the view."""
    if column.type == kind or not pa.types.is_integer(kind) or not pa.types.is_integer(column.type):
        return column
    limit = 2 ** (kind.bit_width - 1)
    fits = pc.and_(pc.greater_equal(column, -limit), pc.less(column, limit))
    return pc.if_else(fits, column, None).cast(kind)


@dataclass(frozen=True, slots=True)
class OnDemandView:
    """One on-demand view, as one service reads it.

    Attributes:
        view: Feast's object from the registry.
        name: The name the service uses for it.
        inputs: `(stored view's name, feature)` pairs that the function may read.
        requests: Request fields that it may read -> their Arrow types.
        outputs: Every feature it declares -> Arrow type.
    """

    view: OnDemandFeatureView
    name: str
    inputs: tuple[tuple[str, str], ...]
    requests: Mapping[str, pa.DataType]
    outputs: Mapping[str, pa.DataType]


@dataclass(frozen=True, slots=True)
class Output:
    """One feature of the service: the view it is from, its name there, and in the result."""

    view: str
    feature: str
    name: str
    type: pa.DataType
    tags: Mapping[str, str]


class ServicePlan:
    """A feature service, resolved against the registry.

    Attributes:
        name: Of the service.
        views: Stored views that must be read.
        on_demand: On-demand views that must be executed.
        outputs: The service's features in its own order.
        keys: Join key columns of requests and entity frames -> Arrow types.
        requests: Request fields that the on-demand views need -> Arrow types.

    Raises:
        RefusedDefinitionError: A name would mean two things.
    """

    def __init__(
        self,
        name: str,
        views: Iterable[StoredView],
        on_demand: Iterable[OnDemandView],
        chosen: Iterable[tuple[str, Field]],
    ) -> None:
        self.name = name
        self.views, self.on_demand = tuple(views), tuple(on_demand)
        self.keys = _key_types(self.views)
        self.requests = _request_types(name, self.on_demand, self.keys)
        for view in self.on_demand:
            _check_inputs(view)
        taken = {*self.keys, *self.requests}
        for column in sorted(taken & {*LOGGED, EVENT_TIMESTAMP}):
            problem = f"its key or request field {column!r} has the name of a column of our own"
            raise RefusedDefinitionError(f"feature service {name!r}", f"{problem}; rename it")
        taken |= {*LOGGED, *(f"{view.name}__{EVENT_TIMESTAMP}" for view in self.views)}
        self.outputs = _named(name, tuple(chosen), taken)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order of the service."""
        return tuple(output.name for output in self.outputs)

    @cached_property
    def entity_columns(self) -> dict[str, pa.DataType]:
        """What a request must give: join keys, then request fields."""
        return {**self.keys, **self.requests}

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the features."""
        return pa.schema([(output.name, output.type) for output in self.outputs])


def resolve(store: FeatureStore, name: str) -> ServicePlan:
    """Resolve service `name` of the registry.

    Raises:
        NotFoundError: There is no such service.
    """
    registry, project = store.registry, store.project
    try:
        service = registry.get_feature_service(name, project, allow_cache=True)
    except FeastObjectNotFoundException as error:
        known = (item.name for item in registry.list_feature_services(project))
        raise NotFoundError("feature service", name, known) from error
    stored, transformations = feast_utils._get_feature_views_to_use(  # noqa: SLF001 - Feast offers no public way
        registry, project, service, allow_cache=True, hide_dummy_entity=False
    )
    chosen = [
        (_used_name(projection), field)
        for projection in service.feature_view_projections
        for field in projection.features
    ]
    return ServicePlan(
        name,
        [stored_view(store, view) for view in stored],
        [_on_demand(view) for view in transformations],
        chosen,
    )


def registered_views(store: FeatureStore) -> list[FeatureView]:
    """Return every feature view of the registry, batch and stream ones too, ordered by name.

    A view without entities has Feast's dummy key, whoever asked for the list before: Feast caches
    the objects of its lists, and a list without dummy keys empties those very objects.
    """
    registry, project = store.registry, store.project
    listed = [
        *registry.list_feature_views(project, allow_cache=True),
        *registry.list_stream_feature_views(project, allow_cache=True),
    ]
    return sorted(map(_with_key, listed), key=lambda view: str(view.name))


def _with_key(view: FeatureView) -> FeatureView:
    if view.entity_columns:
        return view
    whole = copy.copy(view)
    whole.entities, whole.entity_columns = [DUMMY_ENTITY_NAME], [DUMMY_ENTITY_FIELD]
    return whole


def stored_view(store: FeatureStore, view: FeatureView) -> StoredView:
    """Describe `view` as its projection reads it."""
    types = {field.name: arrow_type(field) for field in view.entity_columns}
    keys: dict[str, str] = {}
    for entity in view.entities:
        if entity == DUMMY_ENTITY_NAME:
            continue
        join_key = store.registry.get_entity(entity, store.project, allow_cache=True).join_key
        keys[join_key] = view.projection.join_key_map.get(join_key, join_key)
    return StoredView(
        view=view,
        name=_used_name(view.projection),
        keys=keys,
        key_types={key: types.get(key, pa.string()) for key in keys},
        columns={field.name: arrow_type(field) for field in view.projection.features},
        ttl_us=0 if view.ttl is None else round(view.ttl.total_seconds() * 1_000_000),
    )


def _on_demand(view: OnDemandFeatureView) -> OnDemandView:
    sources: list[Any] = list(view.source_request_sources.values())
    if view._input_schema_sentinel is not None:  # noqa: SLF001 - where Feast keeps `input_schema`
        sources.append(view._input_schema_sentinel)  # noqa: SLF001
    # Sorted, because the registry keeps sources in a map, in no order of their own.
    return OnDemandView(
        view=view,
        name=_used_name(view.projection),
        inputs=tuple(
            sorted(
                (_used_name(projection), field.name)
                for projection in view.source_feature_view_projections.values()
                for field in projection.features
            )
        ),
        requests={
            field.name: arrow_type(field)
            for source in sorted(sources, key=lambda source: str(source.name))
            for field in source.schema
        },
        outputs={field.name: arrow_type(field) for field in view.features},
    )


def _used_name(projection: FeatureViewProjection) -> str:
    name: str = projection.name_to_use()  # type: ignore[no-untyped-call]
    return name


def _named(
    service: str, chosen: tuple[tuple[str, Field], ...], taken: set[str]
) -> tuple[Output, ...]:
    """Plain names, or `view__feature` for all of them when two would be the same."""
    plain = [field.name for _, field in chosen]
    reserved = {*taken, EVENT_TIMESTAMP}
    clash = len(set(plain)) < len(plain) or not reserved.isdisjoint(plain)
    outputs = tuple(
        Output(
            view=view,
            feature=field.name,
            name=f"{view}__{field.name}" if clash else field.name,
            type=arrow_type(field),
            tags=dict(field.tags or {}),
        )
        for view, field in chosen
    )
    owners: dict[str, Output] = {}
    for output in outputs:
        other = owners.setdefault(output.name, output)
        if other is not output or output.name in reserved:
            rival = f"{other.view}:{other.feature}" if other is not output else "another column"
            raise RefusedDefinitionError(
                f"feature service {service!r}",
                f"{output.view}:{output.feature} and {rival} are both called {output.name!r}; "
                "give one of the views an alias, with_name(...)",
            )
    return outputs


def _key_types(views: Iterable[StoredView]) -> dict[str, pa.DataType]:
    """Return the type of each entity column; of whole numbers the widest that a view has."""
    found: dict[str, tuple[pa.DataType, StoredView]] = {}
    for view in views:
        for key, column in view.keys.items():
            mine = view.key_types[key]
            kind, other = found.setdefault(column, (mine, view))
            if kind == mine:
                continue
            if not (pa.types.is_signed_integer(kind) and pa.types.is_signed_integer(mine)):
                raise RefusedDefinitionError(
                    f"feature view {view.name!r}, key {key!r}",
                    f"is {mine}, but feature view {other.name!r} takes {column!r} as {kind}; "
                    "declare one type for both, or map one of them to another column",
                )
            if mine.bit_width > kind.bit_width:
                found[column] = mine, view
    return {column: kind for column, (kind, _) in found.items()}


def _request_types(
    service: str, views: Iterable[OnDemandView], keys: Mapping[str, pa.DataType]
) -> dict[str, pa.DataType]:
    found: dict[str, pa.DataType] = {}
    for view in views:
        for name, kind in view.requests.items():
            other = keys.get(name, found.get(name, kind))
            if other != kind:
                raise RefusedDefinitionError(
                    f"on-demand view {view.name!r}, request field {name!r}",
                    f"is {kind}, but service {service!r} takes {name!r} as {other}; declare one "
                    "type for both, or rename the field",
                )
            found[name] = kind
    return found


def _check_inputs(view: OnDemandView) -> None:
    """Refuse two inputs that the function would see under one name."""
    names: set[str] = set()
    for source, feature in view.inputs:
        name = f"{source}__{feature}"
        if name in names or name in view.requests:
            raise RefusedDefinitionError(
                f"on-demand view {view.name!r}",
                f"two of its inputs are called {name!r}; rename a feature or a field",
            )
        names.add(name)


def personal_columns(plan: ServicePlan) -> frozenset[str]:
    """Return which features, join keys and request fields of a service are personal."""
    marked = {view.name: personal_fields(view.view) for view in plan.views}
    found = {
        column
        for view in plan.views
        for key, column in view.keys.items()
        if key in marked[view.name]
    }
    derived: dict[str, bool] = {}
    for view in plan.on_demand:
        fields = [
            item for source in view.view.source_request_sources.values() for item in source.schema
        ]
        asked = {item.name for item in fields if is_personal(item.tags)}
        found |= asked
        tags = view.view.tags or {}
        derived[view.name] = (
            is_personal(tags)
            if "pii" in tags
            else bool(asked) or any(name in marked.get(source, ()) for source, name in view.inputs)
        )
    found |= {
        output.name
        for output in plan.outputs
        if output.feature in marked.get(output.view, ())
        or (output.view in derived and (derived[output.view] or is_personal(output.tags)))
    }
    return frozenset(found)
