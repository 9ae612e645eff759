"""The dashboards as Grafana asks for them: variables, one from the other, then each query."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.prometheus_world import Prometheus

ROOT = Path(__file__).parents[2]
RULES = [
    rule
    for group in yaml.safe_load(
        (ROOT / "grafana" / "rules" / "steadfeast.rules.yml").read_text("utf-8")
    )["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
LOOKED_BACK_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Asked:
    """One query as it reaches Prometheus; `where` names it for a person."""

    where: str
    expr: str
    instant: bool

    def missing(self, prometheus: Prometheus) -> set[str]:
        """Return the metrics of those of its selectors that no series matches."""
        return {name for name, selector in self._selectors() if not prometheus.query(selector)}

    def _selectors(self) -> Iterator[tuple[str, str]]:
        """Give each selector with its metric; of what a rule records, that rule's."""
        for match in re.finditer(r"\b((?:steadfeast[_:]|ALERTS)[\w:]*)(?:\{[^}]*\})?", self.expr):
            name = match[1]
            yield re.split(r"[({[]", RECORDED[name])[1] if name in RECORDED else name, match[0]

    def answered(self, prometheus: Prometheus) -> bool:
        """Ask, as the panel does."""
        if self.instant:
            return bool(prometheus.query(self.expr))
        now = time.time()
        span = {"start": f"{now - LOOKED_BACK_SECONDS}", "end": f"{now}", "step": "1"}
        return bool(prometheus.get("query_range", query=self.expr, **span)["result"])


def boards() -> dict[str, dict[str, Any]]:
    """Return every dashboard by its name."""
    folder = ROOT / "grafana" / "dashboards"
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


def panels(prometheus: Prometheus) -> list[Asked]:
    """Return every query of every panel, for all that its variables can be, each once."""
    return sorted(
        {
            Asked(
                f"{name}: {panel['title']} {target['refId']}",
                _filled(target["expr"], chosen),
                target.get("instant", False),
            )
            for name, board in boards().items()
            for chosen in choices(board["templating"]["list"], prometheus)
            for panel in board["panels"]
            for target in panel["targets"]
        },
        key=lambda one: one.where,
    )


def rules() -> list[Asked]:
    """Return the expression of every rule."""
    return [Asked(one.get("alert") or one["record"], one["expr"], instant=True) for one in RULES]


def choices(variables: list[dict[str, Any]], prometheus: Prometheus) -> list[dict[str, str]]:
    """Return what the variables can be: all of each, and each value of those that are single.

    A variable's values are asked for with the choices before it, as Grafana chains them.
    """
    found: list[dict[str, str]] = [{}]
    for variable in variables:
        if variable["type"] != "query":
            continue
        longer = []
        for chosen in found:
            values = _label_values(variable["query"]["query"], chosen, prometheus)
            assert values, f"${variable['name']} has no value with {chosen}"
            if variable["includeAll"]:
                values = [variable["allValue"], *map(re.escape, values)]
            longer += [{**chosen, variable["name"]: value} for value in values]
        found = longer
    return found


def _label_values(query: str, chosen: dict[str, str], prometheus: Prometheus) -> list[str]:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert asked is not None, query
    selector = _filled(asked[1], chosen)
    values: list[str] = prometheus.get(f"label/{asked[2]}/values", **{"match[]": selector})
    return values


def _filled(expr: str, chosen: dict[str, str]) -> str:
    for name, value in {**chosen, "__rate_interval": "1m"}.items():
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr, expr
    return expr
