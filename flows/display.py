"""What a user sees while the flow runs: a live table on a terminal, plain lines elsewhere.

It reads the log records of the tasks, so the flow needs no code for the display.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flows import stage
from tasks.running.progress import StepProgress, clock, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

STYLE = {
    stage.RUNNING: "bold cyan",
    stage.WAITING: "yellow",
    stage.FAILED: "bold red",
    stage.RAN: "green",
    stage.RESTORED: "green",
    stage.UNCHANGED: "dim green",
}


@dataclass(frozen=True)
class StageView:
    """What is known of a stage so far."""

    state: str = "queued"
    last: StepProgress | None = None
    """The last step, with the last known value of each metric."""

    def after(self, state: str, steps: Sequence[StepProgress]) -> "StageView":
        """Return what is known after these steps."""
        last = self.last
        for step in steps:
            last = replace(step, values={**(last.values if last else {}), **step.values})
        return StageView(state, last)


class Board(logging.Handler):
    """Keeps the progress of every stage, from the records that ``flows.align`` writes."""

    def __init__(self, console: "Console", *, live: bool) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.live = live
        self.stages: dict[str, StageView] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record; Prefect's own records have no stage and no heading and are ignored."""
        if getattr(record, "heading", False):
            self.console.print(f"\n{record.getMessage()}", style="bold", highlight=False)
        if (plan := getattr(record, "stage_plan", None)) is not None:
            self.stages = {name: StageView() for name in plan}
        name = getattr(record, "stage", "")
        line = record.getMessage()
        if name:
            before = self.stages.get(name, StageView())
            state, steps = getattr(record, "stage_state", before.state), getattr(record, "stage_steps", ())
            self.stages[name] = before.after(state, steps)
        if not self.live and (name or plan is not None):
            self.console.out(f"{time.strftime('%H:%M:%S')} {line}", highlight=False)

    def table(self) -> "Table":
        """Draw the stages, one a row."""
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False)
        for head in ("stage", "", "progress", "step", "loss / reward", "KL", "tokens/s", "left"):
            drawn.add_column(head, no_wrap=True)
        for name, seen in list(self.stages.items()):
            drawn.add_row(name, Text(seen.state, style=STYLE.get(seen.state, "dim")), *_cells(seen))
        return drawn


@contextmanager
def watching(console: "Console") -> Iterator[Board]:
    """Show the stages of a flow that runs in this process."""
    from dvc.logger import setup
    from rich.live import Live

    setup(logging.CRITICAL)  # DVC's own progress bars, of calls in this process, would break the table
    board = Board(console, live=console.is_terminal)
    loggers = [logging.getLogger("prefect.task_runs"), logging.getLogger("prefect.flow_runs")]
    for logger in loggers:
        logger.addHandler(board)
    try:
        if board.live:
            with Live(get_renderable=board.table, console=console, refresh_per_second=4):
                yield board
        else:
            yield board
    finally:
        for logger in loggers:
            logger.removeHandler(board)


def _cells(seen: StageView) -> "Iterator[ProgressBar | str]":
    """Return the columns that a step fills; speed and time left only while the stage runs."""
    from rich.progress_bar import ProgressBar

    if (last := seen.last) is None:
        return
    yield ProgressBar(total=last.steps, completed=last.step, width=20)
    yield f"{last.step}/{last.steps}"
    yield _first(last.values, "reward/mean", "score/mean", "loss")
    yield _first(last.values, "kl/reference", "kl/approx")
    if seen.state == stage.RUNNING:
        yield _first(last.values, "tokens_per_second")
        yield clock(last.left_seconds)


def _first(values: Mapping[str, float], *names: str) -> str:
    return next((number(values[name]) for name in names if name in values), "")
