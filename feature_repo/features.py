"""What the flights model reads, in Feast's own terms. The sources are built by `sources.py`."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import FeastType, Float32, Float64, Int64, String, UnixTimestamp


def entity(name: str, description: str) -> Entity:
    """Return an entity whose join key has its own name."""
    return Entity(name=name, value_type=ValueType.STRING, description=description)


origin = entity("origin", "Airport of departure: EWR, JFK or LGA.")
dest = entity("dest", "Airport of arrival, by its FAA code.")
route = entity("route", "Origin and destination, as JFK_LAX.")
carrier_origin = entity("carrier_origin", "Carrier and origin, as UA_EWR.")
tailnum = entity("tailnum", "Registration of the aircraft; null when not yet assigned.")


def view(
    name: str, key: Entity, ttl: timedelta, fields: dict[str, FeastType], description: str
) -> FeatureView:
    """Return a feature view over `data/sources/NAME.parquet`."""
    return FeatureView(
        name=name,
        entities=[key],
        ttl=ttl,
        schema=[Field(name=field, dtype=dtype) for field, dtype in fields.items()],
        source=FileSource(
            name=f"{name}_source",
            path=f"data/sources/{name}.parquet",
            timestamp_field="event_timestamp",
        ),
        description=description,
    )


weather = view(
    "weather",
    origin,
    timedelta(hours=6),
    {
        "temperature_fahrenheit": Float32,
        "humidity_percent": Float32,
        "wind_speed_mph": Float32,
        "precipitation_inches": Float32,
        "pressure_millibars": Float32,
        "visibility_miles": Float32,
    },
    "Hourly weather at the origin, known at the hour's end.",
)
origin_departures = view(
    "origin_departures",
    origin,
    timedelta(hours=2),
    {"departures_3h": Int64, "departure_delay_3h": Float32, "departure_late_share_3h": Float32},
    "Departures of the last 3 hours: how many, mean delay in minutes, share over 15 minutes.",
)
dest_arrivals = view(
    "dest_arrivals",
    dest,
    timedelta(hours=2),
    {"arrivals_6h": Int64, "arrival_delay_6h": Float32, "arrival_late_share_6h": Float32},
    "Arrivals from New York in the last 6 hours.",
)
carrier_departures = view(
    "carrier_departures",
    carrier_origin,
    timedelta(hours=2),
    {
        "carrier_departures_6h": Int64,
        "carrier_departure_delay_6h": Float32,
        "carrier_departure_late_share_6h": Float32,
    },
    "The carrier's departures from the origin in the last 6 hours.",
)
carrier_arrivals = view(
    "carrier_arrivals",
    carrier_origin,
    timedelta(hours=2),
    {
        "carrier_arrivals_7d": Int64,
        "carrier_arrival_delay_7d": Float32,
        "carrier_late_share_7d": Float32,
    },
    "Arrivals of the carrier's flights from the origin in the last 7 days.",
)
route_arrivals = view(
    "route_arrivals",
    route,
    timedelta(days=2),
    {
        "route_arrivals_14d": Int64,
        "route_arrival_delay_14d": Float32,
        "route_late_share_14d": Float32,
    },
    "Arrivals on the route in the last 14 days, once a day.",
)
aircraft = view(
    "aircraft",
    tailnum,
    timedelta(days=3),
    {"last_arrival_delay": Float32, "last_arrived_at": UnixTimestamp},
    "The aircraft's last arrival from New York.",
)

request = RequestSource(
    name="request",
    schema=[
        Field(name="scheduled_departure", dtype=UnixTimestamp),
        Field(name="carrier", dtype=String),
        Field(name="distance_miles", dtype=Int64),
    ],
    description="What the caller knows about the flight.",
)


@on_demand_feature_view(
    sources=[request, aircraft, carrier_departures, carrier_arrivals],
    schema=[
        Field(name="departure_hour", dtype=Int64),
        Field(name="day_of_week", dtype=Int64),
        Field(name="distance", dtype=Float64),
        Field(name="turnaround_hours", dtype=Float64),
        Field(name="delay_above_usual", dtype=Float64),
    ],
    description="Calendar in New York's time, and what only the request can complete.",
)
def flight(inputs: pd.DataFrame) -> pd.DataFrame:
    """Return hour and weekday of departure, hours since the aircraft landed, delay trend."""
    departure = pd.to_datetime(inputs["scheduled_departure"], utc=True)
    landed = pd.to_datetime(inputs["last_arrived_at"], utc=True)
    local = departure.dt.tz_convert("America/New_York")
    recent = inputs["carrier_departure_delay_6h"].astype("float64")
    usual = inputs["carrier_arrival_delay_7d"].astype("float64")
    return pd.DataFrame(
        {
            "departure_hour": local.dt.hour.astype("int64"),
            "day_of_week": local.dt.dayofweek.astype("int64"),
            "distance": inputs["distance_miles"].astype("float64"),
            "turnaround_hours": (departure - landed).dt.total_seconds() / 3600,
            "delay_above_usual": recent - usual,
        }
    )


late_arrival = FeatureService(
    name="late_arrival",
    features=[
        weather,
        origin_departures,
        dest_arrivals,
        carrier_departures,
        carrier_arrivals,
        route_arrivals,
        aircraft[["last_arrival_delay"]],
        flight,
    ],
    description="Will this flight arrive more than 15 minutes late?",
)
