"""Go on where nothing can be shown any more: it ends no command.

Writing to a terminal that has closed is an error (EIO), also for a background job that nothing
tells of it, and so is writing to a log on a full disk: a sweep of days would train to its end and
fall over the line that says so, before its result is kept.

Nor do labels of a downloaded file steer the terminal: of escape sequences only those that colour
text and move the cursor, as rich has them, go through, and none that sets its clipboard or title
or has it answer, which a shell takes for typed.
"""

import errno
import io
import os
import re
import stat
import sys
from typing import Any

from sesttune.system.atomic import FULL

_STEERING = re.compile(r"\x1b(?!\[(?:[0-9;]*[A-HJKm]|\?25[hl]))|[\x07\x80-\x9f]")


class _Shown(io.FileIO):
    """The terminal or file `descriptor`; nothing once it has closed, or while its disk is full."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, text: Any, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            if error.errno in FULL:
                return len(text)
            if error.errno != errno.EIO:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(text)


class _Harmless(io.TextIOWrapper):
    """Shows what would steer a terminal as Python writes it: `\\x1b`."""

    def write(self, text: str, /) -> int:
        super().write(_STEERING.sub(lambda found: ascii(found[0])[1:-1], text))
        return len(text)


def outlive_terminal() -> None:
    """Let output and errors of this process go on when their terminal closes, or their disk fills.

    Not of pipes: who reads one decides when a command has said enough.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed from the beginning, as some services start a program
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper and not _is_pipe(stream.fileno()):
            stream.flush()
            shown = io.BufferedWriter(_Shown(stream.fileno()))
            text = _Harmless(
                shown,
                stream.encoding,
                stream.errors,
                line_buffering=stream.isatty(),
                write_through=stream.write_through,
            )
            setattr(sys, name, text)


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
