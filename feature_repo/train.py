"""The recipe: a training set in, a fitted estimator and its metrics out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

if TYPE_CHECKING:
    from featurestore import TrainingSet

CATEGORICAL = ["carrier", "origin"]


def train(training: TrainingSet) -> tuple[Pipeline, dict[str, float]]:
    """Fit gradient boosting on every feature of the service, and on carrier and origin."""
    columns = [*training.features, *CATEGORICAL]
    examples = training.table.select([*columns, training.label]).to_pandas()
    categories = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    model = Pipeline(
        [
            (
                "encode",
                ColumnTransformer(
                    [("categories", categories, CATEGORICAL)], remainder="passthrough"
                ),
            ),
            (
                "boost",
                HistGradientBoostingClassifier(
                    max_iter=150,
                    learning_rate=0.06,
                    min_samples_leaf=100,
                    l2_regularization=1.0,
                    random_state=0,
                ),
            ),
        ]
    )
    model.fit(examples[columns], examples[training.label])
    return model, {"late_share": float(examples[training.label].mean())}
