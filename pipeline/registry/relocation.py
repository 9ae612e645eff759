"""MLflow's embedded database, told where its model files are now.

Below `registry`. MLflow writes absolute addresses into its tables whatever it is given, and has no
call that changes them. A state folder that was moved, restored elsewhere or mounted under another
path would leave it looking where nothing is. So each start compares where the experiments of this
database say that their files are with the folder beside it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "artifacts"
_PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
"""Tables and columns of MLflow that hold addresses of files."""


def relocate(database: Path) -> None:
    """Let all addresses under the old folder of model files begin with the one of now.

    Args:
        database: MLflow's SQLite file; its model files are in `artifacts/` beside it.
    """
    if not database.is_file():
        return
    now = (database.absolute().parent / FOLDER).as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        asked = "SELECT name FROM sqlite_master WHERE type = 'table'"
        tables = {name for (name,) in connection.execute(asked)} & _PLACES.keys()
        if "experiments" not in tables:
            return
        # Ours alone: MLflow's own first experiment is somewhere else, and holds nothing.
        asked = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
        before = [place for (place,) in connection.execute(asked, (f"file://%/{FOLDER}",))]
        for old in before:
            if old == now:
                continue
            for table in tables:
                for column in _PLACES[table]:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (now, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
