"""materialization."""
