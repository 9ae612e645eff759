"""`steadfeast monitor`. Its modules are imported when a command runs."""
