"""Make a new SQLite store whole or not at all.

MLflow makes its tables in some fifty steps and locks nothing: of two sweeps that begin in a new
output folder each would take the other's steps for its own, and a killed one would leave a half.
The store is no use then, nor does it mend. So the tables are made in a file of another name, which
gets the store's if none has it by then.
"""

import contextlib
import os
import tempfile
from pathlib import Path


def make_store(database: Path) -> None:
    """Have MLflow's tables in `database`, in a folder that is there, unless it exists."""
    if database.exists() or not database.parent.is_dir():
        return
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=database.parent) as folder:
        draft = Path(folder) / database.name
        engine = create_engine(f"sqlite:///{draft}")
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()
        # Another has made it, or there are no links on this file system: MLflow makes it there.
        with contextlib.suppress(OSError):
            os.link(draft, database)
