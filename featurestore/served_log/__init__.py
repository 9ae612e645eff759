"""served_log."""
