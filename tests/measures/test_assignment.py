import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.measures import place_of, takes_in

units = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.booleans())
weights = st.floats(0, 1)


@given(st.text("abc0"), st.lists(units, max_size=20), weights, weights)
def test_who_is_in_stays_in_as_the_weight_grows(rollout, some, one, other):
    less, more = sorted((one, other))
    inside, later = takes_in(rollout, some, less), takes_in(rollout, some, more)
    assert not (inside & ~later).any()
    assert takes_in(rollout, some, 1).all()
    assert not takes_in(rollout, some, 0).any()


@given(st.text("abc0"), st.lists(units, min_size=1, max_size=20), weights)
def test_a_unit_is_where_it_is_whoever_asks_along_with_it(rollout, some, weight):
    together = takes_in(rollout, some, weight)
    alone = [takes_in(rollout, [unit], weight)[0] for unit in some]
    assert together.tolist() == alone


def test_shares_are_what_they_say_and_rollouts_are_independent():
    names = [f"N{i}" for i in range(20_000)]
    one, other = (takes_in(rollout, names, 0.1) for rollout in ("one", "other"))
    for inside in (one, other):
        assert abs(inside.mean() - 0.1) < 0.01
    assert abs((one & other).mean() - 0.01) < 0.004


def test_a_place_is_the_same_in_another_process_and_under_another_hash_seed():
    code = "from steadfeast.measures import place_of; print(repr(place_of('r', 'N1')))"
    for seed in ("0", "7"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stdout.strip() == repr(place_of("r", "N1"))


def test_nobody_in_particular_stays_with_the_champion():
    assert takes_in("r", [None, "a"], 0.999999).tolist() == [False, True]


def test_an_instant_is_one_unit_in_every_zone():
    at = datetime(2013, 1, 1, tzinfo=UTC)
    assert place_of("r", at) == place_of("r", at.astimezone(timezone(timedelta(hours=5))))
    assert np.isfinite(place_of("r", at))
