"""Fill Feast's own stores with the newest values of the flights' sources, for `inference.py`.

Run in the repo's folder; its argument is the time until which sources are read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import feast
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total

here = Path()
apply_total(load_repo_config(here, here / "feature_store.yaml"), here, skip_source_validation=True)
store = feast.FeatureStore(str(here))
duckdb.sql("SET TimeZone = 'UTC'")
for view in store.list_feature_views():
    (key,) = view.join_keys
    newest = duckdb.sql(
        f"FROM read_parquet('{view.batch_source.path}') "
        f"WHERE event_timestamp <= '{sys.argv[1]}' AND {key} IS NOT NULL "
        f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY event_timestamp DESC) = 1"
    )
    store.write_to_online_store(view.name, newest.df())
