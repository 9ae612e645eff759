"""What a user writes: recipes, what they give back, and what the label means."""

from steadfeast.pipeline.recipes.blend import Blend
from steadfeast.pipeline.recipes.recipe import (
    Fitted,
    Recipe,
    RecipeError,
    check,
    file_of,
    frame,
    limited,
    load_function,
)
from steadfeast.pipeline.recipes.target import (
    LabelsError,
    ScoresError,
    Target,
    own_classes,
    scores,
    shown,
)

__all__ = [
    "Blend",
    "Fitted",
    "LabelsError",
    "Recipe",
    "RecipeError",
    "ScoresError",
    "Target",
    "check",
    "file_of",
    "frame",
    "limited",
    "load_function",
    "own_classes",
    "scores",
    "shown",
]
