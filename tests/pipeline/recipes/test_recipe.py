"""Recipes: loading what a user wrote, and the one way from Arrow to an estimator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler

from steadfeast import Fitted, frame
from steadfeast.measures import Task
from steadfeast.pipeline.recipes import (
    RecipeError,
    Target,
    check,
    limited,
    load_function,
    scores,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("source", "spec", "problem"),
    [
        (None, "train:fit", "there is no such file"),
        ("", "train:fit", "has no function fit"),
        ("fit = 3", "train:fit", "is no function: fit"),
        ("import nothing_like_this", "train:fit", "No module named 'nothing_like_this'"),
        ("def fit(:", "train:fit", "invalid syntax"),
    ],
)
def test_a_recipe_that_cannot_be_loaded_says_what_and_where(tmp_path, source, spec, problem):
    if source is not None:
        (tmp_path / "train.py").write_text(source)
    with pytest.raises(RecipeError, match="recipe train:fit in") as caught:
        load_function(spec, tmp_path)
    assert problem in str(caught.value)
    assert caught.value.file == tmp_path / "train.py"


def test_recipes_of_the_same_name_in_two_folders_are_two(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text("")
        (tmp_path / name / "train.py").write_text(f"def fit(training): return {name!r}")
    assert load_function("train:fit", tmp_path / "a")(None) == "a"
    assert load_function("train:fit", tmp_path / "b")(None) == "b"


def test_an_edit_counts_from_the_next_load_on(tmp_path: Path):
    (tmp_path / "train.py").write_text("def fit(training): return 1")
    assert load_function("train:fit", tmp_path)(None) == 1
    (tmp_path / "train.py").write_text("def fit(training): return 'two'")
    assert load_function("train:fit", tmp_path)(None) == "two"


def test_a_module_in_a_folder_may_import_what_lies_beside_it(tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sale.py").write_text("import beside_it\nfit = beside_it.fit")
    (tmp_path / "beside_it.py").write_text("def fit(training): return 'ok'")
    assert load_function("models.sale:fit", tmp_path)(None) == "ok"


@pytest.mark.parametrize(
    ("given_back", "task", "problem"),
    [
        (None, "binary", "returned NoneType, not Fitted"),
        (Fitted(LogisticRegression(), ("y",)), "binary", r"features \['y'\]"),
        (Fitted(LogisticRegression(), ()), "binary", "are empty"),
        (Fitted(LogisticRegression(), ("x",)), "binary", "is not fitted, or knows no classes_"),
        (Fitted(LinearRegression(), ("x",)), "multiclass", "LinearRegression has no predict_proba"),
        (Fitted(StandardScaler(), ("x",)), "regression", "StandardScaler has no predict, which"),
    ],
)
def test_what_cannot_be_served_is_not_accepted(tmp_path, given_back, task, problem):
    with pytest.raises(RecipeError, match=problem):
        check(given_back, ["x"], Task(task), "train:fit", tmp_path / "train.py")


numbers = st.one_of(st.none(), st.integers(-(2**40), 2**40), st.just(float("nan")), st.booleans())


@given(st.lists(numbers, min_size=1, max_size=20))
def test_numbers_become_floats_with_nan_for_null_whatever_the_batch_holds(values):
    """A row means the same alone and in a batch."""
    column = pa.array([None if v is None else float(v) for v in values], pa.float64())
    whole = frame(pa.table({"x": column}), ["x"])
    assert whole["x"].dtype == np.float64
    expected = [float("nan") if v is None else float(v) for v in values]
    np.testing.assert_array_equal(whole["x"], expected)
    for index, value in enumerate(expected):
        alone = frame(pa.table({"x": column.slice(index, 1)}), ["x"])
        np.testing.assert_array_equal(alone["x"], [value])


def test_a_type_gives_one_dtype_with_and_without_nulls():
    full = pa.table({"i": [1, 2], "b": [True, False], "s": ["a", "b"], "f": [1.5, 2.5]})
    gaps = pa.table(
        {
            "i": pa.array([1, None]),
            "b": pa.array([None, False]),
            "s": pa.array(["a", None]).dictionary_encode(),
            "f": pa.array([None, 2.5]),
        }
    )
    names = ["s", "i", "b", "f"]
    assert [*frame(full, names).dtypes] == [*frame(gaps, names).dtypes]
    assert [*frame(full, names).columns] == names
    assert frame(gaps, ["s"])["s"].to_list() == ["a", None]


@pytest.mark.parametrize("named", [True, False])
def test_scores_are_of_class_1_however_the_classes_are_ordered_and_fed(named):
    random = np.random.default_rng(1)
    x = random.normal(size=300)
    table = pa.table({"x": x, "unused": x})
    rows = frame(table, ["x"])
    model = LogisticRegression().fit(rows if named else rows.to_numpy(), (x > 0).astype(int))
    target = Target(Task.BINARY, "y", (0, 1))
    assert np.corrcoef(scores(model, table, ["x"], target), x)[0, 1] > 0.8
    backwards = SimpleNamespace(
        classes_=np.array([1, 0]), predict_proba=lambda _: np.array([[0.9, 0.1]])
    )
    assert scores(backwards, table.slice(0, 1), ["x"], target).tolist() == [0.9]


def test_the_limit_reaches_the_thread_that_histogram_boosting_fits_in():
    """scikit-learn asks OpenMP how many threads it may use; inside the limit that is one."""
    from sklearn.utils._openmp_helpers import (  # noqa: PLC0415
        _openmp_effective_n_threads as threads,
    )

    with threadpoolctl.threadpool_limits(2):
        with limited(1):
            assert threads() == 1
            HistGradientBoostingClassifier(max_iter=2).fit(np.eye(50), np.arange(50) % 2)
        assert threads() == 2
