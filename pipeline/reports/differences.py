"""What differs between two versions: data, contract, parameters, code, libraries.

Above `version`. Only what is kept is compared, and what is not kept is named as such: two unknowns
are not the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.definitions import difference
from steadfeast.featurestore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from steadfeast.featurestore.definitions import Contract
    from steadfeast.pipeline.reports.version import Described

_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs.

    Attributes:
        what: Its name, or all of it in words.
        a: What it is in the first version; empty where it has none, or where `what` says all.
        b: What it is in the second.
    """

    what: str
    a: str = ""
    b: str = ""


def differences(
    a: Described, b: Described, contract: Callable[[str], Contract]
) -> dict[str, list[Change]]:
    """Return what differs, under `data`, `contract`, `parameters`, `code` and `libraries`.

    Args:
        a: The first version.
        b: The second.
        contract: Returns a contract by its hash; raises NotFoundError where it was not kept.
    """
    found = {
        "data": _data(a, b),
        "contract": _contract(a, b, contract),
        "parameters": _unlike(a.params, b.params),
        "code": _unlike(_code(a), _code(b)),
        "libraries": _unlike(_libraries(a), _libraries(b)),
    }
    for part, kept in (("parameters", "params"), ("libraries", "environment")):
        lost = [one.title for one in (a, b) if not getattr(one, kept)]
        if lost:
            found[part] = [Change(f"not known of {' and '.join(lost)}: MLflow has no record of it")]
    return found


def _data(a: Described, b: Described) -> list[Change]:
    before, after = _facts(a), _facts(b)
    if a.manifest is None or b.manifest is None:
        lost = [one.title for one in (a, b) if one.manifest is None]
        note = Change(f"the manifest of {' and '.join(lost)} is gone; sources cannot be compared")
        return [*_unlike(before, after), note]
    changes = _unlike(before | _manifest(a), after | _manifest(b))
    for name, one, other in (
        ("feature {} is new", a.manifest, b.manifest),
        ("feature {} is gone", b.manifest, a.manifest),
    ):
        changes += [
            Change(name.format(feature))
            for feature in other.features
            if feature not in one.features
        ]
    return changes


def _facts(one: Described) -> dict[str, str]:
    facts = one.facts
    return {
        "known by": f"{facts.as_of:%Y-%m-%d %H:%M} UTC",
        "fitted on rows before": f"{facts.trained_before:%Y-%m-%d %H:%M} UTC",
        "rows fitted on": f"{facts.rows:,}",
        "features read": ", ".join(facts.features),
    }


def _manifest(one: Described) -> dict[str, str]:
    manifest = one.manifest
    if manifest is None:
        return {}
    files = {
        f"source {item['path']} of view {item['view']}": str(item["sha256"] or "")[:_DIGITS]
        for item in manifest.sources
    }
    return {
        "training set": manifest.id,
        "service": manifest.service,
        "label": manifest.label or "",
        "examples": manifest.entities_sha256[:_DIGITS],
        "rows": f"{manifest.rows:,}",
        "rows count from their event time": "yes" if manifest.event_time_only else "no",
        **files,
    }


def _contract(a: Described, b: Described, contract: Callable[[str], Contract]) -> list[Change]:
    before, after = a.facts.contract, b.facts.contract
    if before == after:
        return []
    changes = [Change("contract", before[:_DIGITS], after[:_DIGITS])]
    try:
        lines = difference(contract(before), contract(after))
    except NotFoundError as error:
        lines = [f"one of the two was not kept: {error}"]
    return [*changes, *map(Change, lines)]


def _code(one: Described) -> dict[str, str]:
    recipe, _, digest = one.facts.recipe.partition(" sha256:")
    known = one.environment.get("commit")
    clean = "" if not known else "yes" if one.environment.get("tree_is_clean") else "no"
    return {
        "recipe": recipe,
        "recipe's file": digest[:_DIGITS],
        "commit": str(known or one.facts.commit),
        "as committed": clean,
    }


def _libraries(one: Described) -> dict[str, str]:
    known = one.environment
    return {**known.get("libraries", {}), **known.get("platform", {})}


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    def pairs() -> Iterator[Change]:
        for name in dict.fromkeys((*a, *b)):
            if a.get(name) != b.get(name):
                yield Change(name, str(a.get(name, "")), str(b.get(name, "")))

    return list(pairs())
