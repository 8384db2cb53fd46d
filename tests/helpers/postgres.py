"""A throw-away PostgreSQL of Debian's package, on a Unix socket; skips where there is none."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER = "postgres"


@contextmanager
def open_postgres() -> Iterator[str]:
    """The SQLAlchemy address of an empty database; nothing of it stays."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL on this machine (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg2")
    # Not in pytest's own folders: they are closed to the user that PostgreSQL must run as.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    as_user: list[str] = []
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        user = pwd.getpwnam(USER)
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    bin_folder, data = programs[-1].parent, str(folder / "data")
    make = [str(bin_folder / "initdb"), "-D", data, "-U", USER, "-A", "trust", "--no-sync"]
    subprocess.run([*as_user, *make], check=True, capture_output=True, cwd=folder)
    serve = [str(bin_folder / "postgres"), "-D", data, "-k", str(folder)]
    serve += ["-c", "listen_addresses=", "-c", "fsync=off"]
    process = subprocess.Popen([*as_user, *serve], stderr=subprocess.DEVNULL, cwd=folder)
    try:
        ready = [str(bin_folder / "pg_isready"), "-q", "-h", str(folder)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready).returncode != 0:
            assert process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"postgresql+psycopg2://{USER}@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown
        process.wait()
        shutil.rmtree(folder)
