"""Rows that a source holds and that cannot be judged: counted by kind, with an example.

Bottom of `monitor`. A bucket is judged on the rows that can be read; what was put aside is shown
beside it and is an incident where it is much.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LONGEST_EXAMPLE = 60


class Fault(StrEnum):
    """What is wrong with rows in quarantine."""

    UNREADABLE_CELL = "unreadable_cell"
    MALFORMED_LINE = "malformed_line"
    NO_EVENT_TIME = "no_event_time"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    UNREADABLE_COLUMN = "unreadable_column"
    UNREADABLE_FILE = "unreadable_file"


MEANINGS = {
    Fault.UNREADABLE_CELL: "cells cannot be read as the column's type",
    Fault.MALFORMED_LINE: "lines are no rows of the table",
    Fault.NO_EVENT_TIME: "rows have no event time",
    Fault.TIME_OUT_OF_RANGE: "rows are dated far from all others",
    Fault.UNREADABLE_COLUMN: "the column cannot be read",
    Fault.UNREADABLE_FILE: "the file cannot be read",
}


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Rows of one file that were put aside for one reason.

    Attributes:
        fault: The reason.
        rows: How many; 0 where they could not be counted.
        file: The file, or the table of a database.
        of: Of how many rows of the file; 0 where that is not known.
        column: The column at fault; empty where it is the whole row or file.
        example: One value, or what the reader said; cut to `LONGEST_EXAMPLE` characters. Of a
            personal column a digest.
    """

    fault: Fault
    rows: int
    file: str
    of: int = 0
    column: str = ""
    example: str = ""

    @property
    def summary(self) -> str:
        """One line for a person."""
        where = f"{self.file}, column {self.column}" if self.column else self.file
        of = f"of {self.of:,} " if self.of else ""
        many = f"{self.rows:,} {of}" if self.rows else ""
        shown = f": {self.example}" if self.example else ""
        return f"{many}{MEANINGS[self.fault]} ({where}){shown}"


def shortened(text: str) -> str:
    """Return an example of at most `LONGEST_EXAMPLE` characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_EXAMPLE else line[: LONGEST_EXAMPLE - 3] + "..."
