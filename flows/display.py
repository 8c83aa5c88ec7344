"""What a user sees while the flow runs: a live table on a terminal, plain lines elsewhere.

Fed by the log records of the tasks, so the flow itself knows nothing of a display.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flows import stage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STEP = re.compile(r"^\[([^\]]+)\] step (\d+)/(\d+)((?: \| .+)*)$")

STYLE = {
    stage.RUNNING: "bold cyan",
    stage.WAITING: "yellow",
    stage.FAILED: "bold red",
    stage.RAN: "green",
    stage.RESTORED: "green",
    stage.UNCHANGED: "dim green",
}


@dataclass(frozen=True)
class Progress:
    """What is known of a stage from its lines so far."""

    state: str = "queued"
    step: int = 0
    steps: int = 0
    values: Mapping[str, str] = field(default_factory=dict)
    """By name, as the stage printed them: ``loss``, ``kl/reference``, ``tokens_per_second``, ``left``."""

    def after(self, state: str, line: str) -> "Progress":
        """Return what is known once this line was read."""
        found = STEP.match(line)
        if not found:
            return replace(self, state=state)
        parts = [part.rsplit(" ", 1) for part in found[4].split(" | ")[1:]]
        values = {pair[0]: pair[1] for pair in parts if len(pair) == 2}
        return Progress(state, int(found[2]), int(found[3]), {**self.values, **values})


class Board(logging.Handler):
    """Keeps the progress of every stage, from the records that ``flows.align`` writes."""

    def __init__(self, console: "Console", *, live: bool) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.live = live
        self.stages: dict[str, Progress] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one record; ones of Prefect itself carry no stage and are left out."""
        if (plan := getattr(record, "stage_plan", None)) is not None:
            self.stages = {name: Progress() for name in plan}
        name = getattr(record, "stage", "")
        line = record.getMessage()
        if name:
            before = self.stages.get(name, Progress())
            self.stages[name] = before.after(getattr(record, "stage_state", before.state), line)
        if not self.live and (name or plan is not None):
            self.console.out(f"{time.strftime('%H:%M:%S')} {line}", highlight=False)

    def table(self) -> "Table":
        """Draw the stages, one a row."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False)
        for head in ("stage", "", "progress", "step", "loss / reward", "KL", "tokens/s", "left"):
            drawn.add_column(head, no_wrap=True)
        for name, seen in list(self.stages.items()):
            busy = seen.state == stage.RUNNING
            drawn.add_row(
                name,
                Text(seen.state, style=STYLE.get(seen.state, "dim")),
                ProgressBar(total=seen.steps, completed=seen.step, width=20) if seen.steps else "",
                f"{seen.step}/{seen.steps}" if seen.steps else "",
                _first(seen.values, "reward/mean", "score/mean", "loss"),
                _first(seen.values, "kl/reference", "kl/approx"),
                _first(seen.values, "tokens_per_second") if busy else "",
                _first(seen.values, "left") if busy else "",
            )
        return drawn


@contextmanager
def watching(console: "Console") -> Iterator[Board]:
    """Show the stages of a flow that runs in this process."""
    from dvc.logger import setup
    from rich.live import Live

    setup(logging.CRITICAL)  # DVC's own progress bars, of calls in this process, would tear the table
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


def _first(values: Mapping[str, str], *names: str) -> str:
    return next((values[name] for name in names if name in values), "")
