"""What the user writes in section `monitor`."""

from steadfeast.monitor.config.calendar import CalendarConfig, public_holidays
from steadfeast.monitor.config.cron import first, latest, parse
from steadfeast.monitor.config.endpoints import (
    AirflowConfig,
    AlertTargetConfig,
    GithubConfig,
    GitlabConfig,
    GrpcPipelineConfig,
    JenkinsConfig,
    PipelineConfig,
)
from steadfeast.monitor.config.schema import (
    BudgetConfig,
    DaemonConfig,
    MonitorConfig,
    PerformanceConfig,
    load,
)

__all__ = [
    "AirflowConfig",
    "AlertTargetConfig",
    "BudgetConfig",
    "CalendarConfig",
    "DaemonConfig",
    "GithubConfig",
    "GitlabConfig",
    "GrpcPipelineConfig",
    "JenkinsConfig",
    "MonitorConfig",
    "PerformanceConfig",
    "PipelineConfig",
    "first",
    "latest",
    "load",
    "parse",
    "public_holidays",
]
