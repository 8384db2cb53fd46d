"""Follow an SQLite store whose folder was moved or copied.

MLflow keeps the whole path of every file it was given. In another place it would look for models in
the old one, and would make the old one again for what comes next.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sesttune.errors import UserError

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def follow_move(database: Path, artifacts: Path) -> None:
    """Have the store in `database` keep its files in `artifacts`, which lies beside it.

    Does nothing where the store is new, or its files have not come along. Raises UserError where
    it cannot be written.
    """
    if not (database.is_file() and artifacts.is_dir()):
        return
    with closing(sqlite3.connect(database)) as store:
        try:
            found = store.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.Error:  # nothing is in it yet, or MLflow will say what is wrong with it
            return
        for (before,) in found:
            if _is_elsewhere(before, artifacts):
                try:
                    with store:
                        _replace(store, before, artifacts.as_uri())
                except sqlite3.Error as error:
                    raise UserError(
                        f"{database} was moved or copied, and still looks for its files in "
                        f"{before}; this could not be mended ({error}): make it writable"
                    ) from None


def _is_elsewhere(place: str, artifacts: Path) -> bool:
    """Whether `place` is one that another folder's store was given; by another path it is ours."""
    path = Path(url2pathname(urlsplit(place).path))
    if not place.startswith("file://") or path.name != artifacts.name:
        return False
    return not (path.exists() and path.samefile(artifacts))


def _replace(store: sqlite3.Connection, before: str, here: str) -> None:
    known = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
    for table, column in _PLACES:
        if table in known:
            store.execute(
                f"UPDATE {table} SET {column} = :here || substr({column}, length(:before) + 1) "
                f"WHERE substr({column} || '/', 1, length(:before) + 1) = :before || '/'",
                {"here": here, "before": before},
            )
