"""CSV files as typed rows, with the cells and lines that do not fit put aside.

Beside `snapshot`; `tables` reads CSV through here. DuckDB guesses types from a sample and stops at
the first cell that does not fit: one `N/A` in row 25,000 would end the whole file. So a file is
read as guessed as long as that goes well, and as text, cell by cell, when it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb

from steadfeast.featurestore.tables import identifier, literal
from steadfeast.monitor.sources.quarantine import Fault, Quarantined, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

MOSTLY = 0.99
"""Share of a text column's cells that must be numbers for it to be a column of numbers."""
NULL_WORDS = ("", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "?", ".")
"""How people write that there is no value; they do not make a column of numbers one of text."""

_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_SEPARATORS = (",", ";", "\t", "|")
_WHOLE = r"\s*[+-]?\d{1,18}\s*"
_TIME = "TIMESTAMP WITH TIME ZONE"
_NUMBERS = frozenset(
    {"tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger"}
    | {"ubigint", "float", "double", "decimal"}
)


def is_delimited(location: str) -> bool:
    """Say whether files at a location are CSV or TSV, by their ending."""
    return location.lower().endswith(_ENDINGS)


def guessed(paths: Iterable[Path], types: Mapping[str, str] | None = None) -> str:
    """Return a table expression over files whose columns have the types that DuckDB guesses.

    Args:
        paths: Of the files.
        types: Types of some columns, which must be there, in place of the guess.
    """
    files = ", ".join(literal(str(path)) for path in paths)
    fixed = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in (types or {}).items())
    return f"read_csv([{files}], union_by_name = true{f', types = {{{fixed}}}' if fixed else ''})"


class TextFile:
    """One file read as text, line by line; what is no line of the table is left out.

    Args:
        con: Any DuckDB connection.
        path: The file.
        place: How it is named to people.
        timestamp: Column of the event time, which tells how cells are separated.

    Attributes:
        names: Its columns.

    Raises:
        duckdb.Error: It cannot be read as text either, or has no such column.
    """

    def __init__(
        self, con: duckdb.DuckDBPyConnection, path: Path, place: str, timestamp: str
    ) -> None:
        self._con, self._path, self._place, self._timestamp = con, path, place, timestamp
        for separator in _SEPARATORS:
            self._options = f"{literal(str(path))}, delim = {literal(separator)}, header = true"
            self._options += ", all_varchar = true"
            self.names: list[str] = con.sql(f"SELECT * FROM {self.scan}").columns
            if timestamp in self.names:
                return
        raise duckdb.InvalidInputException(f"there is no column {timestamp!r}")

    @property
    def scan(self) -> str:
        """A table expression of its lines, every column as text."""
        return f"read_csv({self._options}, ignore_errors = true)"

    def typed(self, types: Mapping[str, str]) -> str:
        """Return a query of its lines with columns cast; a cell that does not fit is null."""
        types = {**types, self._timestamp: _TIME}
        cells = [(identifier(name), types.get(name, "VARCHAR")) for name in self.names]
        columns = [
            cell if kind == "VARCHAR" else f"{_cast(cell, kind)} AS {cell}" for cell, kind in cells
        ]
        return f"SELECT {', '.join(columns)} FROM {self.scan}"

    def malformed(self) -> list[Quarantined]:
        """Return the lines that are left out, by what is wrong with them."""
        options = "store_rejects = true, rejects_limit = 0, rejects_table = 'bad_lines'"
        scan = f"read_csv({self._options}, {options}, rejects_scan = 'bad_scans')"
        try:
            self._con.execute(f"SELECT count(COLUMNS(*)) FROM {scan}").fetchall()
            query = (
                "SELECT error_type::VARCHAR, count(DISTINCT line), min(line) FROM bad_lines "
                "GROUP BY 1 ORDER BY 1"
            )
            found = self._con.execute(query).fetchall()
            ((good,),) = self._con.execute(f"SELECT count(*) FROM {self.scan}").fetchall()
        finally:
            self._con.execute("DROP TABLE IF EXISTS bad_lines; DROP TABLE IF EXISTS bad_scans")
        of = good + sum(rows for _, rows, _ in found)
        return [
            Quarantined(
                Fault.MALFORMED_LINE,
                rows,
                self._place,
                of,
                example=f"{kind.lower()}, first in line {line}",
            )
            for kind, rows, line in found
        ]

    def undated(self) -> list[Quarantined]:
        """Return the cells of the event time that are no times."""
        return self.unfit({self._timestamp: _TIME}, "true")

    def unfit(self, types: Mapping[str, str], where: str) -> list[Quarantined]:
        """Return the cells that cannot be cast, by column.

        Args:
            types: Of the columns to look at.
            where: Condition on the lines.
        """
        cast = {name: kind for name, kind in types.items() if name in self.names}
        cast = {name: kind for name, kind in cast.items() if kind != "VARCHAR"}
        if not cast:
            return []
        asked = []
        for name, kind in cast.items():
            cell = identifier(name)
            bad = f"FILTER ({cell} IS NOT NULL AND {_cast(cell, kind)} IS NULL)"
            asked.append(f"count(*) {bad}, min({cell}) {bad}")
        query = f"SELECT count(*), {', '.join(asked)} FROM {self.scan} WHERE {where}"
        [(of, *row)] = self._con.execute(query).fetchall()
        return [
            Quarantined(Fault.UNREADABLE_CELL, many, self._place, of, name, shortened(example))
            for name, many, example in zip(cast, row[::2], row[1::2], strict=True)
            if many
        ]

    def within(self, since: int, until: int) -> str:
        """Return the condition that a line's event time is in [since, until), in microseconds."""
        at = f"epoch_us({_cast(identifier(self._timestamp), _TIME)})"
        return f"{at} >= {since} AND {at} < {until}"

    def votes(self, where: str) -> dict[str, tuple[int, int, int]]:
        """Return of each column its cells with a value, the numbers and the whole ones of them."""
        words = ", ".join(map(literal, NULL_WORDS))
        asked = []
        for name in self.names:
            cell = identifier(name)
            there = f"{cell} IS NOT NULL AND lower(trim({cell})) NOT IN ({words})"
            number = f"{there} AND {_cast(cell, 'DOUBLE')} IS NOT NULL"
            whole = f"{there} AND regexp_full_match({cell}, {literal(_WHOLE)})"
            asked += [f"count(*) FILTER ({one})" for one in (there, number, whole)]
        query = f"SELECT {', '.join(asked)} FROM {self.scan} WHERE {where}"
        [row] = self._con.execute(query).fetchall()
        return {name: row[3 * i : 3 * i + 3] for i, name in enumerate(self.names)}


def typed(
    con: duckdb.DuckDBPyConnection,
    places: Mapping[Path, str],
    timestamp: str,
    within: tuple[int, int],
    types: Mapping[str, str],
    *,
    carefully: bool,
) -> tuple[str, list[Quarantined]]:
    """Return files as a table whose columns are of certain types, and what does not fit.

    Args:
        con: Any DuckDB connection.
        places: The files, and how each is named to people.
        timestamp: Column of the event time.
        within: First microsecond, and the one after the last, of the rows that are asked for.
        types: DuckDB type that each column should have; others are guessed.
        carefully: Read as text, because reading as guessed has failed.

    Raises:
        duckdb.Error: They cannot be read as guessed; be careful then.
    """
    if not carefully:
        guess = _guess(con, guessed(places))
        wanted = {name: _suited(kind, types.get(name, "")) for name, kind in guess.items()}
        if not types and _nearly_numbers(con, guessed(places), guess):
            raise duckdb.ConversionException("numbers among which are other words")
        changed = {name: kind for name, kind in wanted.items() if kind != guess[name]}
        return guessed(places, changed), []
    aside: list[Quarantined] = []
    files = []
    for path, place in places.items():
        try:
            files.append(TextFile(con, path, place, timestamp))
        except duckdb.Error as error:
            reason = shortened(str(error))
            aside.append(Quarantined(Fault.UNREADABLE_FILE, 0, place, example=reason))
    try:
        guess = _guess(con, guessed(places))
    except duckdb.Error:
        guess = {}
    wanted = _voted(files, guess, types, within)
    wanted.pop(timestamp, None)
    for file in files:
        aside += file.malformed() + file.unfit(wanted, file.within(*within))
    query = " UNION ALL BY NAME ".join(file.typed(wanted) for file in files)
    return f"({query})" if files else "", aside


def _cast(cell: str, kind: str) -> str:
    """Return a cell as a type, null where it does not fit.

    Trimmed not only for blanks: a bare cast would be pushed into the reader, which then leaves out
    the whole line.
    """
    return f"TRY_CAST(trim({cell}) AS {kind})"


def _guess(con: duckdb.DuckDBPyConnection, scan: str) -> dict[str, str]:
    relation = con.sql(f"SELECT * FROM {scan}")
    return dict(zip(relation.columns, map(str, relation.types), strict=True))


def _suited(guess: str, wanted: str) -> str:
    """Return the type to read a column as, that was guessed and should be another."""
    family = guess.lower().partition("(")[0]
    fits = {
        "DOUBLE": family in _NUMBERS,
        _TIME: family.startswith(("timestamp", "date")),
        "": True,
    }
    return guess if fits.get(wanted, guess == wanted) else wanted


def _nearly_numbers(con: duckdb.DuckDBPyConnection, scan: str, guess: Mapping[str, str]) -> bool:
    """Say whether a column that was taken for text holds numbers, nearly all of it."""
    text = [identifier(name) for name, kind in guess.items() if kind == "VARCHAR"]
    if not text:
        return False
    words = ", ".join(map(literal, NULL_WORDS))
    asked = ", ".join(
        f"count(*) FILTER (lower(trim({cell})) NOT IN ({words})), count(TRY_CAST({cell} AS DOUBLE))"
        for cell in text
    )
    [row] = con.execute(f"SELECT {asked} FROM {scan}").fetchall()
    pairs = zip(row[::2], row[1::2], strict=True)
    return any(numbers and numbers >= MOSTLY * there for there, numbers in pairs)


def _voted(
    files: Sequence[TextFile],
    guess: Mapping[str, str],
    types: Mapping[str, str],
    within: tuple[int, int],
) -> dict[str, str]:
    """Return the type of each column: as it should be, or as nearly all of its cells are."""
    sums: dict[str, list[int]] = {}
    for file in files:
        for name, counted in file.votes(file.within(*within)).items():
            before = sums.setdefault(name, [0, 0, 0])
            sums[name] = [old + new for old, new in zip(before, counted, strict=True)]
    found: dict[str, Any] = {}
    for name, (there, numbers, whole) in sums.items():
        wanted = types.get(name, "")
        if wanted == "DOUBLE" or (not wanted and numbers and numbers >= MOSTLY * there):
            found[name] = "BIGINT" if whole == numbers else "DOUBLE"
        else:
            kind = guess.get(name, "VARCHAR")
            text = kind.lower().partition("(")[0] in _NUMBERS
            found[name] = wanted or ("VARCHAR" if text else kind)
    return found
