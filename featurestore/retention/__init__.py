"""What goes on purpose: erased subjects, and what is old."""

from steadfeast.featurestore.retention.collection import Collectable, collect_garbage
from steadfeast.featurestore.retention.erasure import Erasure, Holder, Matches, erase_files

__all__ = ["Collectable", "Erasure", "Holder", "Matches", "collect_garbage", "erase_files"]
