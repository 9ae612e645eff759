"""A version on one page, for who decides on it, uses it or audits it. Above `version`.

Nothing is computed anew but intervals: the rows held out are kept with what the judged fit said.
What is gone is left out, and a note says so.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast import featurestore
from steadfeast.featurestore.errors import (
    ContractMismatchError,
    ErasedError,
    ManifestError,
    NotFoundError,
)
from steadfeast.featurestore.training import TrainingSet
from steadfeast.measures import MeasureError, OneClassError, blocks_of, measured, measures_of
from steadfeast.pipeline import html, recipes
from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue
from steadfeast.pipeline.registry import Registry
from steadfeast.pipeline.reports.side_by_side import version_of
from steadfeast.pipeline.reports.version import describe
from steadfeast.pipeline.training import judged_by, split, times_of
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from steadfeast.featurestore import Store
    from steadfeast.measures import Measure, Sample
    from steadfeast.pipeline.config import ModelConfig
    from steadfeast.pipeline.reports.version import Described

CONFIDENCE = 0.95
_MOST_VALUES = 20


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a version; each attribute is as JSON has it.

    Attributes:
        version: Model, version, run, aliases, cause and outcome.
        use: What it is for: the recipe's docstring, task, label, service, licence.
        data: Training set, rows, times, sources.
        features: Name, type, view, owner and description of each.
        metrics: Measure, slice, rows, value and ends of the 95 % interval, on the hold-out.
        gates: As they were judged.
        importance: Per feature, how much worse the first measure gets without it.
        promotions: When it was promoted, by whom, and why.
        notes: What is not known, one sentence each.
    """

    version: dict[str, Any]
    use: dict[str, Any]
    data: dict[str, Any]
    features: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    gates: list[dict[str, Any]]
    importance: dict[str, float]
    promotions: list[dict[str, Any]]
    notes: list[str]


def card(path: Path, name: str, model: str = "") -> Card:
    """Return the card of the version that `name` stands for; see `describe`.

    Raises:
        NotFoundError: There is no such version, run or model.
    """
    config, _ = load(path)
    folder = path.resolve().parent
    notes: list[str] = []
    with ExitStack() as stack:
        queue = stack.enter_context(RunQueue(config.state / "runs.db"))
        store = stack.enter_context(featurestore.Store.open(path))
        registry = Registry.open(config)
        one = describe(name, config, store.data, queue, registry, model)
        settings = config.models[one.model]
        important = registry.runs.file(one.model, one.facts.run_id, "feature_importance.json")
        aliases = [
            alias
            for alias in ("champion", "challenger")
            if registry.alias(one.model, alias) == one.version
        ]
        return Card(
            version={"model": one.model, **version_of(one), "aliases": aliases},
            use=_use(one, settings, folder, notes),
            data=_data(one, notes),
            features=_features(one, store, notes),
            metrics=list(_metrics(one, settings, folder, notes)),
            gates=[] if one.run is None else [_gate(gate) for gate in one.run.gates],
            importance=json.loads(important) if important else {},
            promotions=list(_promotions(one, queue)),
            notes=notes,
        )


def card_page(said: Card) -> str:
    """Return a card as a page of one file."""
    important = sorted(said.importance.items(), key=lambda each: -each[1])
    version = said.version
    return html.document(
        f"{version['model']} version {version['version']}",
        html.table(("", ""), _pairs(version)),
        html.section("Intended use", html.text(said.use["description"] or ""),
                     html.table(("", ""), _pairs(said.use, without="description"))),
        html.section("Data", html.table(("", ""), _pairs(said.data))),
        html.section("Features", _table(said.features)),
        html.section("Measures on the hold-out", _table(said.metrics)),
        html.section("Gates", _table(said.gates)),
        html.section("Importance", html.table(("feature", "worse without it by"), important)),
        html.section("Promotions", _table(said.promotions)),
        html.section("Not known", *map(html.text, said.notes)),
    )  # fmt: skip


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return html.table(list(rows[0]), [list(row.values()) for row in rows]) if rows else ""


def _pairs(values: dict[str, Any], without: str = "") -> list[tuple[str, Any]]:
    return [
        (name.replace("_", " "), ", ".join(map(str, one)) if isinstance(one, list) else one)
        for name, one in values.items()
        if name != without and one not in (None, "", [])
    ]


def _use(one: Described, config: ModelConfig, folder: Path, notes: list[str]) -> dict[str, Any]:
    recipe, _, digest = one.facts.recipe.partition(" sha256:")
    description = ""
    file = recipes.file_of(recipe, folder)
    if not file.is_file():
        notes.append(f"The recipe's file {file.name} is gone, and with it what it is for.")
    else:
        description = inspect.getdoc(recipes.load_function(recipe, folder)) or ""
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            notes.append(f"{file.name} has changed since; the description is that of now.")
    if not description:
        notes.append(f"What it is for: recipe {recipe} has no docstring.")
    if not config.licence:
        notes.append(f"Its licence: pipeline.models.{one.model}.licence is not set.")
    target = one.facts.target
    return {
        "description": description,
        "task": str(target.task),
        "label": target.label,
        "classes": [str(value) for value in target.classes],
        "service": "" if one.manifest is None else one.manifest.service,
        "recipe": recipe,
        "licence": config.licence,
    }


def _data(one: Described, notes: list[str]) -> dict[str, Any]:
    facts, manifest = one.facts, one.manifest
    found: dict[str, Any] = {
        "known_by": f"{facts.as_of:%Y-%m-%dT%H:%M:%SZ}",
        "fitted_on_rows_before": f"{facts.trained_before:%Y-%m-%dT%H:%M:%SZ}",
        "rows_fitted_on": facts.rows,
        "contract": facts.contract,
        "commit": facts.commit,
    }
    if manifest is None:
        notes.append("Its sources: the training set's manifest is gone.")
        return found
    return {
        **found,
        "training_set": manifest.id,
        "content_sha256": manifest.sha256,
        "sources": [f"{item['path']} (view {item['view']})" for item in manifest.sources],
        "personal_columns": [name for name, each in manifest.columns.items() if each.get("pii")],
    }


def _features(one: Described, store: Store, notes: list[str]) -> list[dict[str, Any]]:
    """Return the features that it reads, with the view that each is of and who owns it."""
    views: dict[str, str] = {}
    if one.manifest is not None:
        try:
            plan = store.bundle_of_then(one.manifest.service, one.manifest.contract).plan
            views = {output.name: output.view for output in plan.outputs}
        except (ContractMismatchError, NotFoundError):
            notes.append("Owners of features: the definitions of its contract are not kept.")
    owned = {view.name: view for view in store.feast.list_all_feature_views()}
    columns = {} if one.manifest is None else one.manifest.columns
    found = []
    for name in one.facts.features:
        view = owned.get(views.get(name, ""))
        fields = [] if view is None else [each for each in view.features if each.name == name]
        found.append(
            {
                "feature": name,
                "type": columns.get(name, {}).get("type"),
                "view": views.get(name, ""),
                "owner": "" if view is None else view.owner,
                "description": fields[0].description if fields else "",
            }
        )
    return found


def _metrics(
    one: Described, config: ModelConfig, folder: Path, notes: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield measures of the judged fit on the hold-out, as a whole and by slice."""
    target = one.facts.target
    try:
        training = TrainingSet.load(one.manifest_path)
    except (ManifestError, ErasedError):
        training = None
    if training is None or one.scored_path is None or not one.scored_path.is_file():
        notes.append("Intervals: the rows that it was judged on are gone.")
        for name, value in one.facts.metrics.items():
            yield {"measure": name, "slice": "", "rows": None, "value": value, "low": None,
                   "high": None}  # fmt: skip
        return
    parts = split(training.table, config, one.facts.as_of)
    scored = pq.read_table(one.scored_path)
    rows = parts.is_held_out & scored["held_out"].to_numpy(zero_copy_only=False)
    several = [f"prediction_{value}" for value in target.classes]
    names = several if set(several) <= set(scored.column_names) else ["prediction"]
    said = np.column_stack([scored[name].to_numpy() for name in names])[rows]
    table = training.table.filter(pa.array(rows))
    sample = target.sample(table, said if len(names) > 1 else said[:, 0])
    blocks = blocks_of(times_of(table))
    own = [judged_by(gate, folder).measure for gate in config.judged_by]
    measures = measures_of(target.task, *(each for each in own if each is not None))
    yield from _measured(measures, sample, blocks, "")
    by = [gate.by for gate in config.judged_by if gate.by]
    for column in dict.fromkeys((*by, *config.slices)):
        if column not in table.column_names or training.manifest.columns.get(column, {}).get("pii"):
            notes.append(f"Measures by {column}: it is not there, or is somebody's.")
            continue
        values = np.array([str(value) for value in table[column].to_pylist()], object)
        found, counts = np.unique(values, return_counts=True)
        for place in np.argsort(-counts, kind="stable")[:_MOST_VALUES]:
            if counts[place] >= config.min_rows:
                inside = values == found[place]
                what = f"{column}={found[place]}"
                yield from _measured(measures[:1], sample.take(inside), blocks[inside], what)


def _measured(
    measures: Sequence[Measure], sample: Sample, blocks: np.ndarray, what: str
) -> Iterator[dict[str, Any]]:
    for measure in measures:
        try:
            estimate = measured(measure, sample, [blocks])
        except (OneClassError, MeasureError):
            continue
        low, high = estimate.interval(CONFIDENCE)
        yield {
            "measure": measure.name,
            "slice": what,
            "rows": len(sample),
            "value": estimate.value,
            "low": low if np.isfinite(low) else None,
            "high": high if np.isfinite(high) else None,
        }


def _gate(gate: pb.Gate) -> dict[str, Any]:
    return {"gate": gate.name, "passed": gate.passed, "detail": gate.detail}


def _promotions(one: Described, queue: RunQueue) -> Iterator[dict[str, Any]]:
    promoted = [pb.RUN_STATE_PROMOTED]
    for run in queue.runs(one.model, promoted, limit=100_000):
        if run.model_version == one.version:
            yield {
                "at": f"{run.updated_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}",
                "by": run.asked_by,
                "cause": pb.CauseKind.Name(run.cause.kind).removeprefix("CAUSE_KIND_").lower(),
                "why": run.cause.summary,
            }
