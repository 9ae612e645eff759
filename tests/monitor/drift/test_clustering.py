"""How shares vary with entities, against entities that are really drawn again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from steadfeast.monitor.drift.clustering import clusterings
from steadfeast.monitor.profiles.binning import edges_of

ENTITIES, ROWS = 60, 40


def drawn(rng, *, fixed):
    """Rows of entities; `kind` is the entity's own, or each row's."""
    entity = np.repeat(np.arange(ENTITIES), ROWS)
    mine = rng.choice(["a", "b", "c"], ENTITIES, p=[0.6, 0.3, 0.1])[entity]
    each = rng.choice(["a", "b", "c"], len(entity), p=[0.6, 0.3, 0.1])
    return pa.table(
        {
            "entity": [f"e{i}" for i in entity],
            "kind": mine if fixed else each,
            "size": rng.normal(0, 1, ENTITIES)[entity] if fixed else rng.normal(0, 1, len(entity)),
        }
    )


@pytest.mark.parametrize("fixed", [True, False])
def test_the_variance_is_that_of_drawing_the_entities_again_less_that_of_rows(fixed):
    rng = np.random.default_rng(0)
    tables = [drawn(rng, fixed=fixed) for _ in range(300)]
    edges = edges_of(pa.concat_tables(tables).select(["kind"]), ["kind"])
    order = list(edges.columns["kind"].categories)
    shares = np.array(
        [[(one["kind"].to_numpy() == name).mean() for name in order] for one in tables]
    )
    middle = shares.mean(axis=0)
    expected = shares.var(axis=0) - middle * (1 - middle) / (ENTITIES * ROWS)
    found = np.mean(
        [clusterings(one, edges, ["entity"])["kind"].variances[:3] for one in tables], axis=0
    )
    if fixed:
        assert found == pytest.approx(expected, rel=0.2)
    else:  # cut off at 0, so that chance leaves a little
        assert found.max() < 2e-5
        assert abs(expected).max() < 2e-5


def test_a_naive_sum_over_pairs_of_rows_agrees():
    rng = np.random.default_rng(1)
    table = drawn(rng, fixed=True).slice(0, 200)
    table = table.take(rng.permutation(200))
    edges = edges_of(table, ["kind"])
    order = list(edges.columns["kind"].categories)
    values, entity = table["kind"].to_pylist(), table["entity"].to_pylist()
    rows = len(values)
    expected = []
    for name in order:
        share = values.count(name) / rows
        off = [(one == name) - share for one in values]
        expected.append(
            sum(
                off[i] * off[j]
                for i in range(rows)
                for j in range(rows)
                if i != j and entity[i] == entity[j]
            )
            / rows**2
        )
    assert clusterings(table, edges, ["entity"])["kind"].variances[: len(order)] == pytest.approx(
        np.maximum(expected, 0)
    )


def test_the_key_that_decides_most_is_taken_and_a_feature_does_not_cluster_itself():
    rng = np.random.default_rng(2)
    table = drawn(rng, fixed=True).append_column("row", pa.array(np.arange(ENTITIES * ROWS)))
    edges = edges_of(table, ["kind", "size"])
    both = clusterings(table, edges, ["row", "entity", "nowhere"])
    one = clusterings(table, edges, ["entity"])
    assert (both["kind"].variances == one["kind"].variances).all()
    assert clusterings(table, edges, ["kind"]).keys() == {"size"}
    assert clusterings(table, edges, []) == {}
    nothing = clusterings(table, edges, ["row"])
    assert nothing["kind"].shift == 0


def test_sixty_entities_move_a_feature_that_they_decide_by_what_sixty_draws_would():
    """Squared: one direction of a sixtieth for each group but one."""
    rng = np.random.default_rng(3)
    table = drawn(rng, fixed=True)
    edges = edges_of(table, ["size"])
    one = edges.columns["size"]
    counts = np.bincount(np.searchsorted(one.cuts, table["size"].to_numpy()), minlength=one.bins)
    groups = np.count_nonzero(one.coarse(counts))
    found = clusterings(table, edges, ["entity"])["size"].shift
    assert found**2 == pytest.approx((groups - 1) / ENTITIES, rel=0.05)


def test_nulls_other_types_and_columns_that_are_not_there_stop_nothing():
    rng = np.random.default_rng(4)
    table = drawn(rng, fixed=True)
    edges = edges_of(table, ["kind", "size"])
    holes = pa.table(
        {
            "entity": pa.array([None, *table["entity"].to_pylist()[1:]]),
            "kind": pa.array([None if i < 40 else "b" for i in range(ENTITIES * ROWS)]),
            "size": pa.array(["text"] * (ENTITIES * ROWS)),
        }
    )
    found = clusterings(holes, edges, ["entity"])
    assert found["kind"].variances[-1] > 0
    assert found["size"].shift == 0
    assert clusterings(holes.drop_columns(["size"]), edges, ["entity"]).keys() == {"kind"}
    assert clusterings(holes.slice(0, 0), edges, ["entity"])["kind"].shift == 0
