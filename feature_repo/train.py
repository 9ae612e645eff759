"""The recipe: a training set in, a fitted estimator out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from steadfeast import Fitted, frame

if TYPE_CHECKING:
    from steadfeast import TrainingSet

CATEGORICAL = ("carrier", "origin")


def train(training: TrainingSet) -> Fitted:
    """Fit gradient boosting on every feature of the service, and on carrier and origin."""
    columns = (*training.features, *CATEGORICAL)
    categories = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    model = make_pipeline(
        ColumnTransformer(
            [("categories", categories, list(CATEGORICAL))],
            remainder="passthrough",
            verbose_feature_names_out=False,
        ),
        HistGradientBoostingClassifier(
            max_iter=150,
            learning_rate=0.06,
            min_samples_leaf=100,
            l2_regularization=1.0,
            random_state=0,
        ),
    )
    model.fit(frame(training.table, columns), training.table[training.label].to_numpy())
    return Fitted(model, columns, {"rows": training.table.num_rows})
