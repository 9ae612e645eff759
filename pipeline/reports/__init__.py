"""What is said of versions afterwards: two side by side, and one on a page of its own."""

from steadfeast.pipeline.reports.card import Card, card, card_page
from steadfeast.pipeline.reports.comparison import Comparison, ComparisonError, Difference, compare
from steadfeast.pipeline.reports.differences import Change, differences
from steadfeast.pipeline.reports.page import comparison_page, figures, runs_page, setting
from steadfeast.pipeline.reports.side_by_side import Asked, SideBySide, side_by_side
from steadfeast.pipeline.reports.version import Described, describe

__all__ = [
    "Asked",
    "Card",
    "Change",
    "Comparison",
    "ComparisonError",
    "Described",
    "Difference",
    "SideBySide",
    "card",
    "card_page",
    "compare",
    "comparison_page",
    "describe",
    "differences",
    "figures",
    "runs_page",
    "setting",
    "side_by_side",
]
