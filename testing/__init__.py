"""Help for the tests of a user's own features. Above `featurestore`; not imported by it.

    pytest_plugins = ["steadfeast.testing.fixtures"]    # in a test file or a conftest.py

gives the fixture `sandbox`; what it makes is asked by the functions here.
"""

from steadfeast.testing.checks import (
    Case,
    assert_point_in_time,
    assert_same_row_by_row,
    assert_serves_what_training_sees,
    values_at,
)
from steadfeast.testing.sandboxes import SandboxError, open_sandbox

__all__ = [
    "Case",
    "SandboxError",
    "assert_point_in_time",
    "assert_same_row_by_row",
    "assert_serves_what_training_sees",
    "open_sandbox",
    "values_at",
]
