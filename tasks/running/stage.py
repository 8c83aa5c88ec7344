"""The frame of every stage: settings in, files out, progress, tracking, checkpoints, signals and errors."""

import csv
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignflow import checkpoint, distributed
from alignflow.loops.update import Diverged
from tasks.params.sections import Params
from tasks.paths import home, stage_file
from tasks.running import processes, progress
from tasks.running.checks import is_users, tell
from tasks.running.hardware import describe, peak_memory_gib
from tasks.running.provenance import base_tag, commit, datasets, fingerprint
from tasks.stages import StageEntry, settings_of
from tasks.tracking import recorder as tracking

SAVE_SECONDS = 60.0  # at most this much work is lost by a kill, none by SIGTERM
TELL_SECONDS = 5.0  # between two lines that say how far a long piece of work is
INTERRUPTED = 143  # what a shell reports for SIGTERM


class Interrupted(Exception):
    """The stage was asked to stop; its state is saved."""


@dataclass
class Stage:
    """One run of a stage. Of several processes, only the main one tracks, writes and prints what is true for all."""

    name: str
    params: Params
    record: tracking.Recorder | tracking.Silent
    checkpoint: Path
    resume: dict[str, Any] | None
    history: list[dict[str, float]] = field(default_factory=list)
    total_steps: int = 0
    began: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _stop: bool = False

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

    def keep(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save the training state every ``SAVE_SECONDS`` and before stopping; all processes stop together."""
        stop = distributed.agree(self._stop)
        if not stop and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        if distributed.is_main():
            elapsed = time.monotonic() - self.began
            checkpoint.save(self.checkpoint, {**state(), "history": self.history, "seconds": elapsed})
        self._saved = time.monotonic()
        if stop:
            raise Interrupted(f"stopped after step {step}; the same command continues there")

    def stop(self, *_: object) -> None:
        """Ask for a stop at the end of the running step."""
        self._stop = True

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
    """Run a stage as a program: exit code 0, 1 with one clear message, or 143 when interrupted.

    Args:
        name: the stage's name, with its item: ``evaluate@dpo``.
        work: does the work and returns the stage's metrics.
        params: all settings.
        entry: from the table of stages, with its paths filled in.
    """
    used = settings_of(entry, params)
    key = f"{name}-{fingerprint(name, used, entry.inputs)}"
    stage = _open(name, key, params, used, entry.inputs)
    previous = signal.signal(signal.SIGTERM, stage.stop)
    try:
        distributed.barrier()  # all have read the checkpoint
        if stage.resume is None and distributed.is_main():
            for out in entry.outs:
                shutil.rmtree(out, ignore_errors=True)
        metrics = dict(work(stage))
    except Interrupted as stopped:
        stage.say(str(stopped))
        stage.record.finish("KILLED", {})
        distributed.barrier()  # once one process ends, the launcher ends the others
        sys.exit(INTERRUPTED)
    except Exception as error:
        stage.record.finish("FAILED", {})
        if isinstance(error, distributed.PeerLost) or not processes.tells():
            sys.exit(1)
        if stage.checkpoint.exists():
            kept = (
                "the last good state is kept; the same command continues there, other settings start from the beginning"
            )
            print(f"[{name}] {kept}", flush=True)
        if not (is_users(error) or isinstance(error, Diverged)):
            raise
        tell(name, error)
    finally:
        if distributed.world() == 1:  # one of several must not be ended by a late signal while it writes or reports
            signal.signal(signal.SIGTERM, previous)
    if distributed.is_main():
        stage.write(metrics, entry.metrics)
        stage.record.finish("FINISHED", {f"final/{k}": v for k, v in metrics.items()})
        shutil.rmtree(stage.checkpoint.parent, ignore_errors=True)


def _open(
    name: str, key: str, params: Params, used: Mapping[str, Mapping[str, object]], inputs: Sequence[str]
) -> Stage:
    path = home() / "checkpoints" / key / "state.pt"
    resume = checkpoint.load(path)
    record = _record(name, key, used, inputs) if distributed.is_main() else tracking.Silent()
    stage = Stage(name, params, record, path, resume)
    if distributed.world() > 1:
        stage.say(f"works in {distributed.world()} processes")
    if resume is not None:
        stage.history = list(resume["history"])
        stage.began -= resume["seconds"]
        stage.say(f"continues after step {resume['step']}")
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
