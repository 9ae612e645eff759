"""The HTTP port: the page, its actions, probes and reports."""

from steadfeast.monitor.web.app import Health, Operator, app
from steadfeast.monitor.web.charts import Chart
from steadfeast.monitor.web.page import bars, performance, segments
from steadfeast.monitor.web.render import Renderer
from steadfeast.monitor.web.report import written
from steadfeast.monitor.web.text import FIGURES, count, lasting, stretch, times_text
from steadfeast.monitor.web.view_models import BarView, Fact, SegmentView, Tone

__all__ = [
    "FIGURES",
    "BarView",
    "Chart",
    "Fact",
    "Health",
    "Operator",
    "Renderer",
    "SegmentView",
    "Tone",
    "app",
    "bars",
    "count",
    "lasting",
    "performance",
    "segments",
    "stretch",
    "times_text",
    "written",
]
