"""What a feature service means: its plan, its code and its contract."""

from steadfeast.featurestore.definitions.bundle import Bundle
from steadfeast.featurestore.definitions.catalog import LAYOUT, Catalog, Defined, LiveChange
from steadfeast.featurestore.definitions.contract import (
    TIE_RULE,
    Contract,
    by_event_time,
    describe_source,
    difference,
)
from steadfeast.featurestore.definitions.on_demand import Executor
from steadfeast.featurestore.definitions.plan import (
    OnDemandView,
    Output,
    ServicePlan,
    StoredView,
    personal_columns,
    registered_views,
)

__all__ = [
    "LAYOUT",
    "TIE_RULE",
    "Bundle",
    "Catalog",
    "Contract",
    "Defined",
    "Executor",
    "LiveChange",
    "OnDemandView",
    "Output",
    "ServicePlan",
    "StoredView",
    "by_event_time",
    "describe_source",
    "difference",
    "personal_columns",
    "registered_views",
]
