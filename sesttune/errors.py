"""The one exception a user can mend.

Everything else is a bug and keeps its traceback. Commands print a `UserError`
as a single line and exit with status 2.
"""


class UserError(Exception):
    """A mistake in the input: one line that names the file, key or column, and the fix."""
