"""The frame of every stage: settings in, files out, progress, tracking, checkpoints, signals and errors."""

import csv
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch

from alignflow import distributed
from alignflow.checkpoint import State
from alignflow.loops.update import Diverged
from alignflow.memory import Budget
from tasks.params.sections import Params
from tasks.paths import stage_file
from tasks.running import processes, progress
from tasks.running.checkpoints import Checkpoints, checkpoints_of
from tasks.running.checks import is_users, tell
from tasks.running.hardware import describe, peak_memory_gib
from tasks.running.provenance import base_tag, commit, datasets
from tasks.stages import StageEntry, settings_of
from tasks.tracking import recorder as tracking

Result = TypeVar("Result")
TELL_SECONDS = 5.0  # between two lines that say how far a long piece of work is
KILLED = 128  # plus the number of the signal: what a shell reports


class Interrupted(Exception):
    """The stage was asked to stop; its state is saved."""

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.signal = signal


@dataclass
class Stage:
    """One run of a stage. Of several processes, only the main one tracks, writes and prints what is true for all."""

    name: str
    params: Params
    record: tracking.Recorder | tracking.Silent
    checkpoints: Checkpoints
    restored: State | None = None
    """What the last checkpoint holds."""
    resume: State | None = None
    """The part of it that the training gave to ``keep``; None: it has no step yet."""
    history: list[dict[str, float]] = field(default_factory=list)
    total_steps: int = 0
    began: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _chance: float = field(default_factory=time.monotonic)
    """When it could last save."""
    _stop: int = 0
    """The signal that asked for a stop."""
    _save: bool = False
    """A signal asked for a checkpoint."""
    step: int = 0
    """The last one that ended."""
    _state: Callable[[], State] | None = None
    """Of the training after that step."""
    _kept: dict[str, Any] = field(default_factory=dict)
    """Results and decisions that hold for the whole stage, resumed ones too."""
    _budgets: dict[str, Budget] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    """Of the budgets of the run that is resumed."""

    def __post_init__(self) -> None:
        """Take over what the checkpoint holds."""
        if self.restored is None:
            return
        self.resume, self._kept, self.history = (self.restored[name] for name in ("training", "kept", "history"))
        self._sizes = self.restored["budgets"][distributed.rank()]
        self.began -= self.restored["seconds"]
        if self.resume is not None:
            self.step, self._state = self.resume["step"], lambda: self.resume or {}
        if not torch.cuda.is_available():
            torch.set_num_threads(self.restored["threads"])  # sums depend on it

    def say(self, text: str) -> None:
        """Print a line of this stage."""
        if distributed.is_main():
            self.announce(text)

    def announce(self, text: str) -> None:
        """Print a line that may be true for this process only; all except the main one add their rank."""
        rank = distributed.rank()
        where = f", process {rank}" if rank else ""
        print(f"[{self.name}{where}] {text}", flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show, keep and track the metrics of an optimiser step."""
        self.history.append({"step": step, **metrics})
        self.record.log(step, metrics)
        done = [row for row in self.history if "tokens_per_second" in row]
        spent = sum(row["tokens"] / max(row["tokens_per_second"], 1e-9) for row in done)
        left = spent / max(len(done), 1) * (self.total_steps - step)
        if distributed.is_main():
            progress.write(progress.StepProgress(step, self.total_steps, metrics, left), self.say)

    def progress(self, what: str) -> Callable[[float], None]:
        """Return what receives the share of some work that is done, and says it every few seconds."""
        began = said = time.monotonic()

        def tell(share: float) -> None:
            nonlocal said
            now = time.monotonic()
            if share >= 1 or now - said < TELL_SECONDS or not distributed.is_main():
                return
            said = now
            left = (1 - share) * (now - began) / max(share, 1e-9)
            line = f"{what}: {share:.0%} | left {progress.clock(left)}"
            progress.write(progress.StepProgress(round(100 * share), 100, {}, left), lambda _: self.say(line))

        return tell

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """Do a part of the work, unless an earlier run of the stage did: its result holds for resumed runs, too.

        For what decides later bytes and a resumed run might do otherwise, such as sampled pairs. All processes ask for
        the same parts in the same order.

        Args:
            name: of the part.
            work: returns tensors, numbers, texts, and lists and mappings of them, the same in all processes; runs
                before, between or after steps.
        """
        if name not in self._kept:
            self._kept[name] = work()
            self._checkpoint()
        found: Result = self._kept[name]
        return found

    def budget(self, name: str, size: int) -> Budget:
        """Return the budget of some passes, as small as memory has made it, in resumed runs, too.

        Args:
            name: of the passes; one name has one budget.
            size: at first.
        """
        if name not in self._budgets:
            self._budgets[name] = Budget(self._sizes.get(name, size), self.announce)
        return self._budgets[name]

    def keep(self, step: int, state: Callable[[], State]) -> None:
        """Save the training state after a step where it is time, and before stopping; all processes stop together."""
        self.step, self._state = step, state
        self._checkpoint()

    def _checkpoint(self) -> None:
        """Save where the next chance, as far away as the last, may come after ``checkpoint.seconds``, or if asked."""
        now = time.monotonic()
        due = 2 * now - self._saved - self._chance >= self.params.checkpoint.seconds
        self._chance = now
        asked = distributed.gather((self._stop, due or self._save))
        stop = max(number for number, _ in asked)
        saved = True
        if stop or any(save for _, save in asked):
            saved = self._write_checkpoint()
        if stop:
            where = "there" if saved else "after the last checkpoint"
            raise Interrupted(f"stopped after step {self.step}; the same command continues {where}", stop)

    def _write_checkpoint(self) -> bool:
        """Save; where the disk refuses, say so, go on, and try again after the next step."""
        state = {
            "training": self._state() if self._state else None,
            "kept": self._kept,
            "budgets": distributed.gather({**self._sizes, **{n: budget.size for n, budget in self._budgets.items()}}),
            "history": self.history,
            "seconds": time.monotonic() - self.began,
            "threads": torch.get_num_threads(),
        }
        problem = ""
        if distributed.is_main():
            try:
                self.checkpoints.save(state)
            except OSError as error:
                problem = error.strerror or str(error)
        if problem := distributed.gather(problem)[0]:
            self.say(f"cannot save a checkpoint ({problem}): goes on and tries again after the next step")
            return False
        self._saved, self._save = time.monotonic(), False
        return True

    def stop(self, number: int = signal.SIGTERM, _: FrameType | None = None) -> None:
        """Ask for a stop at the end of the running step; a second Ctrl-C stops at once."""
        if self._stop == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop = number

    def save(self, _: int = signal.SIGUSR1, __: FrameType | None = None) -> None:
        """Ask for a checkpoint at the end of the running step."""
        self._save = True

    def write(self, metrics: Mapping[str, float], folder: str) -> None:
        """Write the stage's metrics file."""
        path = stage_file(folder, self.name, ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(metrics), indent=2) + "\n")

    def write_curve(self) -> None:
        """Write the history as CSV: one column per metric, one row per step."""
        path = stage_file("plots", self.name, ".csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(key for row in self.history for key in row)) or ["step"]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)

    def training_metrics(self) -> dict[str, float]:
        """Return what every training stage reports: costs, and the last values of its curve."""
        last = self.history[-1] if self.history else {}
        return {
            **{key: value for key, value in last.items() if key != "step"},
            "steps": float(len(self.history)),
            "trained_tokens": sum(row.get("tokens", 0.0) for row in self.history),
            "train_seconds": time.monotonic() - self.began,
            "peak_memory_gib": peak_memory_gib(),
        }


def run(name: str, work: Callable[[Stage], Mapping[str, float]], params: Params, entry: StageEntry) -> None:
    """Run a stage as a program: exit code 0, 1 with one clear message, or 143 or 130 when SIGTERM or Ctrl-C stopped it.

    Args:
        name: the stage's name, with its item: ``evaluate@dpo``.
        work: does the work and returns the stage's metrics.
        params: all settings.
        entry: from the table of stages, with its paths filled in.
    """
    stage = _open(name, params, settings_of(entry, params), entry.inputs)
    with _heeding_signals(stage):
        try:
            distributed.barrier()  # all have read the checkpoint
            if stage.restored is None and distributed.is_main():
                for out in entry.outs:
                    shutil.rmtree(out, ignore_errors=True)
            metrics = dict(work(stage))
        except (Interrupted, KeyboardInterrupt) as stopped:
            _stopped(stage, stopped)
        except Exception as error:
            _failed(stage, error)
            raise
    if distributed.is_main():
        stage.write(metrics, entry.metrics)
        stage.record.finish("FINISHED", {f"final/{k}": v for k, v in metrics.items()})
        stage.checkpoints.remove()


@contextmanager
def _heeding_signals(stage: Stage) -> Iterator[None]:
    """Save and stop on SIGTERM and Ctrl-C, save and go on with SIGUSR1."""
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGTERM: stage.stop,
        signal.SIGINT: stage.stop,
        signal.SIGUSR1: stage.save,
    }
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        if distributed.world() == 1:  # one of several must not be ended by a late signal while it writes or reports
            for number, earlier in previous.items():
                signal.signal(number, earlier)


def _stopped(stage: Stage, stopped: Interrupted | KeyboardInterrupt) -> NoReturn:
    stage.record.finish("KILLED", {})
    if isinstance(stopped, KeyboardInterrupt):
        sys.exit(KILLED + signal.SIGINT)
    stage.say(str(stopped))
    distributed.barrier()  # once one process ends, the launcher ends the others
    sys.exit(KILLED + stopped.signal)


def _failed(stage: Stage, error: Exception) -> None:
    """Report an error in one line and end the process, unless a traceback has to show where it is."""
    stage.record.finish("FAILED", {})
    if isinstance(error, distributed.PeerLost) or not processes.tells():
        sys.exit(1)
    if stage.checkpoints.exist():
        kept = "the last good state is kept; the same command continues there, other settings start from the beginning"
        print(f"[{stage.name}] {kept}", flush=True)
    if is_users(error) or isinstance(error, Diverged):
        tell(stage.name, error)


def _open(name: str, params: Params, used: Mapping[str, Mapping[str, object]], inputs: Sequence[str]) -> Stage:
    checkpoints = checkpoints_of(name, used, inputs)
    restored, said = checkpoints.load()
    record = _record(name, checkpoints.key, used, inputs) if distributed.is_main() else tracking.Silent()
    stage = Stage(name, params, record, checkpoints, restored)
    if distributed.world() > 1:
        stage.say(f"works in {distributed.world()} processes")
    if said:
        stage.say(said)
    if restored is not None:
        stage.say(f"continues after step {stage.step}")
    return stage


def _record(name: str, key: str, used: Mapping[str, Mapping[str, object]], inputs: Sequence[str]) -> tracking.Recorder:
    parent = os.environ.get("ALIGNFLOW_PARENT")
    place = {"hardware": describe(), "processes": str(distributed.world())}
    return tracking.start(
        f"{key}-{Path(parent).name}" if parent else key,
        name=name,
        params=used,
        tags={"stage": name, **place, **commit(), **base_tag()},
        datasets=datasets(inputs),
        parent=Path(parent) if parent else None,
    )
