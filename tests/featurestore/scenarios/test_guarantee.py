"""The invariants as laws over random histories, and planted bugs that something must catch.

The oracle is a loop over rows in plain Python. `docs/guarantee.md` lists both; tests here hold
the page to what there is.
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
import shutil
import zipfile
from collections.abc import Callable  # noqa: TC003 - a dataclass
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from steadfeast import OnlineFeatures, Store
from steadfeast.featurestore.audit import report
from steadfeast.featurestore.definitions import archive, contract
from steadfeast.featurestore.definitions import code as code_module
from steadfeast.featurestore.errors import ContractMismatchError, LostRowsError, ReplayError
from steadfeast.featurestore.materialization import materializer, source_rows
from steadfeast.featurestore.offline import binding
from steadfeast.featurestore.offline import pins as offline_pins
from steadfeast.featurestore.offline.store import DuckDBOfflineStore
from steadfeast.featurestore.online import SQLiteOnlineStore, packing, waiting
from steadfeast.featurestore.rows.layout import order_of
from steadfeast.featurestore.served_log import files
from steadfeast.featurestore.served_log.log import ServedLog
from steadfeast.featurestore.serving import assembly, decoder
from steadfeast.featurestore.tables import whole_files
from steadfeast.featurestore.tables.hashing import content_sha256
from steadfeast.featurestore.tables.whole_files import write_whole
from steadfeast.monitor.exporter.metrics import AUDIT_KINDS

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "guarantee.md"
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR, DAY, TICK = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
ODD = 2**53 + 1
NUMBERS = [None, 0.0, -0.0, math.nan, math.inf, 0.1, 2.5]


def user(number, at, written=None, **values):
    return {"user_id": number, "at": at, "written": written or at, **values}


def asked(users, time=None):
    rows = pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "item_id": pa.array(["ab"[n % 2] for n in users], pa.string()),
            "amount": pa.array([10.0] * len(users), pa.float64()),
        }
    )
    return (
        rows
        if time is None
        else rows.append_column("event_timestamp", pa.array([time] * len(users)))
    )


def naive(rows, number, time):
    """What may be used of one user at `time`: the loop that everything else must agree with."""
    usable = [
        row
        for row in rows
        if row["user_id"] == number
        and row["at"] <= time
        and row["written"] <= time
        and time - row["at"] <= DAY
    ]
    return max(usable, key=lambda row: (row["at"], row["written"]), default=None)


def bits(value):
    """Text that tells null, NaN, -0.0 and types apart."""
    return repr(value)


def expected(rows, users, time, feature):
    found = [naive(rows, number, time) for number in users]
    return [bits(None if row is None else row.get(feature)) for row in found]


def as_bits(table, feature):
    return [bits(value) for value in table[feature].to_pylist()]


moments = st.integers(0, 60).map(lambda hours: NOON + hours * HOUR)
lags = st.sampled_from([timedelta(0), timedelta(0), TICK, HOUR, 30 * HOUR])
USERS = [1, 2, 3]


@st.composite
def histories(draw, least=0, after=None):
    """Rows of three users; no two of one user with the same pair of times."""
    rows = {}
    for _ in range(draw(st.integers(least, 14))):
        at = draw(moments)
        written = at + draw(lags) if after is None else max(after, at) + TICK + draw(lags)
        row = user(
            draw(st.sampled_from(USERS)),
            at,
            written,
            spend=draw(st.sampled_from(NUMBERS)),
            visits=draw(st.sampled_from([None, 1, ODD, -(2**63)])),
            city=draw(st.sampled_from([None, "", "Bern", "Zürich"])),
        )
        rows[row["user_id"], at, written] = row
    return list(rows.values())


GOODS = [{"item_id": name, "price": 0.5, "at": NOON - DAY} for name in "ab"]
few = settings(
    max_examples=8,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def emptied(store, shop, rows):
    """Start a store anew with these sources."""
    shop.write(rows, GOODS)
    store.served.flush()
    for path in (shop.data / "served").rglob("*.parquet"):
        path.unlink()
    views = store.feast.list_feature_views()
    store.online.teardown(store.feast.config, views, [])
    store.online.update(store.feast.config, [], views, [], [], False)
    store.served = ServedLog(shop.data)


@few
@given(rows=histories(), steps=st.lists(moments, min_size=1, max_size=4), older=moments)
def test_i1_and_i2_hold_over_random_histories_and_steps(shop, rows, steps, older):
    """Whatever the history and the steps, online is offline is the naive loop."""
    with Store.open(shop.config) as store:
        emptied(store, shop, rows)
        for step, until in enumerate(sorted(steps)):
            store.materialize(until)
            got = store.online_features("purchase", asked(USERS), request_time=until)
            for feature in ("spend", "visits", "city"):
                assert as_bits(got.table, feature) == expected(rows, USERS, until, feature)
            ids = [f"{step}-{number}" for number in USERS]
            store.served.append("purchase", got, request_ids=ids, request_time=until)
        store.materialize(older, since=NOON)  # an older window again: I9
        found = store.audit("purchase")
        assert not any(check.mismatches for check in found.checks), found.to_text()


@few
@given(
    rows=histories(least=1),
    late=histories(after=NOON + 90 * HOUR),
    times=st.lists(moments, min_size=1, max_size=5),
    data=st.data(),
)
def test_i5_and_i8_hold_over_random_histories(shop, rows, late, times, data):
    """A training set sees what the naive loop sees; whatever is known later changes no byte."""
    entities = pa.concat_tables([asked(USERS, time) for time in times])
    shop.write(rows, GOODS)
    with Store.open(shop.config) as store:
        built = store.training_set(entities, "purchase")
        for feature in ("spend", "visits", "city"):
            naive_values = [v for time in times for v in expected(rows, USERS, time, feature)]
            assert as_bits(built.table, feature) == naive_values
        shop.write(data.draw(st.permutations(rows + late)), GOODS)
        if data.draw(st.booleans()):
            shutil.rmtree(shop.data / "pins")
        assert content_sha256(store.replay(built.path / "manifest.json")) == built.manifest.sha256


@few
@given(rows=histories(least=2), data=st.data())
def test_i10_order_threads_and_time_zone_are_irrelevant(shop, rows, data):
    """The same bytes, whatever order rows and entities come in, and on one thread elsewhere."""
    entities = asked(USERS * 2, NOON + 30 * HOUR)
    order = data.draw(st.permutations(range(6)))
    shop.write(rows, GOODS)
    with Store.open(shop.config) as store:
        before = store.point_in_time("purchase", entities)
        options = store.feast.config.offline_store
        options.threads, options.settings = 1, {"TimeZone": "Asia/Kathmandu"}
        shop.write(data.draw(st.permutations(rows)), GOODS[::-1])
        after = store.point_in_time("purchase", entities.take(pa.array(order)))
    assert content_sha256(after) == content_sha256(before.take(pa.array(order)))


# Planted bugs ---------------------------------------------------------------------------------

SOURCE = [
    user(1, NOON - 3 * HOUR, spend=0.1, visits=1, city="Bern"),
    user(1, NOON - HOUR, spend=0.2, visits=2, city="Zollikofen"),
    user(2, NOON - HOUR, spend=-0.0, visits=ODD, city=None),
    user(3, NOON - DAY - TICK, spend=3.0, visits=3, city="Bern"),
    user(4, NOON - DAY, spend=None, visits=None, city="Bern"),
    user(5, NOON - HOUR, spend=math.nan, visits=5, city="Chur"),
    user(5, NOON - TICK, NOON + HOUR, spend=9.0, visits=9, city="later"),
    user(6, NOON - HOUR, spend=1.0, visits=1, city="x"),
    user(6, NOON - HOUR, spend=2.0, visits=2, city="y"),
    user(6, NOON - HOUR, spend=1.5, visits=3, city="z"),
]
EVERYBODY = [1, 2, 3, 4, 5, 6]


def audited(store, shop):
    """What the audits say of three requests at noon and just after."""
    found = set()
    for row in SOURCE[-3:]:  # rows that tie in both times, one by one, as a stream brings them
        store.write_online("users", pa.Table.from_pylist([row], shop.USERS))
    store.materialize(NOON - 2 * HOUR)
    store.materialize(NOON)
    store.materialize(NOON - 2 * HOUR, since=NOON - 2 * DAY)
    for step in range(3):
        time = NOON + step * TICK
        got = store.online_features("purchase", asked(EVERYBODY), request_time=time)
        ids = [f"{step}-{number}" for number in EVERYBODY]
        store.served.append("purchase", got, request_ids=ids, request_time=time, model="m")
        store.served.flush()
    said = store.audit("purchase")
    for check in said.checks:
        found |= {f"audit {check.invariant}: {kind}" for kind in check.mismatches}
        if not check.ok and not check.mismatches:
            found.add(f"audit {check.invariant}: void")
    half = shop.data / "pins" / ".users.0.half"
    write_whole(half.with_name("left"), b"Zollikofen")
    half.with_name("left").rename(half)
    store.erase([{"user_id": 1}], apply=True)
    if half.exists():
        found.add("law pii: a half file is left")
    if any(city in said.to_json() for city in ("Zollikofen", "Bern")):
        found.add("law pii: shown in clear")
    return found


def trained(store, shop):
    """What the naive loop and a replay after a backfill say of a training set."""
    found = set()
    times = [NOON, NOON + DAY - HOUR]
    entities = pa.concat_tables([asked(EVERYBODY[:5], time) for time in times])
    built = store.training_set(entities, "purchase")
    for feature in ("spend", "visits", "city"):
        right = [v for time in times for v in expected(SOURCE, EVERYBODY[:5], time, feature)]
        if as_bits(built.table, feature) != right:
            found.add("law I8: training is not the naive loop")
    backfill = [user(1, NOON - 2 * TICK, NOON + 99 * DAY, spend=8.0)]
    shop.write([*SOURCE[::-1], *backfill], GOODS)
    shutil.rmtree(shop.data / "pins")  # so that the source itself has to have kept its past
    try:
        store.replay(built.path / "manifest.json")
    except ReplayError:
        found.add("law I5: does not replay")
    return found


def contracted(store, shop):
    """What happens to a contract when values change, and to a request for another."""
    found = set()
    store.apply()  # keeps the definitions under the contract that is worked out here
    before = first = store.contract("purchase").sha256
    try:
        store.online_features("purchase", asked([1]), contract="0" * 64)
        found.add("law I4: another contract was served")
    except ContractMismatchError:
        pass
    for file, old, new in (
        ("features.py", "timedelta(days=1)", "timedelta(days=1, hours=1)"),
        ("helpers.py", "FLOOR = 1.0", "FLOOR = 1.25"),
    ):
        shop.edit(file, old, new)
        store.apply()
        after = store.contract("purchase").sha256
        if after == before:
            found.add("law I3: values changed, the contract did not")
        first, before = before if file == "features.py" else first, after
    return found | altered(store, shop, first)


def altered(store, shop, contract):
    """What happens when somebody adds a line to the definitions kept with a contract."""
    marker = shop.folder / "ran"
    path = shop.data / "contracts" / f"{contract}.zip"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["code/features.py"] += f"\nopen({str(marker)!r}, 'w').close()\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with contextlib.suppress(ContractMismatchError):
        store.online_features("purchase", asked([1]), contract=contract)
    return {"law I4: altered definitions ran"} if marker.exists() else set()


def kept_up(store, shop):
    """What is online after a row ahead, a correction, a loss and other definitions."""
    found, rows = set(), SOURCE

    def serve(what):
        users = EVERYBODY[:5]  # the loop knows no ties
        got = store.online_features("purchase", asked(users), request_time=NOON)
        if as_bits(got.table, "spend") != expected(rows, users, NOON, "spend"):
            found.add(f"law I1: {what}")

    store.materialize(NOON)
    ahead = user(1, NOON + HOUR, spend=8.0)
    store.write_online("users", pa.Table.from_pylist([ahead], shop.USERS))
    serve("a row ahead hides another")
    # One row is corrected in place to a smaller value, one is deleted.
    rows = [{**SOURCE[1], "spend": 0.1}, *SOURCE[3:]]
    shop.write(rows, GOODS)
    store.materialize(NOON, rebuild=True)
    serve("a correction is not online")
    views = store.feast.list_feature_views()
    store.online.teardown(store.feast.config, views, [])
    store.online.update(store.feast.config, [], views, [], [], False)
    store.materialize(NOON)
    serve("lost rows stay lost")
    rows = [{**row, "spend": 7.0} for row in rows]
    sources = shop.data / "sources"
    shop.write(rows, GOODS)
    (sources / "users.parquet").rename(sources / "others.parquet")
    shop.write(SOURCE, GOODS)
    shop.edit("features.py", "sources/users.parquet", "sources/others.parquet")
    store.apply()
    store.materialize(NOON)
    serve("rows of other definitions are served")
    for path in shop.data.glob("online.db*"):
        path.unlink()
    store.online.release()
    try:
        store.online_features("purchase", asked([1]), request_time=NOON).table  # noqa: B018
        found.add("law I1: lost rows are served as nulls")
    except LostRowsError:
        pass
    return found


def findings(shop, caught="audit law I3 I4 I5 I8"):
    """Live under whatever bug is planted; return what audits and laws say of it."""
    shop.write(SOURCE, GOODS)
    found = set()
    with Store.open(shop.config) as store:
        if "audit" in caught or "pii" in caught:
            found |= audited(store, shop)
        if "I5" in caught or "I8" in caught:
            found |= trained(store, shop)
        if "I3" in caught or "I4" in caught:
            found |= contracted(store, shop)
    if "law" in caught and re.search(r"I1\b", caught):
        with Store.open(shop.config) as store:
            store.apply()
            found |= kept_up(store, shop)
    return found


@dataclass(frozen=True)
class Mutant:
    """A bug, how it is planted, and what must catch it."""

    bug: str
    caught: str
    plant: Callable


def writes(change):
    """A mutant of what is written online: `change` gets the table of one batch."""

    def plant(patch):
        right = SQLiteOnlineStore.write_batch

        def write(self, config, view, batch, **options):
            if view.name == "users":
                batch = change(batch if isinstance(batch, pa.Table) else pa.table(batch))
            return right(self, config, view, batch, **options)

        patch.setattr(SQLiteOnlineStore, "write_batch", write)

    return plant


def column(name, change):
    def replaced(table):
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, change(table.column(index).combine_chunks()))

    return writes(replaced)


def ttl_longer_online(patch):
    for module in (assembly, decoder):
        right = module.usable
        patch.setattr(
            module, "usable", lambda e, ttl, at, right=right: right(e, ttl and ttl + 1, at)
        )


def ttl_shorter_offline(patch):
    right = binding.duration
    patch.setattr(binding, "duration", lambda ttl: right(ttl) - 1)


def older_overwrites(patch):
    right = SQLiteOnlineStore._put

    def put(self, config, place, layout, pairs, merge):
        self._delete(config, place, [key for key, _ in pairs])
        return right(self, config, place, layout, pairs, merge)

    patch.setattr(SQLiteOnlineStore, "_put", put)


def tie_rule_swapped(patch):
    right = packing.canonical_bytes
    patch.setattr(
        packing, "canonical_bytes", lambda *a, **k: bytes(255 - byte for byte in right(*a, **k))
    )


def known_too_early(patch):
    right = source_rows.sql
    mutant = SimpleNamespace(**vars(right))
    mutant.newest = lambda view, since, until, known_by: right.newest(  # noqa: ARG005
        view, since, until, known_by=None
    )
    patch.setattr(source_rows, "sql", mutant)
    patch.setattr(
        source_rows,
        "_known_between",
        lambda view, since, until, newest: mutant.newest(  # noqa: ARG005
            view, since, until, known_by=None
        ),
    )


def training_leaks(patch):
    right = DuckDBOfflineStore.get_historical_features

    def leak(*arguments, **options):
        return right(*arguments, **{**options, "filter_by_created_timestamp": False})

    patch.setattr(DuckDBOfflineStore, "get_historical_features", staticmethod(leak))


def pin_a_row_short(patch):
    right = offline_pins.sql
    mutant = SimpleNamespace(**vars(right))
    mutant.used = lambda view, span: f"FROM ({right.used(view, span)}) OFFSET 1"
    patch.setattr(offline_pins, "sql", mutant)


def nothing_written(patch):
    patch.setattr(materializer.Materializer, "write", lambda *_: 0)


def differs_online(patch):
    right = Store.online_features

    def read(self, service, *arguments, **options):
        bundle = self.bundle(service)
        function = bundle.executors[0]._function
        bundle.executors[0]._function = lambda frame: function(frame).assign(
            share=lambda made: made["share"].astype("float32").astype("float64") * 1.1
        )
        try:
            got = right(self, service, *arguments, **options)
            got.table  # noqa: B018 - computed now, under the bug
            return got
        finally:
            bundle.executors[0]._function = function

    patch.setattr(Store, "online_features", read)


def logged(change):
    """A mutant of what goes to the served log's files."""

    def plant(patch):
        right = files.pq.write_table

        def write(table, *arguments, **options):
            return right(change(table), *arguments, **options)

        patch.setattr(files, "pq", SimpleNamespace(**{**vars(pq), "write_table": write}))

    return plant


def cast_logged(table):
    index = table.schema.get_field_index("spend")
    return table.set_column(index, "spend", table.column(index).cast(pa.float32()))


def file_lost(patch):
    def lose(self):
        self.served.flush()
        self.served.files("purchase", NOON, NOON + DAY)[1].unlink()

    right = Store.audit

    def audited(self, service, **options):
        lose(self)
        return right(self, service, **options)

    patch.setattr(Store, "audit", audited)


def contract_moves(patch):
    """A log that writes down the second request under another contract."""
    right, calls = ServedLog.append, iter(range(10**6))

    def append(self, service, features, **options):
        if next(calls) == 1:
            features.contract = "0" * 64
        right(self, service, features, **options)

    patch.setattr(ServedLog, "append", append)


def older_served(patch):
    """What was served first comes again at the end of the day, with the values of its time."""
    right, before = ServedLog.append, []

    def append(self, service, features, *, request_time, request_ids, **options):
        right(
            self, service, features, request_time=request_time, request_ids=request_ids, **options
        )
        before.append(features)
        if len(before) == 3:
            stale = OnlineFeatures(
                features.table,
                features.statuses,
                {
                    view: pc.if_else(pc.is_valid(times), pc.subtract(times, pa.scalar(HOUR)), times)
                    for view, times in features.event_times.items()
                },
                features.contract,
            )
            ids = [f"stale-{name}" for name in request_ids]
            later = request_time + HOUR
            right(self, service, stale, request_time=later, request_ids=ids, **options)

    patch.setattr(ServedLog, "append", append)


def clock_off(patch):
    right = ServedLog.append

    def append(self, *arguments, request_time, **options):
        right(self, *arguments, request_time=request_time + DAY, **options)

    patch.setattr(ServedLog, "append", append)


def leaked_row(patch):
    """A writer that takes a row before it is known: it gives it an earlier created time."""

    def change(table):
        index = table.schema.get_field_index("created_timestamp")
        early = pc.if_else(
            pc.equal(table.column("visits"), 9),
            table.column("event_timestamp"),
            table.column(index),
        )
        return table.set_column(index, "created_timestamp", early)

    known_too_early(patch)
    writes(change)(patch)


def contract_without_ttl(patch):
    right = contract._view
    patch.setattr(contract, "_view", lambda *a: {**right(*a), "ttl_us": 0})


def contract_without_helpers(patch):
    patch.setattr(code_module._Closure, "_name", lambda *_: None)


def any_contract_served(patch):
    right = Store.online_features
    patch.setattr(
        Store,
        "online_features",
        lambda self, *a, contract=None, **rest: right(self, *a, **rest),  # noqa: ARG005, PLW0108
    )


def pii_shown(patch):
    patch.setattr(report.Redactor, "show", lambda _, value, personal: value)  # noqa: ARG005
    column("city", lambda values: pa.array(["Bern"] * len(values), pa.string()))(patch)


def drops_uncounted(patch):
    """A log that leaves out every second request and counts nothing."""
    right, calls = ServedLog._take, iter(range(10**6))

    def take(self, key, item, rows):
        if next(calls) == 1:
            buffer = self._buffers[key]
            buffer.written += rows  # it believes that these are on disk
            return
        right(self, key, item, rows)

    patch.setattr(ServedLog, "_take", take)


def policy_drops(patch):
    right = ServedLog._take

    def take(self, key, item, rows):
        right(self, key, item, rows)
        buffer = self._buffers[key]
        buffer.dropped += rows
        buffer.rows += rows
        buffer.lost, buffer.gap = item, (item.request_time, item.request_time)

    patch.setattr(ServedLog, "_take", take)


def logged_twice(patch):
    right = ServedLog.append

    def append(self, *arguments, **options):
        right(self, *arguments, **options)
        right(self, *arguments, **options)

    patch.setattr(ServedLog, "append", append)


def labels_of_nobody(patch):
    right = ServedLog.append

    def append(self, service, features, *, request_ids, request_time, **options):
        given = {"request_ids": request_ids, "request_time": request_time}
        right(self, service, features, **given, **options)
        labels = [1.0] * len(request_ids)
        self.append_labels(service, [f"not-{i}" for i in request_ids], labels, request_time)

    patch.setattr(ServedLog, "append", append)


def malformed_vectors(patch):
    """Every second request has event times for one row more than it has."""
    right, calls = ServedLog.append, iter(range(10**6))

    def append(self, service, features, **options):
        if next(calls) == 1:
            times = {view: pa.concat_arrays([t, t[:1]]) for view, t in features.event_times.items()}
            features = OnlineFeatures(features.table, features.statuses, times, features.contract)
        right(self, service, features, **options)

    patch.setattr(ServedLog, "append", append)


def no_sweep(patch):
    patch.setattr(whole_files, "_is_dead", lambda _: False)


def archive_trusted(patch):
    right = archive._intact
    patch.setattr(
        archive, "_intact", lambda path: path.read_bytes() if path.exists() else right(path)
    )


def mark_outlives_rows(patch):
    right, seen = SQLiteOnlineStore.progress_at, {}

    def progress_at(self, config, place):
        found = right(self, config, place)
        if found.until is not None:
            seen[place.space] = found
        return seen.get(place.space, found)

    patch.setattr(SQLiteOnlineStore, "progress_at", progress_at)


def any_definition(patch):
    patch.setattr(materializer, "definition_of", lambda *_: {})


def rebuild_merges(patch):
    right = materializer.Materializer.step

    def step(self, *arguments, rebuild=False, **options):  # noqa: ARG001
        return right(self, *arguments, **options)

    patch.setattr(materializer.Materializer, "step", step)


def ahead_hides(patch):
    patch.setattr(waiting.Merge, "of", lambda _, rows: max(rows, key=order_of))


def loss_unnoticed(patch):
    right = SQLiteOnlineStore._read_rows

    def read(self, *arguments, strict):  # noqa: ARG001
        return right(self, *arguments, strict=False)

    patch.setattr(SQLiteOnlineStore, "_read_rows", read)


MUTANTS = [
    Mutant("TTL one microsecond longer online", "audit I2: missing offline", ttl_longer_online),
    Mutant("TTL one microsecond shorter offline", "audit I2: missing offline", ttl_shorter_offline),
    Mutant("an older row overwrites a newer one", "audit I1: stale", older_overwrites),
    Mutant("the tie rule is swapped online", "audit I1: value", tie_rule_swapped),
    Mutant("doubles go online through float32", "audit I1: value",
           column("spend", lambda v: v.cast(pa.float32()).cast(pa.float64()))),
    Mutant("int64 goes online through double", "audit I1: value",
           column("visits", lambda v: pc.cast(v, "double", safe=False).cast("int64", safe=False))),
    Mutant("null becomes zero online", "audit I1: value",
           column("visits", lambda v: v.fill_null(0))),
    Mutant("NaN becomes null online", "audit I1: value",
           column("spend", lambda v: pc.if_else(pc.is_nan(v), None, v))),
    Mutant("the sign of zero is lost online", "audit I1: value",
           column("spend", lambda v: pc.add(v, 0.0))),
    Mutant("one column is a row off online", "audit I1: value",
           column("city", lambda v: pa.concat_arrays([v.slice(1), v.slice(0, 1)]))),
    Mutant("the last row of a batch is not written", "audit I1: missing online",
           writes(lambda table: table.slice(0, table.num_rows - 1))),
    Mutant("event times are an hour off online", "audit I1: ahead",
           column("event_timestamp", lambda v: pc.add(v, pa.scalar(HOUR)))),
    Mutant("materialization moves its mark and writes nothing", "audit I1: missing online",
           nothing_written),
    Mutant("materialization takes rows before they are known", "audit I1: ahead", known_too_early),
    Mutant("a row leaks online, and is served before it is known", "audit I2: leaked", leaked_row),
    Mutant("training takes rows before they are known", "law I8: training is not the naive loop",
           training_leaks),
    Mutant("a pin leaves out a row", "law I8: training is not the naive loop", pin_a_row_short),
    Mutant("an on-demand function differs online", "audit I2: value", differs_online),
    Mutant("the log's clock is a day off", "audit I2: missing offline", clock_off),
    Mutant("the log narrows a type", "audit I2: type", logged(cast_logged)),
    Mutant("the log drops the last row of a file", "audit I11: lost",
           logged(lambda table: table.slice(0, table.num_rows - 1))),
    Mutant("a model is served under whatever contract is live", "audit I4: mixed", contract_moves),
    Mutant("a worker goes on serving what another has replaced", "audit I9: went back",
           older_served),
    Mutant("a file of the log is gone", "audit I11: lost", file_lost),
    Mutant("the log drops a request uncounted", "audit I11: lost", drops_uncounted),
    Mutant("the log drops requests, and counts them", "audit I2: void", policy_drops),
    Mutant("each request is logged twice", "audit I11: repeated", logged_twice),
    Mutant("labels come for requests that were never served", "audit I11: unknown request",
           labels_of_nobody),
    Mutant("vectors of which no table can be made go unnoticed", "audit I2: void",
           malformed_vectors),
    Mutant("the contract leaves out the TTL", "law I3: values changed, the contract did not",
           contract_without_ttl),
    Mutant("the contract leaves out helpers",
           "law I3: values changed, the contract did not", contract_without_helpers),
    Mutant("any contract is served as if it were the one asked for",
           "law I4: another contract was served", any_contract_served),
    Mutant("a late row counts in a replay", "law I5: does not replay", training_leaks),
    Mutant("a mark outlives the rows that it speaks of", "law I1: lost rows stay lost",
           mark_outlives_rows),
    Mutant("progress counts whatever the definitions are",
           "law I1: rows of other definitions are served", any_definition),
    Mutant("a rebuild only merges", "law I1: a correction is not online", rebuild_merges),
    Mutant("a row ahead takes the place of the newest one that is due",
           "law I1: a row ahead hides another", ahead_hides),
    Mutant("a store that lost its rows is taken for an empty one",
           "law I1: lost rows are served as nulls", loss_unnoticed),
    Mutant("personal data is shown", "law pii: shown in clear", pii_shown),
    Mutant("what a killed writer left is never swept", "law pii: a half file is left", no_sweep),
    Mutant("an archive's hash is not compared", "law I4: altered definitions ran", archive_trusted),
]  # fmt: skip


@pytest.mark.parametrize("caught", ["audit law I3 I4 I5 I8", "law I1"])
def test_nothing_is_found_where_nothing_is_planted(shop, caught):
    assert findings(shop, caught) == set()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug)
def test_a_planted_bug_is_caught(shop, monkeypatch, mutant):
    mutant.plant(monkeypatch)
    assert mutant.caught in findings(shop, mutant.caught)


# The page -------------------------------------------------------------------------------------


def mutant_table():
    lines = ["| planted bug | caught by |", "| --- | --- |"]
    return "\n".join(lines + [f"| {mutant.bug} | {mutant.caught} |" for mutant in MUTANTS])


def test_the_page_lists_every_mutant_and_only_tests_that_exist():
    text = PAGE.read_text(encoding="utf-8")
    assert mutant_table() in text
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, test
    section = text.split("| mismatch | means |")[1].split("\n\n")[0]
    kinds = {kind for kinds in AUDIT_KINDS.values() for kind in kinds}
    assert {kind for kind in kinds if kind not in section} == set()
    rows = [line for line in text.splitlines() if re.match(r"\| I\d+ \|", line)]
    assert [line.split("|")[1].strip() for line in rows] == [f"I{n}" for n in range(1, 12)]
    assert all("tests/" in line for line in rows)
