"""The stages ``answer`` and ``evaluate`` go on after a kill, without doing anything twice."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.models.roles import SharedBase
from tasks.params.edit import override
from tasks.training import rewards, sampling
from tests.tasks.small_project import ROOT, set_up, stage, working_in

KILLED = """
import os, signal
from tasks.running import stage
from tasks.tracking import recorder
recorder._spawn_delivery = lambda folder: None
keep = stage.Stage.keep
def killed(self, step, state):
    keep(self, step, state)
    if step == int(os.environ["KILL_AFTER"]):
        os.kill(os.getpid(), signal.SIGKILL)
stage.Stage.keep = killed
"""


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a trained DPO and its snapshots; two rows are sampled at once."""
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, tiny)
    changes = [f"{name}.steps=1" for name in ("sft", "reward_model", "judge_model")]
    override(folder / "params.yaml", [*changes, "sampling.rows=2", "checkpoint.seconds=0"])
    (folder / "start").mkdir()
    (folder / "start/sitecustomize.py").write_text(KILLED)
    with working_in(folder):
        for name in ("base", "prepare", "sft", "reward_model", "judge_model", "dpo"):
            stage(name)
        yield folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many rows were sampled or scored, call by call, as it grows."""
    found: list[int] = []
    generate, scores = sampling.generate, rewards.learned_scores

    def drawn(model: Any, prompts: Any, **settings: Any) -> Any:
        found.append(len(prompts))
        return generate(model, prompts, **settings)

    def scored(models: Any, role: Any, folder: Any, examples: Any, *rest: Any) -> Any:
        found.append(len(examples))
        return scores(models, role, folder, examples, *rest)

    monkeypatch.setattr(sampling, "generate", drawn)
    monkeypatch.setattr(rewards, "learned_scores", scored)
    return found


def kill(place: Path, name: str, *, after: int) -> None:
    """Run a stage of DPO in a separate process that is killed once it has kept so many results."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(place / "start"), str(ROOT)]),
        "ALIGNFLOW_HOME": str(place / "home"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "KILL_AFTER": str(after),
    }
    command = [sys.executable, "-m", "tasks", name, "dpo"]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize(
    ("name", "folder", "after", "rows", "left"),
    [
        # three prompts twice, and two prompts twice after each of two snapshots; killed in a snapshot's answers,
        # after three blocks of two, their KL, and one block of two
        ("answer", "answers/dpo", 5, 6 + 2 * 4, 4 - 2 + 4),
        ("evaluate", "evaluations/dpo", 1, 2 * (6 + 2 * 4), 6 + 2 * 4),  # between two scorers
    ],
)
def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(
    place: Path,
    asked: list[int],
    capsys: pytest.CaptureFixture[str],
    name: str,
    folder: str,
    after: int,
    rows: int,
    left: int,
):
    metrics = stage(name, "dpo")
    assert sum(asked) == rows
    expected = files(folder)
    shutil.rmtree(folder)
    kill(place, name, after=after)
    assert not Path(folder).exists(), "nothing half written"
    asked.clear()
    again = stage(name, "dpo")
    assert f"continues after step {after}" in capsys.readouterr().out
    assert sum(asked) == left
    assert files(folder) == expected
    assert {**again, "peak_memory_gib": 0} == {**metrics, "peak_memory_gib": 0}
    assert not list((place / "home/checkpoints").glob(f"{name}-*/*/*.pt"))


def test_other_settings_do_not_go_on_from_there(place: Path, asked: list[int]):
    kill(place, "answer", after=2)
    kept = Path("params.yaml").read_text()
    override(Path("params.yaml"), ["evaluate.temperature=0.5"])
    stage("answer", "dpo")
    Path("params.yaml").write_text(kept)
    assert sum(asked) == 6 + 2 * 4
    asked.clear()
    stage("answer", "dpo")
    assert sum(asked) == 6 + 2 * 4 - 2 * 2


def test_the_evaluation_runs_no_policy(place: Path, monkeypatch: pytest.MonkeyPatch):
    stage("answer", "dpo")
    roles, original = set[str](), SharedBase.hidden

    def noted(self: SharedBase, role: str, batch: object) -> object:
        roles.add(role)
        return original(self, role, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(SharedBase, "hidden", noted)
    shutil.move("artifacts/dpo", "aside")
    stage("evaluate", "dpo")
    shutil.move("aside", "artifacts/dpo")
    assert roles == {"reward_model", "judge_model"}
