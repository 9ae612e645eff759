"""Whatever measure speaks for a feature that has moved, it says the side that it has moved to."""

import numpy as np
import pytest

from benchmarks import quiet_worlds
from steadfeast.monitor.drift import detect
from steadfeast.monitor.profiles import Window


@pytest.fixture(scope="module")
def world():
    return quiet_worlds.Running("independent, sd .03", 6, 56, 10_000, 4.0, 5)


@pytest.mark.parametrize("moved", [-0.5, 0.5])
def test_a_tail_that_grows_since_all_has_moved_is_not_the_other_side(world, moved):
    said = set()
    for number in range(world.known, world.known + 20):
        profile = world.day(number, np.full(6, moved))
        start = quiet_worlds.START + number * quiet_worlds.DAY
        window = Window(start - 6 * quiet_worlds.DAY, start + quiet_worlds.DAY, profile.rows)
        bucket = (start, profile)
        for one in detect(world.reference, profile, window, world.config, bucket=bucket):
            assert one.evidence * moved > 0
            said.add(one.statistic)
    assert len(said) >= 1
