"""Stages in processes that are killed with SIGKILL at a given moment, and what a stage leaves.

Processes are forked from a server that has imported everything, so a start takes no time.
"""

import csv
import json
import os
import random
import signal
import time
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignflow import checkpoint
from alignflow.models.roles import SharedBase
from alignflow.sampling import kv_cache, own
from alignflow.types import Metrics
from tasks.__main__ import main
from tasks.policies import POLICIES
from tasks.running.stage import Stage
from tasks.training import reward_model, rollouts, unpaired
from tests.tasks.small_project import working_in

LOADED = (checkpoint, kv_cache, reward_model, rollouts, unpaired)
MOMENTS: dict[str, tuple[object, str]] = {
    "sampling": (own, "_choose"),  # the next token
    "step": (torch.optim.AdamW, "step"),
    "gradients": (torch.Tensor, "backward"),
    "saving": (os, "fsync"),
    "renaming": (Path, "replace"),
    "outputs": (SharedBase, "save"),
    "writing": (Path, "write_text"),
}
"""Functions before, or in the middle of, whose calls a stage is killed."""
OF_ONE_RUN = ("tokens_per_second", "train_seconds", "peak_memory_gib")
for name in ("sft", "judge_model", "transformers.models.llama.modeling_llama", "peft.tuners.lora"):
    import_module(name if "." in name else f"tasks.{name}")
for name, policy in POLICIES.items():
    if policy.learns:
        import_module(f"tasks.{name}")


def run(folder: Path, words: str, kill: tuple[str, float] | None = None) -> tuple[int, str]:
    """Run a stage in a separate process; return its exit code and what it said.

    Args:
        folder: the project.
        words: stage and item.
        kill: a moment and which call of it, or ``time`` and seconds of processor time; None: not killed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_work, args=(folder, words, kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, (folder / "said").read_text()


def _work(folder: Path, words: str, kill: tuple[str, float] | None) -> None:
    torch.set_num_threads(1)
    with (folder / "said").open("w") as said, working_in(folder):
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        _watch_generators()
        if kill:
            _kill_at(*kill)
        main(words.split())
        (folder / "seconds").write_text(str(time.process_time()))


def _watch_generators() -> None:
    """Let a training fail that draws from a generator which is no part of a checkpoint."""
    log, seen = Stage.log, list[tuple[object, ...]]()

    def watched(self: Stage, step: int, metrics: Metrics) -> None:
        state = (random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state()))
        assert state in (seen or [state]), "the training draws from a global generator"
        seen.append(state)
        log(self, step, metrics)

    Stage.log = watched  # type: ignore[method-assign]


def _kill_at(moment: str, when: float) -> None:
    if moment == "time":
        signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_PROF, when)
        return
    owner, name = MOMENTS[moment]
    real, calls = getattr(owner, name), 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)

    setattr(owner, name, call)


def outputs(folder: Path, words: str) -> dict[str, bytes]:
    """Return every file that a training stage left in artifacts, by path."""
    made = folder / "artifacts" / words.replace(" ", "/")
    return {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}


def curve(folder: Path, words: str) -> list[dict[str, str]]:
    """Return the rows of a stage's curve as they are written, without what measures one run."""
    with (folder / "plots" / f"{words.replace(' ', '/')}.csv").open(newline="") as file:
        return [_of_all_runs(row) for row in csv.DictReader(file)]


def metrics(folder: Path, words: str) -> dict[str, float]:
    """Return a stage's metrics without what measures one run."""
    found: dict[str, float] = json.loads((folder / "metrics/training" / f"{words.replace(' ', '/')}.json").read_text())
    return _of_all_runs(found)


def tracked(folder: Path, words: str) -> dict[int, list[dict[str, float]]]:
    """Return the metrics that a stage tracked at each step; a killed stage tracks some steps twice."""
    (record,) = (folder / "home/outbox").glob(f"{words.replace(' ', '@')}-*")
    found: dict[int, list[dict[str, float]]] = {}
    for line in map(json.loads, (record / "history.jsonl").read_text().splitlines()):
        values = {key: value for key, value in line["metrics"].items() if not key.startswith("final/")}
        if values:
            found.setdefault(line["step"], []).append(_of_all_runs(values))
    return found


def _of_all_runs(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in OF_ONE_RUN}
