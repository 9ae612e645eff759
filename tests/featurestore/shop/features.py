"""A shop: users with a created column and a TTL, items with neither, two on-demand views."""

from datetime import timedelta

import helpers
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, Float64, Int64, String, UnixTimestamp
from helpers import ratio

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)

users = FeatureView(
    name="users",
    entities=[user],
    ttl=timedelta(days=1),
    schema=[
        Field(name="spend", dtype=Float64),
        Field(name="visits", dtype=Int64),
        Field(name="city", dtype=String, tags={"pii": "true"}),
    ],
    source=FileSource(
        name="users_source",
        path="data/sources/users.parquet",
        timestamp_field="at",
        created_timestamp_column="written",
    ),
)
items = FeatureView(
    name="items",
    entities=[item],
    ttl=timedelta(0),
    schema=[Field(name="price", dtype=Float32), Field(name="listed", dtype=UnixTimestamp)],
    source=FileSource(name="items_source", path="data/sources/items.parquet", timestamp_field="at"),
)
basket = RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)])


@on_demand_feature_view(
    sources=[basket, users, items],
    schema=[Field(name="share", dtype=Float64), Field(name="more_visits", dtype=Int64)],
    tags={"pii": "false"},
)
def affinity(inputs: pd.DataFrame) -> pd.DataFrame:
    """Share of spending, and one more visit."""
    return pd.DataFrame(
        {
            "share": ratio(inputs["amount"], inputs["users__spend"]),
            "more_visits": inputs["visits"] - 1,
        }
    )


@on_demand_feature_view(
    sources=[users, items],
    schema=[Field(name="label", dtype=String), Field(name="twice", dtype=Float64)],
    mode="python",
)
def words(inputs):
    """City in capitals, and twice the price."""
    return {
        "label": [None if city is None else city.upper() for city in inputs["city"]],
        "twice": [None if price is None else 2 * price for price in inputs["price"]],
    }


purchase = FeatureService(name="purchase", features=[users, items, affinity, words])
small = FeatureService(name="small", features=[users[["spend"]]])
USED_NOWHERE = helpers.FLOOR
