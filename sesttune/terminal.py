"""Go on where the terminal has closed: what would be shown goes nowhere, and ends no command.

Writing to such a terminal is an error (EIO), also for a background job that nothing tells of it: a
sweep of days would train to its end and fall over the line that says so, before its result is kept.
"""

import errno
import io
import os
import sys
from typing import Any


class _Terminal(io.FileIO):
    """The terminal `descriptor`, and nothing after it has closed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, text: Any, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(text)


def outlive_terminal() -> None:
    """Let output and errors of this process go on when their terminal closes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            stream.flush()
            terminal = io.BufferedWriter(_Terminal(stream.fileno()))
            text = io.TextIOWrapper(terminal, stream.encoding, stream.errors, line_buffering=True)
            setattr(sys, name, text)
