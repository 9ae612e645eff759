"""One version of a model: what is known of it, and the model itself, loaded.

Below `registry`. What is known is kept as the version's tags in MLflow.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from steadfeast.measures import Task
from steadfeast.pipeline.recipes import Target, scores

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pyarrow as pa

    from steadfeast.pipeline.registry.onnx_export import OnnxServing

PREFIX = "steadfeast."
"""Of every tag of ours in MLflow."""
FEATURES = f"{PREFIX}features"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a version beside its estimator; kept as the version's tags.

    Attributes:
        run_id: The pipeline's run that made it.
        features: The columns that it reads, in order.
        contract: Contract (64 hexadecimal digits) of the training set.
        manifest_uri: Path of the training set's manifest.
        as_of: Knowledge time of the training set.
        trained_before: It was fitted on the manifest's rows before this event time.
        rows: How many those were.
        commit: Git commit of the definitions, empty if unknown.
        recipe: `module:function`, and the SHA-256 of its file.
        metrics: By name, on the held-out rows, of the fit that was judged there.
        target: What it predicts.
        classes: What the columns of its probabilities mean; None means its own `classes_`.
        refit: What serves: `all` was fitted on the held-out rows too, `none` is the judged fit.
        scored_uri: Path of the training set's rows with the predictions of the judged fit; empty
            if none are kept.
    """

    run_id: str
    features: tuple[str, ...]
    contract: str
    manifest_uri: str
    as_of: datetime
    trained_before: datetime
    rows: int
    commit: str
    recipe: str
    metrics: Mapping[str, float]
    target: Target
    classes: tuple[Any, ...] | None = None
    refit: Literal["all", "none"] = "none"
    scored_uri: str = ""

    def tags(self) -> dict[str, str]:
        """Return the tags that `from_tags` reads."""
        return {
            f"{PREFIX}run_id": self.run_id,
            FEATURES: json.dumps(self.features),
            f"{PREFIX}contract": self.contract,
            f"{PREFIX}manifest_uri": self.manifest_uri,
            f"{PREFIX}as_of": self.as_of.astimezone(UTC).isoformat(),
            f"{PREFIX}trained_before": self.trained_before.astimezone(UTC).isoformat(),
            f"{PREFIX}rows": str(self.rows),
            f"{PREFIX}commit": self.commit,
            f"{PREFIX}recipe": self.recipe,
            f"{PREFIX}metrics": json.dumps(dict(self.metrics)),
            f"{PREFIX}metrics_of": "the judged fit, on the held-out rows",
            f"{PREFIX}target": json.dumps(asdict(self.target)),
            f"{PREFIX}classes": json.dumps(self.classes),
            f"{PREFIX}refit": self.refit,
            f"{PREFIX}scored_uri": self.scored_uri,
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Facts:
        """Read what `tags` wrote."""
        target = json.loads(tags[f"{PREFIX}target"])
        classes = json.loads(tags[f"{PREFIX}classes"])
        return cls(
            run_id=tags[f"{PREFIX}run_id"],
            features=tuple(json.loads(tags[FEATURES])),
            contract=tags[f"{PREFIX}contract"],
            manifest_uri=tags[f"{PREFIX}manifest_uri"],
            as_of=datetime.fromisoformat(tags[f"{PREFIX}as_of"]),
            trained_before=datetime.fromisoformat(tags[f"{PREFIX}trained_before"]),
            rows=int(tags[f"{PREFIX}rows"]),
            commit=tags[f"{PREFIX}commit"],
            recipe=tags[f"{PREFIX}recipe"],
            metrics=json.loads(tags[f"{PREFIX}metrics"]),
            target=Target(
                Task(target["task"]), target["label"], tuple(target["classes"]), target["group"]
            ),
            classes=None if classes is None else tuple(classes),
            refit="all" if tags[f"{PREFIX}refit"] == "all" else "none",
            scored_uri=tags[f"{PREFIX}scored_uri"],
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One version, ready to predict."""

    model: str
    version: str
    estimator: Any
    facts: Facts
    serving: OnnxServing | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The columns that it reads, in order."""
        return self.facts.features

    @property
    def contract(self) -> str:
        """The contract that it was trained under, and may be served under."""
        return self.facts.contract

    @property
    def manifest_uri(self) -> str:
        """Path of its training set's manifest."""
        return self.facts.manifest_uri

    def predict(self, table: pa.Table) -> np.ndarray:
        """Return its predictions for each row of `table`, as `steadfeast.measures` reads them.

        Of a binary model the probability of the positive class, shape (rows,); of several
        classes one per class, in the order of `facts.target.classes`; else a value.
        """
        facts = self.facts
        said = None if self.serving is None else self.serving.predict(table)
        if said is not None:
            return said
        return scores(self.estimator, table, self.features, facts.target, facts.classes)
