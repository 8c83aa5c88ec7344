"""The progress of a stage, written once for programs and once for people.

For programs: one line of JSON a step, in the file that ``ALIGNFLOW_PROGRESS`` names; a flow names a new file for each
run of a stage. For people: one line of text on standard output. The JSON line is written first, so a program
that sees the text line finds the JSON line.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

VARIABLE = "ALIGNFLOW_PROGRESS"
SHOWN = (
    "loss",
    "reward/mean",
    "score/mean",
    "rewards/accuracy",
    "rewards/margin",
    "kl/reference",
    "truncated_fraction",
    "tokens_per_second",
)
"""The metrics in the line for people, in this order."""


@dataclass(frozen=True)
class StepProgress:
    """How far a stage is after one step."""

    step: int
    steps: int
    """In the whole stage."""
    values: Mapping[str, float]
    """All metrics of the step by name, such as ``loss`` and ``kl/reference``."""
    left_seconds: float
    """Estimate of the time that the remaining steps take."""

    @property
    def text(self) -> str:
        """The line for people, without the name of the stage."""
        shown = [f"{key} {number(self.values[key])}" for key in SHOWN if key in self.values]
        return " | ".join([f"step {self.step}/{self.steps}", *shown, f"left {clock(self.left_seconds)}"])


def write(progress: StepProgress, say: Callable[[str], None]) -> None:
    """Write a step for programs, where a file is named, and then for people."""
    if path := os.environ.get(VARIABLE):
        line = json.dumps(asdict(progress), default=float) + "\n"
        with suppress(OSError), Path(path).open("a") as file:  # a full disk must not end a training here
            file.write(line)
    say(progress.text)


@dataclass
class Reader:
    """Reads the file of a running stage."""

    path: Path
    _read: int = field(default=0, init=False)
    """Bytes read so far."""

    def new(self) -> list[StepProgress]:
        """Return the steps since the last call; a line that is half written waits for the next call."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            complete, end, _ = file.read().rpartition(b"\n")
        self._read += len(complete + end)
        found: list[StepProgress] = []
        for line in complete.splitlines():
            with suppress(ValueError):  # a full disk has cut the line
                found.append(StepProgress(**json.loads(line)))
        return found


def number(value: float) -> str:
    """Return a metric's value in a few characters."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
