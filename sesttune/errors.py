"""The one exception a user can mend.

Everything else is a bug and keeps its traceback. Commands print a `UserError`
as a single line and exit with status 2.
"""

from pathlib import Path


class UserError(Exception):
    """A mistake in the input: one line that names the file, key or column, and the fix."""


def not_a_file(path: Path) -> str:
    """Why `path` is no file that could be read, for the line of a UserError."""
    return f"{path} is a folder: name a file" if path.is_dir() else f"{path} does not exist"
