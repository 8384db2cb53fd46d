"""Progress bars for what takes more than seconds: how many, how many a second, how long still."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sesttune.system import cached_folder


class RateColumn(ProgressColumn):
    """Units a second, as measured over the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.speed or 0.0
        shown = f"{speed:,.0f}/s" if speed >= 100 else f"{speed:.3g}/s"
        return Text(shown if speed else "", style="progress.data.speed")


@contextmanager
def progress_bars(console: Console) -> Iterator[cached_folder.Progress]:
    """A function of (what, done, total) that keeps a bar for each `what`; quiet off a terminal."""
    if not console.is_terminal:
        yield cached_folder.no_progress  # of a disabled Progress rich before 14.3 prints a line
        return
    columns = (
        TextColumn("{task.description}", markup=False),  # it may hold a file's name
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield show
