"""Feast repos of real data with time in them, for the benchmark of retraining.

Each set is a folder as a user would have it: sources, definitions, a recipe, `steadfeast.yaml`.
Nothing leaks: a row of a source is known at its own `event_timestamp`, a request asks at that
moment, and a label becomes known when what it is of has happened.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"
FLIGHTS = Path(__file__).parent.parent / "feature_repo"
HOUR, DAY = pd.Timedelta(hours=1), pd.Timedelta(days=1)
_NEXT_HOURS = 6
_CLEAN, _BAD = 35, 115
"""PM2.5 in ug/m3: below the first the air is good or moderate, from the second on it is bad."""

_FEATURES = """from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

site = Entity(name="site", value_type=ValueType.STRING)
readings = FeatureView(
    name="readings", entities=[site], ttl=timedelta(hours=1),
    schema=[Field(name=name, dtype=Float64) for name in {names}],
    source=FileSource(name="readings_source", path="data/readings.parquet",
                      timestamp_field="event_timestamp"),
)
model = FeatureService(name="model", features=[readings])
"""
_TRAIN = """from sklearn.ensemble import {estimator}
from steadfeast import Fitted, frame

def train(training):
    model = {estimator}(max_iter=80, learning_rate=0.1, min_samples_leaf=40, l2_regularization=1.0,
                        early_stopping=False, random_state={seed})
    model.fit(frame(training.table, training.features), training.table["label"].to_numpy())
    return Fitted(model, training.features)
"""
_STORE = """project: {name}
provider: local
registry: data/registry.db
offline_store: {{type: steadfeast.DuckDBOfflineStore}}
online_store: {{type: steadfeast.SQLiteOnlineStore, path: data/online.db}}
entity_key_serialization_version: 3
"""
_CONFIG = """store: {{repo: ., data: data}}
monitor:
  state: data/monitor
  pipelines: {{training: 127.0.0.1:9466}}
  monitors:
    model: {{service: model, model: model, pipeline: training, performance: {{metric: {metric}}}}}
pipeline:
  state: data/pipeline
  models:
    model:
      service: model
      recipe: train:train
      entities: data/examples.parquet
      label: label
      task: {task}
      min_rows: 100
      holdout: {holdout}
"""


@dataclass(frozen=True, slots=True)
class World:
    """One set.

    Attributes:
        name: Of the set.
        task: Of the model.
        metric: That decides.
        first_days: Days of examples before the first model is trained.
        holdout: Stretch that models are judged on: two weeks, or as long as 120 rows take.
        quick_days: Days that `--quick` looks at.
        read: Returns features by time, and label and moment at which it is known, row by row.
    """

    name: str
    task: str
    metric: str
    first_days: int
    holdout: str
    quick_days: int
    read: Callable[[], tuple[pd.DataFrame, pd.Series, pd.Series]]

    def write(self, folder: Path, *, seed: int, days: int | None) -> Path:
        """Write the repo to `folder`; return its configuration file."""
        (folder / "data").mkdir(parents=True)
        features, label, known_at = self.read()
        if days is not None:
            kept = features.index < features.index[0] + days * DAY
            features, label, known_at = features[kept], label[kept], known_at[kept]
        stamps = features.index.tz_localize("UTC").rename("event_timestamp")
        rows = features.astype("float64").set_axis(stamps).reset_index()
        rows.insert(0, "site", "here")
        rows.to_parquet(folder / "data" / "readings.parquet")
        examples = pd.DataFrame(
            {
                "site": "here",
                "event_timestamp": stamps,
                "label": label.to_numpy(),
                "known_at": pd.DatetimeIndex(known_at).tz_localize("UTC"),
            }
        )
        examples[label.notna().to_numpy()].to_parquet(folder / "data" / "examples.parquet")
        kind = "Regressor" if self.task == "regression" else "Classifier"
        (folder / "features.py").write_text(_FEATURES.format(names=list(features.columns)))
        (folder / "train.py").write_text(
            _TRAIN.format(estimator=f"HistGradientBoosting{kind}", seed=seed)
        )
        (folder / "feature_store.yaml").write_text(_STORE.format(name=self.name))
        path = folder / "steadfeast.yaml"
        path.write_text(_CONFIG.format(task=self.task, metric=self.metric, holdout=self.holdout))
        return path


def weather() -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Will it rain tomorrow? Asked at the end of each day."""
    given = pd.read_parquet(DATA / "weather.parquet").sort_values("day_number")
    midnight = pd.Timestamp("1949-01-01") + pd.to_timedelta(given["day_number"] + 1, unit="D")
    given = given.set_axis(pd.DatetimeIndex(midnight))
    features = given.filter(like="feat_").copy()
    for number in (1, 2, 3, 4):
        features[f"change_{number}"] = given[f"feat_{number}"].diff()
    features["rain"] = given["target"]
    features["rain_7d"] = given["target"].rolling(7, min_periods=1).mean()
    angle = 2 * np.pi * features.index.dayofyear / 365.25
    features["season_sin"], features["season_cos"] = np.sin(angle), np.cos(angle)
    label = given["target"].shift(-1).astype("Int64")
    return features, label, features.index.to_series() + DAY


def pm25() -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """What will the mean PM2.5 of the next hours be? Asked at every hour that was measured."""
    given = pd.read_parquet(DATA / "beijing_pm25.parquet").set_index("time").sort_index()
    now = given["pm25"]
    features = pd.DataFrame({"pm25": now})
    for hours in (1, 2, 3, 6, 12, 24):
        features[f"pm25_{hours}h_ago"] = now.shift(hours)
    for hours in (24, 168):
        features[f"pm25_mean_{hours}h"] = now.rolling(hours, min_periods=1).mean()
    numbers = ["dew_point_celsius", "temperature_celsius", "pressure_hpa", "cumulated_wind_speed",
               "snow_hours", "rain_hours"]  # fmt: skip
    features[numbers] = given[numbers]
    features["pressure_change_24h"] = given["pressure_hpa"].diff(24)
    features["wind"] = given["wind_direction"].astype("category").cat.codes
    features["hour"] = given.index.hour
    later = pd.concat([now.shift(-hours) for hours in range(1, _NEXT_HOURS + 1)], axis=1)
    label = later.mean(axis=1).where(later.notna().sum(axis=1) >= _NEXT_HOURS // 2)
    measured = now.notna()
    features.index = features.index + HOUR  # an hour's reading is known at its end
    known_at = features.index.to_series() + _NEXT_HOURS * HOUR
    kept = measured.to_numpy()
    return features[kept], label[kept], known_at[kept]


def pm25_class() -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Will the air of the next hours be good, poor or bad?"""
    features, value, known_at = pm25()
    names = np.array(["good", "poor", "bad"])[np.digitize(value, [_CLEAN, _BAD])]
    return features, pd.Series(names, value.index).where(value.notna()), known_at


def bikes() -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """How many rides will start in the same hour of the next day?"""
    given = pd.read_parquet(DATA / "bikes.parquet").drop_duplicates("time").set_index("time")
    given = given.sort_index().asfreq("h")
    rides = given["rides"]
    features = pd.DataFrame(
        {f"rides_{hours}h_ago": rides.shift(hours) for hours in (0, 1, 24, 144)}
    )
    for hours in (24, 168):
        features[f"rides_mean_{hours}h"] = rides.rolling(hours, min_periods=1).mean()
    target = given.index + DAY
    features["hour"], features["weekday"] = target.hour, target.dayofweek
    for name in ("temperature_min_celsius", "temperature_max_celsius", "precipitation"):
        features[name] = given[name].shift(24)  # a day's weather is known when the day is over
    label = rides.shift(-24)
    features.index = features.index + HOUR
    kept = rides.notna().to_numpy()
    return features[kept], label[kept], (features.index.to_series() + DAY)[kept]


SETS = (
    World("weather", "binary", "roc_auc", 730, "120d", 3650, weather),
    World("pm25", "regression", "root_mean_squared_error", 90, "14d", 730, pm25),
    World("pm25_class", "multiclass", "log_loss", 90, "14d", 730, pm25_class),
    World("bikes", "regression", "root_mean_squared_error", 90, "14d", 1095, bikes),
)


def flights(folder: Path, seed: int) -> Path:
    """Copy the flights' repo and build its sources; return its configuration file."""
    shutil.copytree(FLIGHTS, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    recipe = folder / "train.py"
    recipe.write_text(recipe.read_text().replace("random_state=0", f"random_state={seed}"))
    command = [sys.executable, str(folder / "sources.py"), "--out", str(folder / "data/sources")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "steadfeast.yaml"
