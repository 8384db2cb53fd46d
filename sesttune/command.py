"""What every command shares: exit codes, logging, and reading its configuration.

Exit codes: 0 done, 1 nothing came out of it, 2 a mistake the user can mend
(printed as one line), 130 interrupted, by Ctrl-C, SIGTERM or SIGHUP.
"""

import argparse
import errno
import io
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sesttune.errors import UserError
from sesttune.system.terminal import outlive_terminal

if TYPE_CHECKING:
    from sesttune.config.schema import Config

Main = Callable[[Sequence[str]], int]
_FILE_WIDTH, _TABLE_WIDTH = 120, 80
_LACKING = "you lack the permission"
_FORBIDDEN = {
    errno.EACCES: _LACKING,
    errno.EPERM: _LACKING,
    errno.EROFS: "the file system is read-only",
}
_LEVELS = ("debug", "info", "warning", "error", "critical")


def run(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and turn a UserError into one line and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    outlive_terminal()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without "×" must not end a sweep
        sys.stdout.reconfigure(errors="replace")
    try:
        _log_as_asked()
        with _signals_as_interrupt():
            return main(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.filename is None or error.errno not in _FORBIDDEN:
            raise
        print(f"error: {error.filename}: {_FORBIDDEN[error.errno]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _log_as_asked() -> None:
    level = os.environ.get("SESTTUNE_LOG") or "warning"
    if level.upper() not in logging.getLevelNamesMapping():
        raise UserError(f"SESTTUNE_LOG={level} must be one of {', '.join(_LEVELS)}")
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """What a job scheduler sends at its limit, and a terminal that closes, end a command as Ctrl-C.

    But for those that it was started to ignore (nohup).
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}

    def stop(number: int, frame: object) -> None:
        if number == signal.SIGHUP:  # the kernel and the shell each send one
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def open_console() -> Console:
    """Where a person reads; a file or a pipe gets tables wide enough for a leaderboard's row.

    Text is shown as it is, a line as one: to rich `[naive]` in a label is a style and `[/x]` in a
    path an error, and a command that it has broken cannot be pasted.
    """
    unknown = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    width = _FILE_WIDTH if unknown else None
    return Console(width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table whole: a terminal narrower than it wraps its lines; rich would cut numbers."""
    width = max(_TABLE_WIDTH, console.width)
    Console(file=console.file, width=width, markup=False, emoji=False).print(table)


def program() -> str:
    """How this installation's `sesttune` is called from here: by name where it is on the PATH."""
    own = Path(sys.executable).with_name("sesttune")
    if shutil.which("sesttune") == str(own) or not own.exists():
        return "sesttune"
    here = Path.cwd()
    return str(own.relative_to(here) if own.is_relative_to(here) else own)


def resume_command(kind: str, name: str, output_dir: str) -> str:
    """The command that continues the sweep or training `name` (`kind`: sweep, train)."""
    given = shlex.join(["--resume", name, f"output_dir={output_dir}"])
    return f"{program()} {kind} {given}"


def check_output(output: Path, suffixes: Sequence[str], source: Path | None = None) -> None:
    """Raise UserError where `--output` could not be written, before anything is computed for it.

    `source` is an input file that must not be replaced.
    """
    if output.suffix not in suffixes:
        raise UserError(f"--output {output} must end in {' or '.join(suffixes)}")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: {output.parent} is not a folder that can be written")
    if source is not None and output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the input itself: name another file")


@contextmanager
def settings_as_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Errors name the flag of a setting (`flags`: setting to flag), which is what was given."""
    try:
        yield
    except UserError as error:
        told = str(error)
        for setting, flag in flags.items():
            told = told.replace(setting, flag)
        raise UserError(told) from None


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and the `key=value` overrides."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings, Hydra-style (training.lr=3e-4, ++training.lr=3e-4); "
        "sesttune/config/schema.py lists every key",
    )


def add_trial_arguments(parser: argparse.ArgumentParser) -> None:
    """Which trained head: `--sweep`, `--trial`, `--step`."""
    parser.add_argument("--sweep", metavar="NAME", help="sweep or training")
    parser.add_argument("--trial", metavar="ID", help="default: the best trial")
    parser.add_argument("--step", type=int, metavar="N", help="a checkpoint; default: best")


def read_config(args: argparse.Namespace, base: Mapping[str, object] | None = None) -> "Config":
    """The configuration of the arguments that `add_config_arguments` declared."""
    from sesttune.config.load import load_config

    return load_config(args.overrides, args.config, base)


def named(config: "Config", kind: str) -> "Config":
    """`config` with a name made from the date where it has none."""
    from sesttune.config.load import with_point

    if config.name is not None:
        return config
    return with_point(config, {"name": time.strftime(f"{kind}-%Y%m%d-%H%M%S")})
