"""Feast's online response, with statuses that tell the truth.

Below `base`. Feast's own builder calls every value PRESENT that a store returns, nulls and
expired ones included, so the stores fill the response here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from feast import utils
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from google.protobuf.timestamp_pb2 import Timestamp

from steadfeast.featurestore.errors import InvalidKeysError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feast import FeatureView
    from feast.protos.feast.types.Value_pb2 import Value
    from numpy.typing import NDArray

INVALID = int(FieldStatus.INVALID)
PRESENT = int(FieldStatus.PRESENT)
NULL_VALUE = int(FieldStatus.NULL_VALUE)
NOT_FOUND = int(FieldStatus.NOT_FOUND)
OUTSIDE_MAX_AGE = int(FieldStatus.OUTSIDE_MAX_AGE)


class ViewAnswer(NamedTuple):
    """What one view says about n keys.

    Attributes:
        event_us: Event times in µs, shape (n,); meaningless where not `known`.
        known: Whether there is a row at or before now, shape (n,).
        values: Messages per feature; unset where null, expired or not found.
        statuses: Feast's `FieldStatus` per feature, uint8, shape (n,).
    """

    event_us: NDArray[np.int64]
    known: NDArray[np.bool_]
    values: Mapping[str, Sequence[Value]]
    statuses: Mapping[str, NDArray[np.uint8]]


def statuses(
    known: NDArray[np.bool_],
    fresh: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    *,
    doubtful: bool = False,
) -> NDArray[np.uint8]:
    """Return Feast's `FieldStatus` of n values, uint8, shape (n,).

    Args:
        known: There is a row at or before the time asked for, shape (n,).
        fresh: It is within the TTL, shape (n,).
        valid: The value is not null, shape (n,).
        doubtful: A row that is not known may have been lost.
    """
    missing = INVALID if doubtful else NOT_FOUND
    kinds = np.where(valid, PRESENT, NULL_VALUE)
    kinds = np.where(fresh, kinds, OUTSIDE_MAX_AGE)
    result: NDArray[np.uint8] = np.where(known, kinds, missing).astype(np.uint8)
    return result


def key_values(
    view: FeatureView,
    join_key_values: dict[str, list[Value]],
    entity_name_to_join_key_map: dict[str, str],
) -> dict[str, list[Value]]:
    """Return the view's own join keys out of those of the request.

    Raises:
        InvalidKeysError: One is missing; it is a KeyError too, as Feast's own.
    """
    values: dict[str, list[Value]] = utils._get_table_entity_values(  # noqa: SLF001 - as Feast does
        view, entity_name_to_join_key_map, join_key_values
    )
    missing = sorted({column.name for column in view.entity_columns} - values.keys())
    if missing:
        given = ", ".join(join_key_values) or "none"
        raise InvalidKeysError(
            view.name, f"Missing join key values for keys: {missing}; given are {given}"
        )
    return values


def extend(
    response: GetOnlineFeaturesResponse,
    view: FeatureView,
    features: Sequence[str],
    answer: ViewAnswer,
    *,
    full_names: bool,
    versions: bool,
) -> None:
    """Append what `view` says about `features` to Feast's response."""
    name: str = view.projection.name_to_use()  # type: ignore[no-untyped-call]
    response.metadata.feature_names.val.extend(
        f"{name}__{feature}" if full_names else feature for feature in features
    )
    if versions:
        _add_version(response, view)
    times = [
        Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000) if known else Timestamp()
        for us, known in zip(answer.event_us.tolist(), answer.known, strict=True)
    ]
    present = 0
    for feature in features:
        kinds: Any = answer.statuses[feature]
        present += int((kinds == PRESENT).sum())
        response.results.append(
            GetOnlineFeaturesResponse.FeatureVector(
                values=answer.values[feature], statuses=kinds.tolist(), event_timestamps=times
            )
        )
    # Feast counts these if it is asked to; importing its metrics would change how every metric
    # of this process is kept, so it is left to Feast.
    metrics = sys.modules.get("feast.metrics")
    if metrics is not None:
        metrics.track_feature_statuses(view.name, present, len(features) * len(times) - present)


def _add_version(response: GetOnlineFeaturesResponse, view: FeatureView) -> None:
    name = view.projection.name_alias or view.projection.name
    if name not in [item.name for item in response.metadata.feature_view_metadata]:
        response.metadata.feature_view_metadata.add(
            name=name, version=getattr(view, "current_version_number", 0) or 0
        )
