"""One process: its parts, started, reloaded and stopped."""

from steadfeast.monitor.daemon.daemon import Daemon
from steadfeast.monitor.daemon.process import main

__all__ = ["Daemon", "main"]
