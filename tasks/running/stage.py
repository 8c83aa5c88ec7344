"""The frame of every stage: settings in, files out, progress, tracking, checkpoints, signals and errors."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tasks.params.read import load
from tasks.params.sections import Params
from tasks.paths import PREPARED, home, stage_file
from tasks.running import processes, progress
from tasks.running.advice import explained
from tasks.tracking import recorder as tracking

SAVE_SECONDS = 60.0  # at most so much work is lost to a kill; a SIGTERM loses none
MADE = ("artifacts", "evaluations", "metrics", "plots")  # by other stages: no data sets
SAMPLING = frozenset({"sampling", "evaluate"})  # sections of the stages that sample
OWN = ("alignflow", "tasks", "__main__")  # whose errors are told in one line; a stage runs as a program
INTERRUPTED = 143  # what a shell reports for SIGTERM


class Interrupted(Exception):
    """The stage was told to stop; its state is saved."""


@dataclass
class Stage:
    """One run of a stage; of several processes, the main one alone tracks, writes and prints what is true of all."""

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
        from alignflow import distributed

        if distributed.is_main():
            self.announce(text)

    def announce(self, text: str) -> None:
        """Print a line that may be true of this process alone; all but the main one are named by their numbers."""
        from alignflow import distributed

        rank = distributed.rank()
        where = f", process {rank}" if rank else ""
        print(f"[{self.name}{where}] {text}", flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show, keep and track the metrics of an optimiser step."""
        from alignflow import distributed

        self.history.append({"step": step, **metrics})
        self.record.log(step, metrics)
        done = [row for row in self.history if "tokens_per_second" in row]
        spent = sum(row["tokens"] / max(row["tokens_per_second"], 1e-9) for row in done)
        left = spent / max(len(done), 1) * (self.total_steps - step)
        if distributed.is_main():
            progress.write(progress.StepProgress(step, self.total_steps, metrics, left), self.say)

    def keep(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save the training state now and then, and before stopping; all processes stop together."""
        from alignflow import checkpoint, distributed

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

    def write(self, metrics: Mapping[str, float]) -> None:
        """Write the stage's metrics file and its learning curve."""
        path = stage_file("metrics", self.name, ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(metrics), indent=2) + "\n")

    def write_curve(self) -> None:
        """Write the history as CSV: a column a metric, a row a step."""
        path = stage_file("plots", self.name, ".csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(key for row in self.history for key in row)) or ["step"]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)

    def training_metrics(self) -> dict[str, float]:
        """Return what every training stage reports: costs, and the last values of its curve."""
        from tasks.running.hardware import peak_memory_gib

        last = self.history[-1] if self.history else {}
        return {
            **{key: value for key, value in last.items() if key != "step"},
            "steps": float(len(self.history)),
            "trained_tokens": sum(row.get("tokens", 0.0) for row in self.history),
            "train_seconds": time.monotonic() - self.began,
            "peak_memory_gib": peak_memory_gib(),
        }


def run(
    name: str,
    work: Callable[[Stage], Mapping[str, float]],
    *,
    sections: Sequence[str],
    inputs: Sequence[str],
    outs: Sequence[str] = (),
    shared: bool = False,
) -> None:
    """Run a stage as a program: exit code 0, 1 with one clear message, or 143 when interrupted.

    Args:
        name: the stage's name in dvc.yaml.
        work: does the work and returns the stage's metrics.
        sections: sections of params.yaml that it uses.
        inputs: files and folders that it reads.
        outs: folders it writes, emptied before it starts anew.
        shared: whether several processes can do the work together, each calling ``work``; ``ALIGNFLOW_PROCESSES``
            then says how many.
    """
    params = _enter(name, sections, inputs, shared=shared)
    from alignflow import distributed

    used = {section: getattr(params, section).model_dump() for section in sections}
    key = f"{name}-{_fingerprint(name, used, inputs)}"
    stage = _open(name, key, params, used, inputs)
    previous = signal.signal(signal.SIGTERM, stage.stop)
    try:
        distributed.barrier()  # all have read the state that the main one goes on from
        if stage.resume is None and distributed.is_main():
            for out in outs:
                shutil.rmtree(out, ignore_errors=True)
        metrics = dict(work(stage))
    except Interrupted as stopped:
        stage.say(str(stopped))
        stage.record.finish("KILLED", {})
        distributed.barrier()  # the launcher ends those that are left once one has ended
        sys.exit(INTERRUPTED)
    except Exception as error:
        stage.record.finish("FAILED", {})
        if isinstance(error, distributed.PeerLost) or not processes.tells():
            sys.exit(1)
        if stage.checkpoint.exists():
            kept = "the last good state is kept; the same command continues there, other settings start anew"
            print(f"[{name}] {kept}", flush=True)
        if not _is_users(error):
            raise
        _fail(name, error)
    finally:
        if distributed.world() == 1:  # one of several must not be ended by a late signal while it writes or tells
            signal.signal(signal.SIGTERM, previous)
    if distributed.is_main():
        stage.write(metrics)
        stage.record.finish("FINISHED", {f"final/{k}": v for k, v in metrics.items()})
        shutil.rmtree(stage.checkpoint.parent, ignore_errors=True)


def _enter(name: str, sections: Sequence[str], inputs: Sequence[str], *, shared: bool) -> Params:
    """Return the settings in a process that is to do the work; one that starts several ends here, when they have."""
    quiet()
    try:
        joined = processes.join(shared=shared)
        params = load(Path("params.yaml"))
        _check_inputs(inputs)
        count = processes.wanted() if shared and not joined else 1
        if count == 1 and SAMPLING.intersection(sections):
            from tasks.training.sampling import check_engine

            check_engine(params)
    except (FileNotFoundError, ValueError) as error:
        if not processes.tells():
            sys.exit(1)
        if not (isinstance(error, FileNotFoundError) or _is_users(error)):
            raise
        _fail(name, error)
    if count > 1:
        sys.exit(processes.launch(name, count))
    return params


def _open(
    name: str, key: str, params: Params, used: Mapping[str, Mapping[str, object]], inputs: Sequence[str]
) -> Stage:
    from alignflow import checkpoint, distributed

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
    from alignflow import distributed
    from tasks.running.hardware import describe

    parent = os.environ.get("ALIGNFLOW_PARENT")
    place = {"hardware": describe(), "processes": str(distributed.world())}
    return tracking.start(
        f"{key}-{Path(parent).name}" if parent else key,
        name=name,
        params=used,
        tags={"stage": name, **place, **_commit(), **_base_tag()},
        datasets=_datasets(inputs),
        parent=Path(parent) if parent else None,
    )


def _fingerprint(name: str, used: object, inputs: Sequence[str]) -> str:
    """Return a short hash of everything that a checkpoint depends on, so that no other setting resumes from it."""
    digest = hashlib.sha256(json.dumps([name, used], sort_keys=True, default=str).encode())
    for path in map(Path, inputs):
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(file.as_posix().encode())
            digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()[:16]


def sha256(path: Path) -> str:
    """Return a file's digest without holding the file in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_inputs(inputs: Sequence[str]) -> None:
    for path in inputs:
        if not Path(path).exists():
            made = path.startswith((*MADE, PREPARED.as_posix()))
            advice = (
                "run the stage that makes it, e.g. with `dvc repro`" if made else f"params.yaml names it{_hub(path)}"
            )
            raise FileNotFoundError(f"{path} is missing; {advice}")


def _hub(path: str) -> str:
    """Return how to name a data set of the Hub, should a path be meant as one."""
    if path.count("/") != 1 or Path(path).suffix:
        return ""
    source = f"{{path: {path}, revision: COMMIT, split: train, weight: 1}}"
    return f"; a data set of the Hugging Face Hub goes into data.sources: [{source}]"


def _datasets(inputs: Sequence[str]) -> list[dict[str, str]]:
    found = [Path(p) for p in inputs if not p.startswith(MADE)]
    inside = [(p, sorted(p.glob("*.jsonl") if p == PREPARED else p.rglob("*")) if p.is_dir() else [p]) for p in found]
    files = [file for _, files in inside for file in files if file.is_file()]
    return [
        {
            "name": f.as_posix(),
            "digest": sha256(f)[:16],
            "source": f.as_posix(),
            "context": "evaluation" if f.stem == "eval" else "training",
        }
        for f in files
    ]


def _base_tag() -> dict[str, str]:
    identity = Path("artifacts/base/identity.json")
    if not identity.exists():
        return {}
    content = json.loads(identity.read_text())
    return {"base": content["model"], "base.sha256": content["sha256"]}


def _commit() -> dict[str, str]:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"git.commit": found.stdout.strip()} if found.returncode == 0 else {}


def _is_users(error: Exception) -> bool:
    """Return whether an error is told in one line: it names what the user can mend."""
    if type(error).__module__.split(".")[0] not in OWN:
        return False
    if isinstance(error, ValueError):
        return True
    from alignflow.loops.update import Diverged

    return isinstance(error, Diverged)


def _fail(name: str, error: Exception) -> NoReturn:
    print(f"[{name}] error: {explained(error)}", file=sys.stderr, flush=True)
    sys.exit(1)


def quiet() -> None:
    """Keep the libraries' progress bars and notices out of the stage's lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it offers a kernel for inference that is not used
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
