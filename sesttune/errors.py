"""The one exception a user can mend.

Everything else is a bug and keeps its traceback. Commands print a `UserError`
as a single line and exit with status 2.
"""

from pathlib import Path


class UserError(Exception):
    """A mistake in the input: one line that names the file, key or column, and the fix."""


class WrongPlace(UserError):
    """A path of the settings leads to nothing that can be used; another one may."""


def first_line(error: BaseException) -> str:
    """What an error of others says, in a line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_file(path: Path, what: str = "") -> None:
    """Raise UserError, its line begun with `what`, where `path` is no file that can be read."""
    try:
        if path.is_dir():
            raise UserError(f"{what}{path} is a folder: name a file")
        if not path.is_file():
            raise WrongPlace(f"{what}{path} does not exist")
        path.open("rb").close()
    except PermissionError:
        raise UserError(f"{what}{path} cannot be read: you lack the permission") from None
    except OSError as error:
        raise UserError(f"{what}{path} cannot be read ({error.strerror})") from None
