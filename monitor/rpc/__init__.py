"""MonitorService: protobuf in, one call, protobuf out."""

from steadfeast.monitor.rpc.service import Monitor, Server

__all__ = ["Monitor", "Server"]
