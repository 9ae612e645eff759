"""History under a configuration: which alarms it would have raised."""
