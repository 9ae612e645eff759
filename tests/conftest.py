"""What every test may use: real programs of Debian's packages, free ports, a busy daemon's state.

Top of `tests`. A test that needs a real server says so, `@pytest.mark.service("prometheus")`,
or asks `service_binary("prometheus")` for its path; without that program it is skipped with
the program's name, and with STEADFEAST_REQUIRE_SERVICES=1 it fails instead.
`scripts/services.sh` installs them.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import random
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import settings

from steadfeast.featurestore.security import Ports, Security
from steadfeast.monitor.decisions.model import (
    Alert,
    AlertKind,
    EpisodeKind,
    Member,
    OpenIncident,
    Severity,
    TriggerState,
)
from steadfeast.monitor.drift.data_quality import Figures, Freshness, Incident, IncidentKind
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.drift.segments import OTHERS, Segment
from steadfeast.monitor.exporter.collector import registry
from steadfeast.monitor.ledger.state import (
    AuditCheck,
    AuditState,
    Counters,
    EpisodeRecord,
    JobState,
    MonitorState,
    OutboxState,
    PastWindow,
    PromotionRecord,
    ReferenceInfo,
    State,
    TriggerRecord,
)
from steadfeast.monitor.performance.realized import Performance
from steadfeast.monitor.profiles.distribution import Bar, Distribution
from steadfeast.monitor.profiles.profile import Window
from steadfeast.monitor.web.app import Health, Operator, app
from steadfeast.protos.steadfeast.v1 import pipeline_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

# A busy machine is slow, not wrong.
settings.register_profile("steadfeast", deadline=None)
settings.load_profile("steadfeast")

PACKAGES = {
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "npm": "npm",
    "openssl": "openssl",
}
"""Program to the Debian package that has it."""

NODE = Path(__file__).parent / "node"

pytest_plugins = ["support.reaper"]


def _find(name: str) -> Path:
    """Return where `name` is, or skip (or fail) the test that asks."""
    package = PACKAGES[name]  # a typing error in a test is a KeyError, never a skip
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian keeps some servers
    found = shutil.which(name, path=path)
    if found is None:
        _missing(f"{name} is missing (Debian package {package}); scripts/services.sh installs it")
    return Path(found)


def _missing(message: str) -> NoReturn:
    if os.environ.get("STEADFEAST_REQUIRE_SERVICES") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test marked `service` before it starts anything."""
    for mark in item.iter_markers("service"):
        for name in mark.args:
            _find(name)


@pytest.fixture(scope="session")
def service_binary() -> Callable[[str], Path]:
    """Give the path of a real program by its name; see `PACKAGES` for the names."""
    return _find


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Give the folder of npm's packages, installed as `tests/node/package-lock.json` says.

    Without npm or without a registry the test is skipped, or fails like those of a service.
    """
    npm, installed = _find("npm"), NODE / "node_modules" / ".steadfeast"
    lock = (NODE / "package-lock.json").read_text(encoding="utf-8")
    with (NODE / ".gitignore").open(encoding="utf-8") as turn:  # one worker at a time
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not installed.is_file() or installed.read_text(encoding="utf-8") != lock:
            ran = subprocess.run(
                [npm, "ci"], cwd=NODE, capture_output=True, text=True, check=False, timeout=240
            )
            if ran.returncode:
                _missing(f"npm ci failed in tests/node: {ran.stderr[-600:]}")
            installed.write_text(lock, encoding="utf-8")
    return NODE / "node_modules"


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Give a loopback port that was free a moment ago.

    For servers that cannot bind port 0 and say what they got. Below the ports that the system
    gives to whoever asks for any, so that no client or other test gets it meanwhile.
    """
    ports = random.Random(os.getpid() * 1_000_003 + time.time_ns())

    def _free() -> int:
        while True:
            port = ports.randrange(10_240, 32_000)
            with suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                return port

    return _free


MONDAY = datetime(2013, 7, 15, tzinfo=UTC)
"""End of the last window of `drifting`."""

RATIOS = {
    "weather__temp": 6.4,
    "route_14d__late_rate": 2.1,
    "carrier_origin_7d__late_rate": 1.4,
    "weather__dewp": 0.93,
    "departures_3h__delay_mean": 0.61,
    "arrivals_6h__count": 0.42,
    "distance": 0.08,
    "hour": 0.05,
}
"""Feature of `drifting` to the ratio of its last window."""


def _verdict(feature: str, ratio: float | None) -> Verdict:
    level = Level.INSUFFICIENT_DATA if ratio is None else Level.DRIFT if ratio > 1 else Level.OK
    return Verdict(
        source="served",
        feature=feature,
        statistic="psi",
        value=None if ratio is None else 0.2 * ratio,
        threshold=None if ratio is None else 0.2,
        level=level,
        reason="of 200 rows that are needed there are 12" if ratio is None else "",
        window=Window(MONDAY - timedelta(days=7), MONDAY, 6400),
        impact=0.31 if feature == "weather__temp" else None,
    )


def _figures(feature: str, rows: int) -> Figures:
    return Figures(
        feature=feature,
        rows=rows,
        nulls=rows // 50,
        null_share=0.02 if rows else None,
        nans=0,
        infinities=0,
        mistyped=0,
        unseen=3 if rows else 0,
        minimum=0.0,
        maximum=41.5,
        mean=12.25,
        sd=3.5,
    )


def _delays() -> MonitorState:
    """Return a regressor's monitor, whose predictions are all that is watched."""
    window = Window(MONDAY - timedelta(days=7), MONDAY, 900)
    said = dataclasses.replace(_verdict("prediction", 0.4), source="predictions", window=window)
    return MonitorState(
        name="delays",
        service="arrival",
        model="delay",
        reference=ReferenceInfo(
            "training/11/manifest.json",
            "cd" * 32,
            "9",
            Window(datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 3, 1, tzinfo=UTC), 20_000),
            {"mean_absolute_error": 11.0, "root_mean_squared_error": 16.0, "r2": 0.4},
        ),
        window=window,
        verdicts=(said,),
        performance=Performance(
            {"mean_absolute_error": 12.5, "root_mean_squared_error": 18.0, "r2": 0.35},
            850,
            None,
            window,
            {
                "mean_absolute_error": (11.9, 13.1),
                "root_mean_squared_error": (17.0, 19.0),
                "r2": (0.3, 0.4),
            },
        ),
        estimated={"mean_absolute_error": 12.0, "root_mean_squared_error": 17.5},
        metric="mean_absolute_error",
        max_drop=3.0,
        lower_is_better=True,
    )


@pytest.fixture(scope="session")
def drifting() -> State:
    """Give the state of a daemon to which everything that it can show has happened.

    Two monitors: `flights` with drift, a trigger whose run was promoted, a second one under way,
    an acknowledged performance drop and a data incident; `new` before its first window.
    """
    verdicts = tuple(_verdict(name, ratio) for name, ratio in RATIOS.items())
    verdicts += (
        dataclasses.replace(
            _verdict("(told apart)", 0.7),
            source="joint",
            statistic="domain_classifier",
            impact=None,
        ),
        dataclasses.replace(
            _verdict("(reconstruction)", 0.4),
            source="joint",
            statistic="reconstruction_error",
            impact=None,
        ),
        _verdict("wind_gust", None),
    )
    ends = [MONDAY - timedelta(days=7 * week) for week in reversed(range(20))]
    history = tuple(
        PastWindow(
            window=Window(end - timedelta(days=7), end, 6400),
            ratios={name: ratio * (0.1 + 0.9 * (week / 19) ** 2) for name, ratio in RATIOS.items()},
            performance={"roc_auc": 0.76 - 0.004 * week, "accuracy": 0.81, "log_loss": 0.44}
            if week > 1
            else {},
        )
        for week, end in enumerate(ends)
    )
    flights = MonitorState(
        name="flights",
        service="late_arrival",
        model="late_arrival",
        watermark=MONDAY,
        latest_event=MONDAY + timedelta(hours=9),
        reference=ReferenceInfo(
            uri="training/00ff00ff00ff00ff/manifest.json",
            contract="ab" * 32,
            model_version="3",
            window=Window(
                datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 3, 1, tzinfo=UTC), 51955
            ),
            performance={
                "roc_auc": 0.752,
                "accuracy": 0.82,
                "log_loss": 0.43,
                "f1": 0.6,
                "calibration_error": 0.01,
            },
            importance=dict.fromkeys(RATIOS, 0.01),
        ),
        window=verdicts[0].window,
        verdicts=verdicts,
        figures=(*(_figures(name, 6400) for name in RATIOS), _figures("wind_gust", 12)),
        freshness=(
            Freshness("weather", MONDAY - timedelta(hours=1), 4080.0),
            Freshness("tail_last", None, None),
        ),
        incidents=(
            OpenIncident(
                Incident(
                    IncidentKind.NULL_BURST,
                    "wind_gust",
                    0.998,
                    0.2,
                    "wind_gust: 99.8 % null, 81.2 % in the reference",
                ),
                MONDAY - timedelta(days=2),
                MONDAY,
            ),
        ),
        blocked="wind_gust: null burst",
        performance=Performance(
            {
                "roc_auc": 0.684,
                "accuracy": 0.79,
                "log_loss": 0.47,
                "f1": 0.52,
                "calibration_error": 0.04,
            },
            6210,
            1420,
            verdicts[0].window,
            {
                "roc_auc": (0.671, 0.697),
                "accuracy": (0.78, 0.8),
                "log_loss": (0.46, 0.48),
                "f1": (0.5, 0.54),
                "calibration_error": (0.03, 0.05),
            },
        ),
        estimated={
            "roc_auc": 0.701,
            "accuracy": 0.8,
            "log_loss": 0.45,
            "f1": 0.55,
            "calibration_error": 0.03,
        },
        estimate_errors={"roc_auc": 0.017, "accuracy": 0.01},
        metric="roc_auc",
        max_drop=0.05,
        segments=(
            Segment(
                "origin",
                "EWR",
                3000,
                verdicts[:2],
                {"roc_auc": 0.65},
                {"roc_auc": (0.62, 0.68)},
            ),
            Segment("origin", OTHERS, 40, ()),
        ),
        history=history,
        distributions=(
            Distribution(
                "weather__temp",
                6400,
                (Bar("up to 40", 0.5, 0.02), Bar("over 40", 0.48, 0.98), Bar("null", 0.02, 0.0)),
            ),
            Distribution("hour", 0, (Bar("6", 0.25, None), Bar("18", 0.75, None))),
        ),
        audit=AuditState(
            datetime(2026, 1, 2, 3, tzinfo=UTC),
            (
                AuditCheck("I1", "weather", 18, {}, holds=True),
                AuditCheck(
                    "I2",
                    "late_arrival",
                    70_659,
                    {"value": 12},
                    holds=False,
                    features={"distance": {"value": 4}, "weather__temp": {"value": 8}},
                ),
                AuditCheck("I11", "late_arrival", 28_100, {}, holds=True),
            ),
        ),
        audit_interval=timedelta(hours=6),
        max_age={"weather": timedelta(hours=1), "tail_last": timedelta(hours=1)},
    )
    drop = dataclasses.replace(
        verdicts[0],
        source="labels",
        feature="roc_auc",
        statistic="drop",
        value=0.06,
        threshold=0.05,
    )
    cause = pipeline_pb2.Cause(policy="flights", summary="weather__temp 3.1 times its limit")
    promoted = pipeline_pb2.Run(
        run_id="run-1",
        request_id="request-1",
        model="late_arrival",
        state=pipeline_pb2.RUN_STATE_PROMOTED,
        model_version="3",
        metrics={"roc_auc": 0.771},
        gates=[
            pipeline_pb2.Gate(
                name="roc_auc",
                passed=True,
                value=0.771,
                limit=0.752,
                champion=0.757,
                metric="roc_auc",
            )
        ],
        cause=cause,
    )
    promoted.updated_at.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    running = pipeline_pb2.Run(run_id="run-2", state=pipeline_pb2.RUN_STATE_RUNNING)
    running.updated_at.FromDatetime(datetime(2026, 1, 2, 4, 4, 5, tzinfo=UTC))
    episodes = (
        EpisodeRecord(
            "episode-3",
            "flights",
            EpisodeKind.PERFORMANCE,
            MONDAY - timedelta(days=7),
            None,
            (Member(drop, MONDAY - timedelta(days=8)),),
            "auc .684, .752 when it was trained",
            acknowledged_by="on call",
        ),
        EpisodeRecord(
            "episode-2",
            "flights",
            EpisodeKind.DRIFT,
            MONDAY - timedelta(days=21),
            None,
            tuple(Member(one, MONDAY - timedelta(days=22)) for one in verdicts[:2]),
            "weather__temp and route_14d__late_rate are over their limits",
        ),
        EpisodeRecord(
            "episode-1",
            "flights",
            EpisodeKind.DRIFT,
            MONDAY - timedelta(days=120),
            MONDAY - timedelta(days=106),
            (
                Member(
                    verdicts[0],
                    MONDAY - timedelta(days=121),
                    resolved_at=MONDAY - timedelta(days=106),
                ),
            ),
            "weather__temp is over its limit",
            reason="reference moved",
        ),
    )
    triggers = (
        TriggerRecord(
            "request-2",
            "flights",
            "late_arrival",
            TriggerState.DELIVERED,
            "",
            ("episode-2",),
            MONDAY - timedelta(days=21),
            attempts=3,
            run=running,
        ),
        TriggerRecord(
            "request-1",
            "flights",
            "late_arrival",
            TriggerState.DELIVERED,
            "",
            ("episode-1",),
            MONDAY - timedelta(days=120),
            attempts=1,
            run=promoted,
        ),
    )
    first = pipeline_pb2.Run(
        run_id="run-0",
        request_id="request-0",
        model="late_arrival",
        state=pipeline_pb2.RUN_STATE_PROMOTED,
        model_version="1",
        reason="by hand, in place of none",
        gates=[
            pipeline_pb2.Gate(name="roc_auc", passed=True, value=0.74, limit=0.5, metric="roc_auc"),
        ],
        cause=pipeline_pb2.Cause(summary="version 1 is champion by hand"),
    )
    return State(
        project="airport",
        monitors={
            "flights": flights,
            "new": MonitorState("new", "other", "other"),
            "delays": _delays(),
        },
        episodes=episodes,
        triggers=triggers,
        promotions=(PromotionRecord("flights", MONDAY - timedelta(days=130), first),),
        alerts=(
            Alert(
                AlertKind.EPISODE,
                Severity.WARNING,
                "flights",
                MONDAY - timedelta(days=21),
                "Drift: weather__temp <b>6.4</b> times its limit",
                episodes={
                    "episode-2": "weather__temp and route_14d__late_rate are over their limits"
                },
                sequence=7,
            ),
        ),
        jobs={
            "tick": JobState(
                "tick",
                datetime(2026, 1, 2, 4, 5, tzinfo=UTC),
                datetime(2026, 1, 2, 4, 5, 1, tzinfo=UTC),
                last_seconds=0.8,
                seconds=412.5,
                runs=500,
                failures=2,
                misfires=1,
            )
        },
        outbox=OutboxState(depth=1, oldest=datetime(2026, 1, 2, 4, tzinfo=UTC), attempts=5, dead=1),
        counters=Counters(
            snapshots={"flights": 195},
            rows={"flights": 170_000},
            late_rows={"flights": 4},
            decisions={("flights", "fired"): 2, ("flights", "cooldown"): 9},
            reloads=1,
        ),
        latest_event=MONDAY + timedelta(hours=9),
    )


@contextmanager
def _served(
    state: State,
    health: Health = Health(ok=True),  # noqa: B008
    operator: Operator | None = None,
) -> Iterator[str]:
    served = app(lambda: state, lambda: health, registry(lambda: state), operator)
    with Ports(Security(), http_address="127.0.0.1:0", app=served) as ports:
        yield f"http://127.0.0.1:{ports.http_port}"


@pytest.fixture(scope="session")
def served() -> Callable[..., AbstractContextManager[str]]:
    """Give what serves a state's page and metrics on a free port: `with served(state) as url`."""
    return _served
