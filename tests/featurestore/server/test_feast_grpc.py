"""Feast's ServingService over our store, value for value against Feast's own SDK."""

from __future__ import annotations

from importlib.metadata import version

import grpc
import pytest
from feast.protos.feast.serving import ServingService_pb2 as pb
from feast.protos.feast.serving.ServingService_pb2_grpc import ServingServiceStub
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value


def repeated(*values: object) -> RepeatedValue:
    kinds = {int: "int64_val", str: "string_val"}
    return RepeatedValue(val=[Value(**{kinds[type(value)]: value}) for value in values])


def vectors(response: pb.GetOnlineFeaturesResponse) -> dict[str, tuple[list, list, list]]:
    """What is said of each name; Feast gives no time to what it did not find."""
    return {
        name: (
            [value.SerializeToString() for value in vector.values],
            list(vector.statuses),
            [time.ToMicroseconds() for time in vector.event_timestamps],
        )
        for name, vector in zip(response.metadata.feature_names.val, response.results, strict=True)
    }


@pytest.mark.parametrize("full_names", [False, True])
def test_it_says_what_feasts_sdk_says(channel, store, full_names):
    service = "small"
    keys = [1, 2, 3, 99]
    request = pb.GetOnlineFeaturesRequest(
        feature_service=service,
        entities={"user_id": repeated(*keys)},
        full_feature_names=full_names,
    )
    said = vectors(ServingServiceStub(channel).GetOnlineFeatures(request, timeout=30))
    right = vectors(
        store.feast.get_online_features(
            features=store.feast.get_feature_service(service),
            entity_rows={"user_id": keys},
            full_feature_names=full_names,
        ).proto
    )
    assert said == right
    assert len(said) > 1


def test_a_service_is_logged_and_single_features_are_answered(channel, store):
    stub = ServingServiceStub(channel)
    assert stub.GetFeastServingInfo(pb.GetFeastServingInfoRequest()).version == version("feast")
    asked = pb.GetOnlineFeaturesRequest(
        features=pb.FeatureList(val=["users:spend"]), entities={"user_id": repeated(1)}
    )
    found = vectors(stub.GetOnlineFeatures(asked, timeout=30))
    assert [Value.FromString(one).double_val for one in found["spend"][0]] == [4.0]
    service = pb.GetOnlineFeaturesRequest(
        feature_service="small", entities={"user_id": repeated(1)}
    )
    stub.GetOnlineFeatures(service, timeout=30, metadata=[("x-request-id", "feast-1")])
    store.served.flush()
    assert store.served.counters("small").rows == 1


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.GetOnlineFeaturesRequest(), grpc.StatusCode.INVALID_ARGUMENT, "kind: is not set"),
        (
            pb.GetOnlineFeaturesRequest(feature_service="nosuch"),
            grpc.StatusCode.NOT_FOUND,
            "'nosuch'",
        ),
        (
            pb.GetOnlineFeaturesRequest(feature_service="small", entities={"user": repeated(1)}),
            grpc.StatusCode.INVALID_ARGUMENT,
            "user_id",
        ),
    ],
)
def test_what_cannot_be_answered_is_said(channel, request_, code, words):
    with pytest.raises(grpc.RpcError) as caught:
        ServingServiceStub(channel).GetOnlineFeatures(request_, timeout=30)
    assert caught.value.code() is code
    assert words in caught.value.details()
