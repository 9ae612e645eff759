"""A small shop chain: a Feast repo, its data and a steadfeast.yaml, made in a folder.

Until day 50 a sale is likely when `x` is high, from then on when it is low: so a model of the
first days is wrong later, and a recipe that learns from the last 30 days is right again.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS, SHOPS, PER_DAY = 100, 40, 40
FLIP_DAY = 50
MODEL = "sale"

FEATURE_STORE = """\
project: shops
registry: data/registry.db
provider: local
offline_store:
  type: steadfeast.DuckDBOfflineStore
online_store:
  type: steadfeast.SQLiteOnlineStore
  path: data/online.db
entity_key_serialization_version: 3
"""

FEATURES = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
source = FileSource(name="sales", path="data/sales.parquet", timestamp_field="event_timestamp")
sales = FeatureView(
    name="sales",
    entities=[shop],
    ttl=timedelta(days=3),
    schema=[
        Field(name="x", dtype=Float64),
        Field(name="visits", dtype=Int64),
        Field(name="mood", dtype=String),
    ],
    source=source,
)
service = FeatureService(name="sale", features=[sales])
"""

TRAIN = '''\
import time
from pathlib import Path

import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from steadfeast import Fitted, frame

HOLD = Path(__file__).with_name("hold")


def _model():
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encode, ["mood"]), remainder="passthrough")
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=20, random_state=0))


def fit(training):
    model = _model()
    model.fit(frame(training.table, training.features), training.table["sold"].to_numpy())
    return Fitted(model, training.features, {"train_rows": training.table.num_rows})


def classes(training):
    """Any classifier of any label."""
    label = training.table[training.label].to_numpy(zero_copy_only=False)
    model = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    return Fitted(model.fit(frame(training.table, ("x", "visits")), label), ("x", "visits"))


def boosted(training):
    """XGBoost, which wants the classes as numbers."""
    from xgboost import XGBClassifier

    names = sorted(set(training.table["size"].to_pylist()))
    codes = [names.index(value) for value in training.table["size"].to_pylist()]
    model = XGBClassifier(n_estimators=10).fit(frame(training.table, ("x", "visits")), codes)
    return Fitted(model, ("x", "visits"), classes=names)


def numbers(training):
    from lightgbm import LGBMRegressor

    model = LGBMRegressor(n_estimators=30, verbose=-1)
    model.fit(frame(training.table, ("x", "visits")), training.table["amount"].to_numpy())
    return Fitted(model, ("x", "visits"))


def order(training):
    """Which shop sells most, day by day."""
    from xgboost import XGBRanker

    table = training.table.sort_by("shop")
    codes = np.unique(table["shop"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    model = XGBRanker(n_estimators=10)
    model.fit(frame(table, ("x",)), table["sold"].to_numpy(), qid=codes)
    return Fitted(model, ("x",))


def searched(training, settings=None):
    """Settings that are found the first time, and only then."""
    rate = settings["rate"] if settings else 0.125
    model = LogisticRegression(C=rate if settings else 1.0)
    model.fit(frame(training.table, ("x",)), training.table["sold"].to_numpy())
    return Fitted(model, ("x",), settings={"rate": rate})


def held(training):
    """Wait, in the middle of a run, for as long as the file `hold` is there."""
    HOLD.with_name("reached").touch()
    while HOLD.exists():
        time.sleep(0.02)
    return fit(training)


def coin(training):
    """A model that knows nothing."""
    model = LogisticRegression()
    rows = training.table.num_rows
    model.fit(np.random.default_rng(0).normal(size=(rows, 1)), np.arange(rows) % 2)
    return Fitted(model, ("x",))


def broken(training):
    raise ZeroDivisionError("no shop is open")


NOT_A_FUNCTION = 3
'''


def make(folder: Path) -> Path:
    """Write the world into `folder`; return the path of its steadfeast.yaml."""
    random = np.random.default_rng(7)
    (folder / "data").mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(FEATURE_STORE)
    (folder / "features.py").write_text(FEATURES)
    (folder / "train.py").write_text(TRAIN)

    day, shop = (grid.ravel() for grid in np.meshgrid(range(DAYS), range(SHOPS), indexing="ij"))
    x = random.normal(size=day.size)
    sales = pa.table(
        {
            "shop": [f"s{number}" for number in shop],
            "event_timestamp": times(day * 24.0),
            "x": x,
            "visits": random.poisson(20, day.size),
            "mood": random.choice(["good", "bad"], day.size),
        }
    )
    pq.write_table(sales, folder / "data/sales.parquet")

    day = np.repeat(np.arange(DAYS), PER_DAY)
    shop = random.integers(0, SHOPS, day.size)
    hour = day * 24 + random.uniform(1, 23, day.size)
    signal = x[day * SHOPS + shop] * np.where(day < FLIP_DAY, 2, -2)
    sold = random.uniform(size=day.size) < 1 / (1 + np.exp(-signal))
    examples = pa.table(
        {
            "shop": [f"s{number}" for number in shop],
            "event_timestamp": times(hour),
            "sold": sold.astype(int),
            "known_at": times(hour + 6),
        }
        | other_labels(sold, signal)
    )
    pq.write_table(examples, folder / "data/examples.parquet")
    return configure(folder)


def other_labels(sold: np.ndarray, signal: np.ndarray) -> dict[str, object]:
    """Labels of other types, for models of other tasks: they follow the same signal."""
    felt = signal + np.random.default_rng(8).normal(0, 0.7, signal.size)
    return {
        "answer": np.where(sold, "yes", "no"),
        "flag": sold.astype(bool),
        "size": np.array(["small", "medium", "large"])[np.digitize(felt, [-1, 1])],
        "amount": np.round(100 + 10 * felt, 2),
    }


def configure(folder: Path, name: str = "steadfeast.yaml", **changes: object) -> Path:
    """Write a steadfeast.yaml into `folder`; `changes` are fields of the model, or `grpc`."""
    grpc = changes.pop("grpc", "127.0.0.1:0")
    fields: dict[str, object] = {
        "service": "sale",
        "recipe": "train:fit",
        "entities": "data/examples.parquet",
        "label": "sold",
        "since": "30d",
        "holdout": "7d",
        "min_rows": 100,
    }
    fields |= changes
    lines = "".join(f"      {key}: {value}\n" for key, value in fields.items())
    (folder / name).write_text(
        "store:\n  repo: .\n  data: data\n"
        f"pipeline:\n  state: data/pipeline\n  grpc: {grpc}\n  models:\n    {MODEL}:\n{lines}"
    )
    return folder / name


def at(day: float) -> datetime:
    """Return the time `day` days after the start."""
    return START + timedelta(days=day)


def times(hours: np.ndarray) -> pa.Array:
    """Return hours since the start as UTC microseconds."""
    micros = np.round(hours * 3.6e9).astype("int64") + int(START.timestamp() * 1e6)
    return pa.array(micros, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def trigger(
    as_of: datetime, request_id: str | None = None, **fields: object
) -> pb.TriggerRetrainRequest:
    """A valid trigger, changed by `fields`."""
    request = pb.TriggerRetrainRequest(
        request_id=request_id or str(uuid.uuid4()),
        model=MODEL,
        cause=pb.Cause(kind=pb.CAUSE_KIND_DRIFT, policy="sale", summary="x drifted"),
    )
    request.as_of.FromDatetime(as_of)
    request.MergeFrom(pb.TriggerRetrainRequest(**fields))
    return request
