"""What a person sees in the terminal: a bar while it runs, a table at the end.

Off a terminal (a pipe, a log, CI) only the closing table is printed, plain.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line beside the work, on standard error."""
    err.print(line, markup=False, soft_wrap=True)


class _Count(ProgressColumn):
    """How many are finished; a file that is under way counts in part, and shows when it is done."""

    def render(self, task) -> Text:
        return Text(
            f"{int(task.completed + 1e-6)}/{'?' if task.total is None else int(task.total)}"
        )


class _Rate(ProgressColumn):
    """Units a second, or a minute where they are slow, since the start: files come in bursts."""

    def render(self, task) -> Text:
        if not task.completed or not task.elapsed:
            return Text("–")
        speed, unit = task.completed / task.elapsed, task.fields["unit"]
        return Text(f"{speed:.1f} {unit}/s" if speed >= 1 else f"{speed * 60:.1f} {unit}/min")


class _Left(ProgressColumn):
    """Time left, at the rate so far."""

    def render(self, task) -> Text:
        if not task.completed or not task.elapsed or task.total is None:
            return Text("")
        left = task.elapsed * (task.total - task.completed) / task.completed
        return Text(f"{hours(left)} left")


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars with rate and time left; nothing at all off a terminal."""
    progress = Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=None),
        _Count(),
        _Rate(),
        _Left(),
        TextColumn("{task.fields[note]}"),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    with progress:
        yield progress


def hours(seconds: float) -> str:
    """A duration as people write it: 12.3 s, 4 min 5 s, 7.5 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as people write them: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """The closing table, on standard output: a name and a value a row."""
    grid = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    grid.add_column(style="dim" if out.is_terminal else "", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    out.print(grid, soft_wrap=not out.is_terminal)
