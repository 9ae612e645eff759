"""The command line as a person meets it: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import EntryPoint

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from steadfeast import Store
from steadfeast.featurestore import cli
from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.starter import Template, create

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def run(shop):
    """Give what runs `steadfeast store WORDS --config` here and returns code and output."""

    def call(*words):
        return CliRunner().invoke(cli.app, ["store", *words, "--config", str(shop.config)])

    return call


@pytest.fixture
def stocked(shop):
    row = {"user_id": 1, "at": NOON, "written": NOON, "spend": 4.0, "visits": 1}
    shop.write([row], [])
    entities = pa.table(
        {"user_id": [1, 2], "event_timestamp": pa.array([NOON, NOON]), "late": [1, 0]}
    )
    pq.write_table(entities, shop.folder / "entities.parquet")
    return shop


def test_from_definitions_to_an_audit(stocked, run):
    applied = run("apply")
    assert applied.exit_code == 0, applied.output
    assert "contract of purchase: " in applied.output
    moved = run("materialize", "2024-03-10T12:00:00Z", "--json")
    assert json.loads(moved.output) == {"items": 0, "users": 1}
    assert run("materialize", "2024-03-10T13:00", "--view", "users").output.strip() == (
        "users: 0 keys changed"
    )
    file = str(stocked.folder / "entities.parquet")
    built = run("training-set", "small", "--entities", file, "--label", "late", "--json")
    manifest = json.loads(built.output)
    assert (manifest["rows"], manifest["label"]) == (2, "late")
    path = stocked.data / "training" / manifest["id"] / "manifest.json"
    assert run("replay", str(path)).output == "the same 2 rows, to the bit\n"
    audited = run("audit", "small")
    assert audited.exit_code == 1
    assert "I1  holds  users: 3 cells" in audited.output
    assert "I2  void   small: 0 cells; nothing was logged" in audited.output


def test_contracts_are_printed_and_compared(stocked, run):
    run("apply")
    before = json.loads(run("contract", "small", "--json").output)
    assert len(before["sha256"]) == 64
    stocked.edit("features.py", "timedelta(days=1)", "timedelta(days=2)")
    run("apply")
    words = ("contract", "diff", before["sha256"][:8], "small")
    assert run(*words).output == (
        "view users ttl_us: 86400000000 became 172800000000 (changes values)\n"
    )
    assert len(json.loads(run(*words, "--json").output)) == 1
    assert run("contract", "diff", "small", "small").output == "the same contract\n"
    assert run("contract", "small", "purchase").exit_code == 2


def test_a_change_under_a_live_model_is_said_and_asked_about(stocked, run):
    run("apply")
    with Store.open(stocked.config) as store:
        before = store.contract("small").sha256
        got = store.online_features("small", [{"user_id": 1}], request_time=NOON)
        store.served.append(
            "small", got, request_ids=["r"], request_time=NOON, model="late", model_version="7"
        )
    assert run("apply").exit_code == 0  # nothing changes: nothing is asked
    stocked.edit("features.py", "timedelta(days=1)", "timedelta(days=2)")
    asked = run("apply")  # nobody answers
    assert asked.exit_code == 1
    assert "small changes under late 7, which is served from it:" in asked.output
    assert "view users ttl_us: 86400000000 became 172800000000 (changes values)" in asked.output
    assert "requests for its contract go on being answered, by the definitions" in asked.output
    assert "purchase" not in asked.output
    with Store.open(stocked.config) as store:
        assert store.contract("small").sha256 == before
    applied = run("apply", "--yes")
    assert applied.exit_code == 0, applied.output
    with Store.open(stocked.config) as store:
        assert store.contract("small").sha256 != before
        assert store.live_changes() == {}


STEADFEAST = [sys.executable, "-m", "steadfeast.featurestore.cli"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["contract", "smal"], "no feature service 'smal'; did you mean small?"),
        (["materialize", "noon"], "'noon' is not a time; write 2013-03-01"),
        (["training-set", "small", "--entities", "no.parquet"], "no.parquet: cannot be read"),
        (["training-set", "small", "--entities", "features.py"], "features.py: is not Parquet"),
        (["contract", "diff", "abcd", "small"], "no contract 'abcd'"),
        (["contract", "small", "--config", "no.yaml"], "no.yaml: cannot be read"),
        (["replay", "no.json"], "no.json: cannot be read"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_can_put_right_is_one_message_and_code_2(
    shop, words, problem, monkeypatch, capsys
):
    monkeypatch.chdir(shop.folder)
    monkeypatch.setattr(sys, "argv", ["steadfeast", "store", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert problem in printed.err
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_help_comes_without_feast_and_teaches_by_example():
    code = (
        "import sys; from steadfeast.featurestore import cli\n"
        "sys.argv = ['steadfeast', 'store', 'materialize', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "slow = {'feast', 'pandas', 'pyarrow', 'duckdb'} & set(sys.modules)\n"
        "print('slow:', sorted(slow))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Example: steadfeast store materialize" in done.stdout
    assert "slow: []" in done.stdout


def test_a_group_whose_extra_is_missing_says_what_to_install():
    entry = EntryPoint("spaceship", "no_such_module.cli:app", "steadfeast.commands")
    with pytest.raises(ImportError) as caught:
        entry.load()
    app = typer.Typer()
    app.add_typer(cli._missing(entry, caught.value), name=entry.name)
    app.command("other")(lambda: None)
    done = CliRunner().invoke(app, ["spaceship"])
    assert done.exit_code == 2
    assert "pip install 'steadfeast[spaceship]'" in done.output
    assert "no_such_module" in done.output


def test_a_process_of_its_own_has_all_groups_and_the_same_exit_code(tmp_path):
    done = subprocess.run([*STEADFEAST, "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("store", "monitor", "pipeline"))
    words = [*STEADFEAST, "store", "apply"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: steadfeast.yaml: cannot be read")


def _outcomes(folder, kind):
    """Three labels, one of nobody, as one kind of file; return the words that name it."""
    path = folder / f"outcomes.{kind}"
    with duckdb.connect(str(path) if kind == "duckdb" else ":memory:") as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute(
            "CREATE TABLE outcomes AS SELECT * FROM (VALUES "
            "('a', 1, '2024-03-11T00:00:00Z'::TIMESTAMPTZ), ('b', 0, '2024-03-12T00:00:00Z'), "
            "('nobody', 1, '2024-03-12T00:00:00Z')) AS t(order_id, late, known)"
        )
        if kind != "duckdb":
            con.execute(f"COPY outcomes TO '{path}'")
    table = ["--table", "outcomes"] if kind == "duckdb" else []
    names = ["--request-id", "order_id", "--label", "late", "--known-at", "known"]
    return [str(path), *table, *names]


@pytest.mark.parametrize("kind", ["parquet", "csv", "duckdb"])
def test_labels_of_a_file_are_logged(stocked, run, kind):
    run("apply")
    with Store.open(stocked.config) as store:
        got = store.online_features("small", [{"user_id": 1}, {"user_id": 2}], request_time=NOON)
        store.served.append("small", got, request_ids=["a", "b"], request_time=NOON)
    words = _outcomes(stocked.folder, kind)
    answer = run("log-labels", "small", *words)
    assert answer.output.strip() == "3 labels logged; 1 of requests that are not in the log"
    assert json.loads(run("log-labels", "small", *words, "--json").output) == {
        "logged": 3,
        "unknown": 1,
    }
    with Store.open(stocked.config) as store:
        start, end = NOON, NOON.replace(year=2025)
        files = store.served.label_files("small", start, end)
        rows = {tuple(row.values()) for file in files for row in pq.read_table(file).to_pylist()}
    assert rows == {
        ("a", 1.0, NOON.replace(day=11, hour=0)),
        ("b", 0.0, NOON.replace(day=12, hour=0)),
        ("nobody", 1.0, NOON.replace(day=12, hour=0)),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--label", "lat"], "'lat'"),
        (["--table", "other"], "other"),
        (["--label", "order_id"], "labels must be numbers"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_by_name(stocked, run, change, words):
    run("apply")
    answer = run("log-labels", "small", *_outcomes(stocked.folder, "duckdb"), *change)
    assert isinstance(answer.exception, UserError)
    assert words in str(answer.exception)


def applied(folder, **more):
    """Run `steadfeast store apply` as a person does, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "steadfeast", "store", "apply", "--yes"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **more)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("project: x: y", "is not YAML"),
        ("- a", "holds no mapping"),
        ("", "holds no mapping"),
        ("registry: data/registry.db", "project: Field required"),
        ("online_store: {type: steadfeast.Nope}", "should end with the string `OnlineStore`"),
        ("online_store: {type: nope.NopeOnlineStore}", "Could not import module 'nope'"),
        ("provider: mars", "'mars' is not implemented"),
        (
            "online_store: {type: steadfeast.RedisOnlineStore, connection_string: hunter2-hunter2}",
            "connection_string: unknown key",
        ),
    ],
)
def test_a_mistake_in_feasts_settings_is_one_clear_line(settings, words, tmp_path):
    if settings.startswith(("online_store", "provider")):
        settings = f"project: shop\nregistry: data/registry.db\n{settings}"
    (tmp_path / "feature_store.yaml").write_text(settings)
    (tmp_path / "steadfeast.yaml").write_text("store: {repo: ., data: data}\n")
    done = applied(tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path / 'feature_store.yaml'}: " in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_store_that_is_away_is_one_clear_line(tmp_path, free_port):
    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nregistry: data/registry.db\nprovider: local\n"
        "offline_store: {type: steadfeast.DuckDBOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
        "online_store: {type: steadfeast.RedisOnlineStore, "
        f"url: 'redis://127.0.0.1:{free_port()}/0'}}\n"
    )
    (tmp_path / "steadfeast.yaml").write_text("store: {repo: ., data: data}\n")
    create(tmp_path / "shop", Template.BINARY, now=NOON)
    (tmp_path / "features.py").write_text((tmp_path / "shop" / "features.py").read_text())
    (tmp_path / "shop" / "data").rename(tmp_path / "data")
    shutil.rmtree(tmp_path / "shop")
    done = applied(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "is not available" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_clear_line(tmp_path):
    """Wherever it is met first: here among the temporary files of Feast's own metrics."""
    (tmp_path / "steadfeast.yaml").write_text("store: {repo: ., data: data}\n")

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    done = applied(tmp_path, preexec_fn=full)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: cannot write")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
