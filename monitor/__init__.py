"""The drift daemon: snapshots, profiles, verdicts, episodes, triggers."""
