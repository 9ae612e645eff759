"""Rows of entities in the daemon's snapshots, for `steadfeast store erase`.

Above `snapshot` and `config`. A snapshot holds what its source held, keys included. Who erases
says which rows: this module knows only where the files are. Everything else that the daemon keeps
is counts, and of personal columns neither names of categories nor extremes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from steadfeast.featurestore.config import FilePath, load_section, sections
from steadfeast.featurestore.tables import sweep, whole_file
from steadfeast.monitor.sources.snapshot import ERASED, naming

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.featurestore.retention import Matches


class _State(BaseModel, frozen=True):
    """Where the daemon's folder is; the rest of the section is not looked at."""

    state: FilePath


def erase_snapshots(file: Path, matches: Matches, *, apply: bool) -> dict[str, int]:
    """Count, and with `apply` take out, rows of entities in the snapshots of every monitor.

    Args:
        file: The configuration file.
        matches: Says which rows of a table are those of the entities.
        apply: Take them out; what a killed daemon left half done goes, too.

    Returns:
        `snapshots of MONITOR` -> rows.

    Raises:
        SnapshotUnreadableError: Whose rows a snapshot holds cannot be known.
    """
    if "monitor" not in sections(file):
        return {}
    folder = load_section(file, "monitor", _State).state / "snapshots"
    if apply:
        sweep(folder)
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*/[!.]*")):
        with naming(path):
            table = pq.read_table(path, partitioning=None)
        gone = matches(table)
        if gone.any():
            name = f"snapshots of {path.parent.name}"
            found[name] = found.get(name, 0) + int(gone.sum())
            if apply:
                left = table.filter(pa.array(~gone))
                # The ledger's hash is of the file before: this says that it is another on purpose.
                told = {**(table.schema.metadata or {}), ERASED: str(int(gone.sum())).encode()}
                with whole_file(path) as fresh:
                    pq.write_table(left.replace_schema_metadata(told), fresh, compression="zstd")
    return found
