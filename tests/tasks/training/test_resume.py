"""Every training: killed several times and started again, it leaves the bytes of an uninterrupted one."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.loops import update
from alignflow.memory import part
from alignflow.models.roles import SharedBase
from tasks.params.edit import override
from tasks.policies import POLICIES
from tasks.running.stage import Stage
from tasks.stages import STAGES, TRAINING, samples
from tasks.training import sampling, shard_pairs
from tests.tasks import test_mcts_dpo, test_step_dpo
from tests.tasks.small_project import QUIET, ROOT, set_up, stage, working_in
from tests.tasks.training import killing

STEPS = 4
COMMON = ["sft.steps=1", "reward_model.steps=1", "checkpoint.seconds=0"]


def _of_steps(settings: list[str]) -> list[str]:
    """Return settings of a test of pairs of steps that a separate process can have."""
    return [one for one in settings if not one.startswith("policies=") and ".checker=" not in one]


CASES: dict[str, tuple[str, list[str]]] = {
    "sft": ("sft", []),
    "reward model": ("reward_model", []),
    "reward model, head first": ("reward_model", ["reward_model.head_steps=5"]),
    "reward model, head alone": ("reward_model", ["reward_model.head_steps=5", "reward_model.steps=0"]),
    "judge model": ("judge_model", []),
    "dpo": ("dpo", []),
    "step dpo": ("step_dpo", _of_steps(test_step_dpo.SETTINGS)),
    "mcts dpo": ("mcts_dpo", _of_steps(test_mcts_dpo.SETTINGS)),
    "iterative dpo": ("iterative_dpo round-1", []),
    "ppo": ("ppo", ["ppo.kl_target=0.01", "ppo.epochs=2"]),  # the coefficient of the KL moves from step to step
    "grpo": ("grpo", ["grpo.zero_variance=resample"]),
    "rloo": ("rloo", []),
    "kto": ("kto", []),
    "sft_more": ("sft_more", []),
}


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with what every training starts from."""
    folder = tmp_path_factory.mktemp("project") / "start"
    folder.mkdir()
    set_up(folder, tiny)
    (folder / "rewards").mkdir()
    (folder / "rewards/no_z.py").write_text(test_step_dpo.RULE)
    override(folder / "params.yaml", COMMON)
    with working_in(folder):
        for name in ("base", "prepare", "sft", "reward_model"):
            stage(name)
    return folder


def copied(place: Path, folder: Path, *settings: str) -> Path:
    """Return a copy of a project with other settings and no state."""
    shutil.copytree(place, folder, ignore=shutil.ignore_patterns("home"))
    override(folder / "params.yaml", list(settings))
    return folder


def test_every_training_has_a_case():
    trained = {name for name, entry in STAGES.items() if entry.metrics == TRAINING}
    assert {words.split()[0] for words, _ in CASES.values()} == trained
    assert {name for name, policy in POLICIES.items() if policy.learns} <= trained


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_killed_again_and_again_leaves_the_bytes_of_one_that_is_not(
    place: Path, tmp_path: Path, case: str
):
    """At drawn moments: between two tokens, within an update, while a checkpoint or the outputs are written."""
    words, settings = CASES[case]
    settings = [f"{words.split()[0]}.steps={STEPS}", *settings]
    whole, killed = (copied(place, tmp_path / kind, *settings) for kind in ("whole", "killed"))
    assert killing.run(whole, words)[0] == 0
    kills = 0
    for kill in [*moments(words, whole, random.Random(case)), None]:
        code, said = killing.run(killed, words, kill)
        assert code in (0, -signal.SIGKILL), said
        kills += code != 0
        if code == 0:  # or the moment did not come: the next run starts from the beginning
            check_alike(killed, whole, words)
    assert code == 0
    assert kills >= 5


def moments(words: str, whole: Path, draw: random.Random) -> list[tuple[str, float]]:
    """Return when to kill a training, run by run; the outputs are written last."""
    found: list[tuple[str, float]] = [
        ("step", draw.randint(2, 3)),
        ("gradients", draw.randint(2, 3)),
        ("saving", draw.randint(1, 9)),
        ("renaming", draw.randint(1, 4)),
        ("time", draw.uniform(0, float((whole / "seconds").read_text()))),
    ]
    if samples(STAGES[words.split(maxsplit=1)[0]]):
        found.append(("sampling", draw.randint(1, 12)))
    draw.shuffle(found)
    return [*found, ("outputs", 1), ("writing", draw.randint(1, 3))]


def check_alike(killed: Path, whole: Path, words: str) -> None:
    assert killing.outputs(killed, words) == killing.outputs(whole, words)
    assert killing.metrics(killed, words) == killing.metrics(whole, words)
    assert killing.curve(killed, words) == killing.curve(whole, words)
    tracked, once = killing.tracked(killed, words), killing.tracked(whole, words)
    assert tracked.keys() == once.keys()
    assert all(row == once[step][0] for step, rows in tracked.items() for row in rows)
    assert not list((killed / "home/checkpoints").rglob("*.*")), "a finished stage leaves no checkpoint"


def stop_after(step: int, words: str, patch: pytest.MonkeyPatch) -> None:
    """Run a stage that is asked to stop in a step."""
    original = Stage.log

    def log(self: Stage, at: int, metrics: Mapping[str, float]) -> None:
        original(self, at, metrics)
        if at == step:
            self.stop()

    with patch.context() as within:
        within.setattr(Stage, "log", log)
        with pytest.raises(SystemExit) as stopped:
            stage(*words.split())
    assert stopped.value.code == 143


def test_a_resumed_round_of_iterative_dpo_goes_on_with_the_pairs_it_had(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Even where sampling would now give others, as it does with another budget of memory."""
    words = CASES["iterative dpo"][0]
    whole, resumed, other = (copied(place, tmp_path / name) for name in ("whole", "resumed", "other"))
    original, sampled = shard_pairs.sample, list[int]()

    def otherwise(*given: Any, seed: int, **more: Any) -> Any:
        sampled.append(seed)
        return original(*given, seed=seed + 1, **more)

    with working_in(whole):
        stage(*words.split())
    with working_in(resumed):
        stop_after(2, words, monkeypatch)
    monkeypatch.setattr(shard_pairs, "sample", otherwise)
    with working_in(resumed):
        stage(*words.split())
    assert not sampled
    assert killing.outputs(resumed, words) == killing.outputs(whole, words)
    assert killing.metrics(resumed, words) == killing.metrics(whole, words)
    with working_in(other):
        stage(*words.split())
    assert sampled
    assert killing.outputs(other, words)["pairs.jsonl"] != killing.outputs(whole, words)["pairs.jsonl"]


@pytest.mark.parametrize(("words", "times"), [("dpo", 1), ("grpo", 3)])
def test_a_resumed_training_cuts_its_batches_as_memory_forced_it_to_before(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, times: int
):
    folders = [copied(place, tmp_path / name, f"{words}.batch_size=4") for name in ("whole", "resumed", "enough")]
    whole, resumed, enough = folders
    original, left = update._accumulate, 0

    def accumulate(*given: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            with part(0):
                raise torch.OutOfMemoryError("of a test")
        return original(*given)

    monkeypatch.setattr(update, "_accumulate", accumulate)
    for folder in folders:
        left = 0 if folder == enough else times
        with working_in(folder):
            if folder == resumed:
                stop_after(1, words, monkeypatch)
            stage(words)
    assert killing.outputs(resumed, words) == killing.outputs(whole, words)
    assert killing.outputs(enough, words) != killing.outputs(whole, words), "the cut decides the last digits"


def test_a_resumed_training_samples_through_the_layers_that_it_chose(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, merged = copied(place, tmp_path / "project", "grpo.steps=3"), list[str]()
    original = SharedBase.merged

    def noted(self: SharedBase, role: str) -> Any:
        merged.append(role)
        return original(self, role)

    monkeypatch.setattr(SharedBase, "merged", noted)
    with working_in(folder):
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "free_memory", lambda _: 0)
            stop_after(1, "grpo", patch)
        stage("grpo")
        assert not merged, "memory was short at first"
        stage("grpo")
    assert len(merged) == 3


def repro(folder: Path, *, kill_at: str = "") -> tuple[int, str]:
    """Run sft with DVC; kill DVC and the stage where a text is said. Return the exit code and what was said."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "sft"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = os.pathsep.join([str(folder / "start"), str(folder)])
    env = {**os.environ, "PATH": path, "PYTHONPATH": code, "ALIGNFLOW_HOME": str(folder / "home")}
    pipe, said = subprocess.PIPE, list[str]()
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if kill_at and kill_at in line:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, "".join(said)


@pytest.mark.long
def test_a_training_that_is_killed_with_dvc_goes_on_when_dvc_runs_again(place: Path, tmp_path: Path):
    whole, killed = (copied(place, tmp_path / name, "sft.steps=100") for name in ("whole", "killed"))
    for folder in (whole, killed):
        for code in ("alignflow", "tasks"):
            shutil.copytree(ROOT / code, folder / code, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "dvc.yaml", folder)
        (folder / "start").mkdir()
        (folder / "start/sitecustomize.py").write_text(QUIET)
        subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    code, said = repro(whole)
    assert code == 0, said
    for step in (5, 40):
        assert repro(killed, kill_at=f"step {step}/100")[0] == -signal.SIGKILL
        assert not (killed / "dvc.lock").exists()
    code, said = repro(killed)
    assert code == 0, said
    assert re.search(r"continues after step (39|4\d)\n", said)
    check_alike(killed, whole, "sft")
    assert (killed / "dvc.lock").read_bytes()
    assert "didn't change" in repro(killed)[1]
