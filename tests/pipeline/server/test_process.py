"""`steadfeast pipeline` as real processes: stopped, killed, restarted, and used by hand."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from getpass import getuser
from typing import TYPE_CHECKING

import grpc
import mlflow
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steadfeast.featurestore.cli import main
from steadfeast.pipeline.queue import RunQueue
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from steadfeast.protos.steadfeast.v1 import pipeline_pb2_grpc as rpc
from support.shop_world import MODEL, at, configure, trigger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 90


@contextmanager
def server(config: Path, port: int) -> Iterator[subprocess.Popen]:
    """A real `steadfeast pipeline serve`, ready; killed at the end if it still runs."""
    command = [sys.executable, "-c", "from steadfeast.featurestore.cli import main; main()"]
    log = config.with_name("serve.log").open("a")
    with (
        log,
        subprocess.Popen(
            [*command, "pipeline", "serve", "--config", str(config)], stderr=log
        ) as process,
    ):
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True
                )
            yield process
        finally:
            process.kill()


def wait_for(path: Path) -> None:
    """Wait until a recipe has made the file `path`, and remove it."""
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.05)
    path.unlink()


def test_a_queue_that_cannot_be_written_asks_for_another_try(shops: Path, free_port):
    """As on a full disk: anything but UNAVAILABLE is final to the monitor, and the trigger lost."""
    port = free_port()
    config = configure(shops, grpc=f"127.0.0.1:{port}")
    asked = trigger(at(40))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, server(config, port) as process:
        stub = rpc.PipelineServiceStub(channel)
        none = resource.RLIM_INFINITY
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, none))
        with pytest.raises(grpc.RpcError, match=r"runs\.db") as caught:
            stub.TriggerRetrain(asked, timeout=SECONDS)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (none, none))
        assert stub.TriggerRetrain(asked, timeout=SECONDS).created


def test_a_run_survives_a_kill_and_ends_once(shops: Path, free_port, monkeypatch, capfd):
    """Killed in the middle of one run, with another one waiting."""
    port = free_port()
    config = configure(shops, grpc=f"127.0.0.1:{port}", recipe="train:held")
    (shops / "hold").touch()
    first, second = trigger(at(40)), trigger(at(80))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.PipelineServiceStub(channel)

        with server(config, port) as process:
            runs = [stub.TriggerRetrain(r, timeout=SECONDS).run for r in (first, second)]
            wait_for(shops / "reached")
            process.send_signal(signal.SIGKILL)
            assert process.wait(SECONDS) == -signal.SIGKILL

        (shops / "hold").unlink()
        with server(config, port) as process:
            again = stub.TriggerRetrain(first, timeout=SECONDS, wait_for_ready=True)
            assert (again.created, again.run.run_id) == (False, runs[0].run_id)
            ended, reasons = [], []
            for run in runs:
                request = pb.WatchRunRequest(run_id=run.run_id)
                events = [e for e in stub.WatchRun(request, timeout=SECONDS) if e.HasField("run")]
                assert [e.sequence for e in events] == [*range(1, len(events) + 1)]
                ended.append(events[-1].run)
                reasons.append([e.run.reason for e in events])
            assert "resumed: it was cut off" in reasons[0]
            assert "resumed: it was cut off" not in reasons[1]
            assert [run.state for run in ended] == [pb.RUN_STATE_PROMOTED] * 2, ended
            assert [run.model_version for run in ended] == ["1", "2"]

            # While a server works, the command line leaves the work to it.
            monkeypatch.setattr(
                "sys.argv",
                [
                    "steadfeast",
                    "pipeline",
                    "train",
                    MODEL,
                    "--as-of",
                    "2024-03-25",
                    "-c",
                    str(config),
                ],
            )
            with pytest.raises(SystemExit) as left:
                main()
            out = capfd.readouterr().out
            assert left.value.code in (0, 3), out
            assert "roc_auc not_worse_by: roc_auc" in out

            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{shops}/data/pipeline/mlflow.db")
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 3
    (experiment,) = [e for e in client.search_experiments() if e.name == MODEL]
    assert len(client.search_runs([experiment.experiment_id])) == 3


def steadfeast(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Call the command line in this process; give exit code, output and errors."""
    monkeypatch.setattr("sys.argv", ["steadfeast", "pipeline", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


def test_a_model_is_trained_listed_and_rolled_back_by_hand(shops, monkeypatch, capsys):
    config = ("--config", str(shops / "steadfeast.yaml"))
    for day, version in (("2024-02-10", 1), ("2024-03-21T00:00:00+01:00", 2)):
        code, out, err = steadfeast(monkeypatch, capsys, "train", MODEL, "--as-of", day, *config)
        assert code == 0, err
        assert f"promoted  version {version}  accuracy=" in out
        assert "pass  holdout_rows: " in out
    configure(shops, recipe="train:coin")
    code, out, _ = steadfeast(monkeypatch, capsys, "train", MODEL, "--as-of", "2024-03-30", *config)
    assert code == 3
    assert "FAIL  roc_auc not_worse_by: roc_auc" in out
    configure(shops, recipe="train:broken")
    code, out, err = steadfeast(
        monkeypatch, capsys, "train", MODEL, "--as-of", "2024-03-22", *config
    )
    assert code == 1
    assert "failed  (ZeroDivisionError: no shop is open (train.py:" in out

    code, out, _ = steadfeast(monkeypatch, capsys, "rollback", MODEL, *config)
    assert (code, f"(rolled back from 2)  asked for by {getuser()}" in out) == (0, True)
    said = ("--actor", "ann", "--comment", "was better")
    code, out, _ = steadfeast(monkeypatch, capsys, "promote", MODEL, "3", *said, *config)
    assert (code, "(by hand, in place of 1: was better)  asked for by ann" in out) == (0, True)
    code, out, _ = steadfeast(monkeypatch, capsys, "runs", "--json", *config)
    listed = [json.loads(line) for line in out.splitlines()]
    assert [run["state"].removeprefix("RUN_STATE_") for run in listed] == [
        "PROMOTED",
        "PROMOTED",
        "FAILED",
        "REFUSED",
        "PROMOTED",
        "PROMOTED",
    ]
    assert listed[-2]["as_of"] == "2024-03-20T23:00:00Z"
    with RunQueue(shops / "data/pipeline/runs.db") as queue:
        assert queue.claim() is None


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["train", "sail", "--as-of", "2024-02-10"], {}, "no model 'sail'; did you mean sale?"),
        (["train", MODEL, "--as-of", "soon"], {}, "'soon' is not a time"),
        (["rollback", MODEL], {}, "no earlier champion"),
        (["promote", MODEL, "1"], {}, "no version of model sale '1'"),
        (["serve"], {"recipe": "train:nothing"}, "pipeline.models.sale.recipe: recipe train:not"),
        (["serve"], {"recipe": "train:NOT_A_FUNCTION"}, "something that is no function"),
        (["serve"], {"recipe": "trane:fit"}, "there is no such file"),
        (["serve"], {"recipe": "train"}, "pipeline.models.sale.recipe: String should match"),
        (["serve"], {"labels": "sold"}, "pipeline.models.sale.labels: unknown key"),
        (["serve"], {"holdout": "a week"}, "pipeline.models.sale.holdout: Value error"),
        (["serve"], {"since": "7d"}, "since (7 days, 0:00:00) must be longer than holdout (7 days"),
        (["serve"], {"holdout": "0d"}, "holdout must be longer than nothing"),
        (["serve"], {"grpc": "0.0.0.0:0"}, "pipeline.grpc: 0.0.0.0:0 is no loopback address"),
        (["serve", "--config", "nowhere.yaml"], {}, "nowhere.yaml: cannot be read"),
    ],
)
def test_what_the_user_can_put_right_is_one_message(
    shops, monkeypatch, capsys, arguments, changes, message
):
    """Exit code 2, no traceback, and no port was opened for it."""
    monkeypatch.chdir(shops)
    configure(shops, **changes)
    code, out, err = steadfeast(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
