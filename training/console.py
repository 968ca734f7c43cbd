"""What a person reads in the terminal before and after the bar: tables, single lines, the end."""

import os
import sys

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from training.charts import PAGE
from training.module import Trained
from training.progress import duration
from training.runs import Run

# off a terminal nothing is folded; of several processes the first speaks
out = Console(
    highlight=False,
    width=None if sys.stdout.isatty() else 160,
    quiet=os.environ.get("RANK", "0") != "0",
)


def show(table: RenderableType) -> None:
    out.print(table, soft_wrap=not out.is_terminal)


def say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)


def closing(run: Run, module: Trained, took_s: float) -> None:
    """What was trained, how well it does, and where it lies."""
    best = run.best()
    rows = [
        ("steps", f"{module.step}, of which {module.guard.skipped} skipped"),
        ("took", duration(took_s)),
        *([("broken", f"{module.broken} samples could not be read")] if module.broken else []),
        ("held out", ", ".join(told(module.validation)) or "not validated"),
        ("best", str(best) if best else "none"),
        ("board", f"tensorboard --logdir {run.folder}"),
        ("open", f"{PAGE}, the plots that matter side by side"),
    ]
    grid = Table(title="Trained", title_justify="left", show_header=False, box=None)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    show(grid)


def told(validation: dict[str, float]) -> list[str]:
    """The measures that stand for all: not those of single noise levels and buckets."""
    return [f"{name} {value:.4g}" for name, value in validation.items() if "/" not in name]
