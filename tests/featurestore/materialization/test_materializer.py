"""What comes online step by step is what the source said, whatever views and keys are called."""

import pyarrow as pa
import pytest

from steadfeast import Store
from support.small_repo import MICROS, SmallRepo, hour, rows, served, trained

BIG = 10**18

MAPPED = """
e = Entity(name="e", join_keys=["uid"], value_type=ValueType.{kind})
view = FeatureView(
    name="view", entities=[e], ttl=timedelta(0),
    schema=[Field(name="uid", dtype={dtype}), Field(name="v", dtype=Int64)],
    source=FileSource(
        name="s", path="data/s.parquet", timestamp_field="at", field_mapping={{"id": "uid"}}
    ),
)
svc = FeatureService(name="svc", features=[view])
"""


@pytest.mark.parametrize(
    ("kind", "dtype", "keys"),
    [
        ("INT64", "Int64", pa.array([BIG + i for i in range(8)])),
        ("STRING", "String", pa.array([f"user {i}" for i in range(8)])),
        ("UNIX_TIMESTAMP", "UnixTimestamp", pa.array([hour(9 - i) for i in range(8)], MICROS)),
    ],
)
def test_a_mapped_join_key_is_never_taken_for_a_time(tmp_path, kind, dtype, keys):
    repo = SmallRepo(tmp_path / "repo", MAPPED.format(kind=kind, dtype=dtype))
    times = pa.array([*map(hour, range(7)), None], MICROS)  # a row without a time is never known
    repo.write(pa.table({"id": keys, "at": times, "v": range(8)}))
    with Store.open(repo.config) as store:
        store.apply()
        assert [store.materialize(hour(i))["view"] for i in range(9)] == [1] * 7 + [0] * 2
        asked = pa.table({"uid": keys})
        got = store.online_features("svc", asked, request_time=hour(9)).table["v"].to_pylist()
    assert got == [*range(7), None]


STREAMS = """
from feast import BatchFeatureView, KafkaSource, PushSource, StreamFeatureView
from feast.data_format import JsonFormat

def source(name):
    return FileSource(
        name=name, path="data/s.parquet", timestamp_field="at", created_timestamp_column="made"
    )

def fields(name):
    return dict(
        entities=[e], ttl=timedelta(days=30), online=True,
        schema=[Field(name="k", dtype=Int64), Field(name=name, dtype=Int64)],
    )

topic = KafkaSource(
    name="topic", kafka_bootstrap_servers="none", topic="none", timestamp_field="at",
    batch_source=source("topic_rows"), message_format=JsonFormat(schema_json="k long"),
    watermark_delay_threshold=timedelta(minutes=5),
)
pushed = PushSource(name="pushed", batch_source=source("pushed_rows"))
by_topic = StreamFeatureView(name="by_topic", source=topic, timestamp_field="at", **fields("v"))
by_push = StreamFeatureView(name="by_push", source=pushed, timestamp_field="at", **fields("v"))
batch = BatchFeatureView(name="batch", mode="python", source=source("rows"), **fields("w"))
svc = FeatureService(name="svc", features=[by_topic, by_push, batch])
"""


@pytest.mark.filterwarnings("ignore:(Stream|Batch) feature views are exp:RuntimeWarning")
def test_stream_and_batch_views_are_materialized_served_and_audited(tmp_path):
    repo = SmallRepo(tmp_path / "repo", STREAMS)
    table = rows((1, hour(1), 11), (2, hour(2), 22), (1, hour(3), 12))
    repo.write(table.append_column("made", table["at"]))
    with Store.open(repo.config) as store:
        store.apply()
        assert store.materialize(hour(2)) == {"batch": 2, "by_push": 2, "by_topic": 2}
        assert store.materialize(hour(5)) == {"batch": 1, "by_push": 1, "by_topic": 1}
        right = {"by_topic__v": [12, 22], "by_push__v": [12, 22], "batch__w": [120, 220]}
        assert served(store, hour(5)) == trained(store, hour(5)) == right
        checks = store.audit("svc").checks
    compared = {
        check.subject: (check.cells > 0, check.ok) for check in checks if check.invariant == "I1"
    }
    assert compared == dict.fromkeys(("batch", "by_push", "by_topic"), (True, True))
