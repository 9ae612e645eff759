"""What people write who serve a scikit-learn model with Feast: FastAPI, the SDK, the estimator.

Started by `inference.py` with uvicorn; the repo and the pickled estimator come by environment.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import fastapi
import feast
import pandas as pd

store = feast.FeatureStore(os.environ["PEER_REPO"])
service = store.get_feature_service("late_arrival")
estimator, features = pickle.loads(Path(os.environ["PEER_MODEL"]).read_bytes())  # noqa: S301 - ours
app = fastapi.FastAPI()


@app.post("/predict")
def predict(body: dict[str, Any]) -> dict[str, Any]:
    """Read the features of the entities, and predict."""
    entities = body["entities"]
    given = [dict(zip(entities, row, strict=True)) for row in zip(*entities.values(), strict=True)]
    for row in given:
        row["scheduled_departure"] = pd.Timestamp(row["scheduled_departure"])
    read = store.get_online_features(features=service, entity_rows=given).to_df()
    # Feast does not give back what the request brought.
    rows = pd.DataFrame({name: read[name] if name in read else entities[name] for name in features})
    for name in features:
        if name not in {"carrier", "origin"}:
            rows[name] = rows[name].astype("float64")
    return {"predictions": estimator.predict_proba(rows)[:, 1].tolist()}
