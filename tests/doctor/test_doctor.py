"""What `steadfeast doctor` says of real projects: a new one, and one fault at a time in it."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from typer.testing import CliRunner

from steadfeast import Store
from steadfeast.doctor import CHECKS, examine
from steadfeast.doctor.cli import app
from steadfeast.featurestore.errors import ConfigError, NotFoundError
from steadfeast.featurestore.starter import Template, create

ROOT = Path(__file__).parents[2]
NOTES = ["no-alerts", "no-audit"]
"""What a new project is told, for good reasons."""


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A new project, applied and materialized."""
    folder = tmp_path_factory.mktemp("doctor") / "shop"
    create(folder, Template.BINARY, port=21464)
    with Store.open(folder / "steadfeast.yaml") as store:
        store.apply()
        store.materialize(datetime.now(UTC))
    return folder


@pytest.fixture
def project(made, tmp_path, free_port):
    """A copy of it, on ports that are free."""
    folder = tmp_path / "shop"
    shutil.copytree(made, folder)
    edit(folder / "steadfeast.yaml", "127.0.0.1:21464", f"127.0.0.1:{free_port()}")
    edit(folder / "steadfeast.yaml", "127.0.0.1:21465", f"127.0.0.1:{free_port()}")
    edit(folder / "steadfeast.yaml", "127.0.0.1:21466", f"127.0.0.1:{free_port()}")
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def found(project):
    """Names of the checks with findings, but what every new project is told."""
    return [one.check for one in examine(project / "steadfeast.yaml") if one.check not in NOTES]


def finding(project, check):
    """The one finding of a check."""
    [one] = [one for one in examine(project / "steadfeast.yaml") if one.check == check]
    return one


def run(project, *words):
    return CliRunner().invoke(app, ["--config", str(project / "steadfeast.yaml"), *words])


@pytest.mark.parametrize("template", list(Template))
def test_a_new_project_lacks_only_what_its_next_steps_do(template, tmp_path, free_port):
    create(tmp_path / "shop", template, port=free_port())
    assert found(tmp_path / "shop") == ["not-applied"]


def test_a_project_that_is_applied_and_materialized_passes_with_notes(project):
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    done = run(project)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == NOTES
    assert all("To do: " in line for line in lines[:-1])
    assert lines[-1] == "2 notes; none to act on"
    after = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    assert {path for path in before if after.get(path) != before[path]} == set()


def test_json_stands_alone_on_stdout_whatever_the_definitions_print(project):
    with (project / "features.py").open("a") as file:
        file.write("print('hello from the definitions')\n")
    code = (
        f"from steadfeast.doctor.cli import app; app(['-c', '{project}/steadfeast.yaml', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"]) == (0, True)
    assert [one["check"] for one in said["findings"]] == NOTES
    assert set(said["findings"][0]) == {
        "level",
        "check",
        "subject",
        "problem",
        "remedy",
        "accepted",
    }


def test_help_has_an_example_that_runs(project):
    said = re.sub(r"[\s│]+", " ", CliRunner().invoke(app, ["--help"]).output)
    words = re.search(r"Example: steadfeast doctor ([a-z -]+--json)", said)[1].split()
    assert json.loads(run(project, *words).output)["ok"]


def test_what_is_accepted_is_shown_and_is_no_failure(project):
    edit(project / "features.py", "timedelta(days=3)", "timedelta(0)")
    assert run(project).exit_code == 1
    done = run(project, "--accept", "no-ttl", "--accept", "not-applied")
    assert done.exit_code == 0
    assert done.output.count("(accepted)") == 2
    said = json.loads(run(project, "--accept", "no-ttl", "--json").output)
    assert said["ok"] is False
    assert {one["check"]: one["accepted"] for one in said["findings"]}["no-ttl"] is True


def test_a_name_of_no_check_and_a_file_that_cannot_be_read_are_mistakes_of_the_user(project):
    assert isinstance(run(project, "--accept", "no-tll").exception, NotFoundError)
    with pytest.raises(ConfigError, match="cannot be read"):
        examine(project / "none.yaml")


@pytest.mark.parametrize(
    ("old", "new", "check", "problem"),
    [
        ("timedelta(days=3)", "timedelta(0)", "no-ttl", "a value of any age is served"),
        ("timedelta(days=3)", "timedelta(seconds=3)", "short-ttl", "its TTL is 3s"),
        ("timedelta(days=3)", "timedelta(days=36500)", "long-ttl", "36500 days"),
        ('created_timestamp_column="created",', "", "no-created-column", "written late"),
        ("activity.parquet", "none.parquet", "source", "there is no file at"),
        ('"event_timestamp"', '"moment"', "definitions", "moment"),
        ("spend", "outlay", "source", "there is no such column"),
        ("def habits(", "def habits(:", "definitions", "invalid syntax"),
    ],
)
def test_each_fault_of_the_definitions_is_told(old, new, check, problem, project):
    edit(project / "features.py", old, new)
    assert problem in finding(project, check).problem


def test_a_repo_without_a_service_and_one_without_our_stores_are_told(project):
    text = (project / "features.py").read_text()
    (project / "features.py").write_text(text[: text.index("purchase = ")])
    edit(project / "feature_store.yaml", "steadfeast.SQLiteOnlineStore", "sqlite")
    assert {"no-service", "not-applied", "foreign-store", "unknown-name"} <= set(found(project))


def test_a_source_that_fell_silent_is_stale(tmp_path, free_port):
    then = datetime.now(UTC) - timedelta(days=30)
    create(tmp_path / "shop", Template.TABLE, port=free_port(), now=then)
    assert "older than the TTL (3d)" in finding(tmp_path / "shop", "stale").problem


def test_views_that_were_never_materialized_are_told(project):
    for path in (project / "data").glob("online.db*"):
        path.unlink()
    with Store.open(project / "steadfeast.yaml") as store:
        store.apply()
    assert found(project) == ["not-materialized"]


@contextmanager
def serving_redis(program, folder, port):
    """A real redis-server that evicts any key."""
    words = ["--port", str(port), "--save", "", "--maxmemory-policy", "allkeys-lru"]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([program, *words], stdout=log, cwd=folder)
    try:
        with redis.Redis(port=port) as client:
            while server.poll() is None:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait()


@pytest.mark.service("redis-server")
def test_a_redis_that_evicts_is_a_risk_and_one_that_is_away_is_missing(
    project, service_binary, tmp_path, free_port
):
    port = free_port()
    edit(
        project / "feature_store.yaml",
        "  type: steadfeast.SQLiteOnlineStore\n  path: data/online.db",
        f"  type: steadfeast.RedisOnlineStore\n  url: redis://127.0.0.1:{port}\n"
        "  timeout_seconds: 0.2\n  retries: 0",
    )
    assert found(project) == ["online-store"]
    with serving_redis(service_binary("redis-server"), tmp_path, port):
        with Store.open(project / "steadfeast.yaml") as store:
            store.apply()
            store.materialize(datetime.now(UTC))
        assert found(project) == ["eviction"]
        one = finding(project, "eviction")
        assert "maxmemory-policy is allkeys-lru" in one.problem
        assert "set noeviction" in one.remedy


def test_a_port_in_use_is_told_unless_our_own_server_holds_it(project):
    text = (project / "steadfeast.yaml").read_text()
    port = int(re.search(r"  http: 127.0.0.1:(\d+)", text)[1])
    with socket.create_server(("127.0.0.1", port)):
        assert "in use by another program" in finding(project, "port-taken").problem
        (project / "data/monitor").mkdir(mode=0o700)
        with (project / "data/monitor/monitor.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert found(project) == []


def test_one_address_for_two_servers_is_told(project):
    text = (project / "steadfeast.yaml").read_text()
    http, grpc = re.findall(r"  (?:http|grpc): (127\S+)", text)[:2]
    edit(project / "steadfeast.yaml", grpc, http)
    assert "is also monitor.http" in finding(project, "port-taken").problem


def test_ports_off_loopback_want_tls_and_tokens(project):
    path = project / "steadfeast.yaml"
    path.write_text(re.sub(r"(  (?:http|grpc): )127.0.0.1", r"\g<1>0.0.0.0", path.read_text()))
    assert {"configuration"} <= set(found(project))
    path.write_text(path.read_text() + "\nsecurity:\n  allow_plaintext: true\n")
    names = found(project)
    assert (names.count("plaintext"), names.count("no-tokens")) == (3, 3)
    edit(
        path,
        "allow_plaintext: true",
        "allow_plaintext: true\n  tokens: {ops: {token: '${DOCTOR_TOKEN:-0123456789abcdef}', "
        "roles: [admin]}}",
    )
    assert "no-tokens" not in found(project)
    assert "secret-in-file" not in found(project)


@pytest.mark.parametrize(
    ("old", "new", "check", "problem"),
    [
        ("label_delay: 1d ", "label_delay: 6h ", "label-delay", "known within 1d of the request"),
        ("label_delay: 1d ", "min_rows: 100 ", "label-delay", "labels are not in"),
        ("holdout: 14d", "holdout: 60d", "holdout", "fitted on less than they are judged on"),
        ("holdout: 14d", "holdout: 1d", "holdout", "no model passes its gates"),
        ("holdout: 14d", "holdout: 14d\n      since: 15d", "holdout", "nothing is left to fit on"),
        ("examples.parquet", "none.parquet", "examples", "is not there"),
        ("label: bought", "label: sold", "examples", "has no column sold"),
        ("train:train", "train:fit", "recipe", "train.py has no fit"),
        ("train:train", "missing:fit", "recipe", "there is no missing.py beside"),
        (
            "    purchase:\n      service: purchase\n      recipe",
            "    sale:\n      service: purchase\n      recipe",
            "unknown-name",
            "no model 'purchase'",
        ),
        ("activity: 3d ", "activity: 5d ", "max-age", "longer than the view's TTL (3d)"),
        ("activity: 3d ", "activty: 3d ", "unknown-name", "did you mean activity?"),
        ("bucket: 1d", "bucket: 7h", "configuration", "must divide a day"),
    ],
)
def test_each_fault_of_the_configuration_is_told(old, new, check, problem, project):
    edit(project / "steadfeast.yaml", old, new)
    assert problem in finding(project, check).problem


def test_triggers_that_come_to_no_pipeline_of_the_file_are_told(project, free_port):
    path = project / "steadfeast.yaml"
    path.write_text(
        re.sub(r"training: \S+", f"training: 127.0.0.1:{free_port()}", path.read_text())
    )
    assert found(project) == ["pipeline-address"]


@pytest.fixture
def opened_to_all(project):
    """The project, in a folder that every user may enter: those of pytest are private."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        shutil.move(project, folder / "shop")
        (folder / "shop").chmod(0o755)
        yield folder / "shop"


def test_state_and_secrets_that_others_may_read_are_told(opened_to_all):
    project = opened_to_all
    assert found(project) == []
    state = project / "data/pipeline"
    state.mkdir(mode=0o755)
    assert found(project) == []  # the store's folder around it is private
    edit(project / "steadfeast.yaml", "state: data/pipeline", "state: runs")
    shutil.move(state, project / "runs")
    (project / "runs").chmod(0o755)
    assert finding(project, "state-readable").subject == "pipeline.state"
    (project / "runs").chmod(0o700)
    path = project / "steadfeast.yaml"
    path.write_text(
        path.read_text() + "\nsecurity:\n  tokens:\n"
        "    ops: {token: 0123456789abcdef, roles: [admin]}\n"
        "    ann: {token: {file: ann.token}, roles: [read]}\n"
    )
    (project / "ann.token").write_text("fedcba9876543210")
    path.chmod(0o600)
    (project / "ann.token").chmod(0o600)
    assert finding(project, "secret-in-file").subject.endswith("security.tokens.ops.token")
    path.chmod(0o644)
    assert "go= " in finding(project, "secret-readable").remedy
    path.chmod(0o600)
    (project / "ann.token").chmod(0o640)
    assert finding(project, "secret-readable").subject == "security.tokens.ann.token.file"
    assert "0123456789abcdef" not in run(project).output


def test_a_password_in_the_address_of_the_online_store_is_a_secret(project):
    edit(
        project / "feature_store.yaml",
        "  type: steadfeast.SQLiteOnlineStore\n  path: data/online.db",
        "  type: steadfeast.RedisOnlineStore\n  url: redis://me:hunter2@cache.example:1\n"
        "  timeout_seconds: 0.2\n  retries: 0",
    )
    assert {"secret-in-file", "plaintext", "online-store"} <= set(found(project))
    assert "hunter2" not in run(project).output


def test_a_label_column_of_nulls_is_no_reason_to_fail(project):
    path = project / "data/sources/examples.parquet"
    table = pq.read_table(path)
    nothing = pa.nulls(table.num_rows, pa.int64())
    at = table.column_names.index("bought")
    pq.write_table(table.set_column(at, "bought", nothing), path)
    assert finding(project, "examples").problem.endswith("holds no labels")


def test_the_guide_explains_every_check_by_its_name_and_level():
    guide = (ROOT / "docs/guide/doctor.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", guide, re.MULTILINE)
    assert dict(rows) == dict(CHECKS)
