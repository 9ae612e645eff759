"""Every exception of the project's own, one tree.

Bottom of `featurestore`: imports nothing of ours. An error carries its data as attributes, so
that a caller can act on it without reading the message; the message is for the person. What a
user can put right derives from `UserError`: the command line prints it in one line and exits
with 2.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class SteadfeastError(Exception):
    """Root of the tree."""


class UserError(SteadfeastError):
    """Something the user gave is wrong and can be put right."""


class ConfigError(UserError):
    """A configuration file is missing, unreadable or wrong.

    Attributes:
        path: The file.
        problems: `(field, problem)` pairs; the field is dotted, empty for the whole file.
    """

    def __init__(self, path: Path, problems: Sequence[tuple[str, str]]) -> None:
        self.path, self.problems = path, tuple(problems)
        super().__init__(
            "\n".join(
                f"{path}: {field}: {text}" if field else f"{path}: {text}"
                for field, text in problems
            )
        )


class NotFoundError(UserError):
    """A name that does not exist, with the nearest that do.

    Attributes:
        kind: What was looked for, for example "feature view".
        name: The name asked for.
        known: The names there are.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        near = get_close_matches(name, self.known, n=3) or self.known[:5]
        hint = f"; did you mean {', '.join(near)}?" if near else "; there is none yet"
        super().__init__(f"no {kind} {name!r}{hint}")


class RawDataError(UserError):
    """A raw data file is missing, lacks a column, or holds a value that cannot be read.

    Attributes:
        path: The file.
        problem: What is wrong with it, naming the column and the row where there is one.
    """

    def __init__(self, path: Path | str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")
