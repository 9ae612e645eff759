"""Windows to decide on: day by day, with ratios over the threshold as a test wants them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from steadfeast.monitor.config.schema import EpisodeConfig, MonitorConfig
from steadfeast.monitor.decisions.model import Evaluation
from steadfeast.monitor.drift.data_quality import Incident, IncidentKind
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.profiles.profile import Window

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
REFERENCE = Window(START - 30 * DAY, START, 3000)


def config(**changes) -> MonitorConfig:
    given = {
        "service": "s",
        "model": "m",
        "pipeline": "p",
        "bucket": DAY,
        "window": 3 * DAY,
        "cooldown": 7 * DAY,
        "episode": EpisodeConfig(k=2, n=3, close=2),
        "refresh": "never",
    }
    return MonitorConfig(**given | changes)


def evaluation(
    day: int,
    ratios: dict[str, float | None],
    *,
    broken: bool = False,
    **more,
):
    window = Window(START + (day - 3) * DAY, START + day * DAY, 300)

    def verdict(feature: str, ratio: float | None) -> Verdict:
        if ratio is None:
            return Verdict(
                "served", feature, "psi", None, 0.1, Level.INSUFFICIENT_DATA, "few rows", window
            )
        side = 1 if ratio > 0 else -1
        level = Level.DRIFT if abs(ratio) > 1 else Level.OK
        return Verdict(
            "served", feature, "psi", abs(ratio) * 0.1, 0.1, level, "", window, side=side
        )

    incident = Incident(IncidentKind.NULL_BURST, "z", 0.9, 0.2, "90 % null")
    return Evaluation(
        monitor="w",
        window=window,
        reference_window=REFERENCE,
        verdicts=tuple(verdict(*item) for item in ratios.items()),
        incidents=(incident,) if broken else (),
        contract="c" * 64,
        model_version="1",
        **more,
    )
