"""One run as experiment trackers are told it. Bottom of `tracking`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa

    from steadfeast.featurestore.training import Manifest
    from steadfeast.pipeline.gates import Gate
    from steadfeast.pipeline.recipes import Target


@dataclass(frozen=True, slots=True)
class Record:
    """What a tracker is given, once the challenger is judged and before it is registered.

    Where the examples were refused there is no model: figures and importance are empty, and
    `example` is None.

    Attributes:
        run_id: The pipeline's run.
        model: Name of the model.
        asked_by: Who asked for the run; may be empty.
        cause: Why: `kind` (drift, performance, schedule, manual or alert), `policy`, `summary` and
            `episodes`, as far as they are known.
        as_of: Knowledge time of the training set.
        params: Parameters of the estimator, the recipe and the configuration, by name.
        metrics: Figures of the judged fit on the held-out rows, by name.
        slices: Column -> value -> measure -> figure on the held-out rows with that value.
        over_time: Parts of the hold-out: the end of each, and its figures.
        importance: How much worse the first gate's measure gets without a feature, per feature.
        gates: As they were judged.
        manifest: Of the training set.
        manifest_uri: Where that is, as runs name it: seen from the store's folder.
        schema: Columns of the training set.
        features: The columns that the model reads.
        target: What it predicts.
        example: One row of typical values of the features, which is nobody's.
        libraries: Version of each distribution that the recipe's process has loaded, by name.
        platform: Python and machine, by name.
        commit: Git commit of the recipe's folder; empty without Git.
        tree_is_clean: Whether that folder is as it was committed; False without Git.
        recipe: `module:function`.
    """

    run_id: str
    model: str
    asked_by: str
    cause: Mapping[str, str]
    as_of: datetime
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    slices: Mapping[str, Mapping[str, Mapping[str, float]]]
    over_time: Sequence[tuple[datetime, Mapping[str, float]]]
    importance: Mapping[str, float]
    gates: Sequence[Gate]
    manifest: Manifest
    manifest_uri: str
    schema: pa.Schema
    features: tuple[str, ...]
    target: Target
    example: pa.Table | None
    libraries: Mapping[str, str]
    platform: Mapping[str, str]
    commit: str
    tree_is_clean: bool
    recipe: str

    @property
    def refused_by(self) -> tuple[str, ...]:
        """Names of the gates that refused the challenger."""
        return tuple(gate.name for gate in self.gates if not gate.passed)
