"""A feature service, ready to run. Above `plan`, `on_demand` and `contract`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steadfeast.featurestore.definitions.contract import Contract
    from steadfeast.featurestore.definitions.on_demand import Executor
    from steadfeast.featurestore.definitions.plan import ServicePlan


@dataclass(frozen=True, slots=True)
class Bundle:
    """A resolved service: what to read, what to run on it, and under which contract."""

    plan: ServicePlan
    executors: tuple[Executor, ...]
    contract: Contract
