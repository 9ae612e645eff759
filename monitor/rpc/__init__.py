"""MonitorService: protobuf in, one call, protobuf out."""

from steadfeast.monitor.rpc.service import Monitor, ports

__all__ = ["Monitor", "ports"]
