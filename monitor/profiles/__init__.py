"""Rows as mergeable counts, column by column."""

from steadfeast.monitor.profiles.binning import (
    EVENT_TIMES,
    ORDERED,
    ColumnEdges,
    ColumnKind,
    Edges,
    decoded,
    edges_of,
    places_of,
)
from steadfeast.monitor.profiles.distribution import MOST_BARS, Distribution, distributions, stretch
from steadfeast.monitor.profiles.profile import ColumnProfile, Profile, Window, profile, total
from steadfeast.monitor.profiles.roles import Role, WatchedColumn
from steadfeast.monitor.profiles.rolling import Sums

__all__ = [
    "EVENT_TIMES",
    "MOST_BARS",
    "ORDERED",
    "ColumnEdges",
    "ColumnKind",
    "ColumnProfile",
    "Distribution",
    "Edges",
    "Profile",
    "Role",
    "Sums",
    "WatchedColumn",
    "Window",
    "decoded",
    "distributions",
    "edges_of",
    "places_of",
    "profile",
    "stretch",
    "total",
]
