"""Every training: killed several times and started again, it leaves the bytes of an uninterrupted one."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from tasks.params.edit import override
from tasks.policies import POLICIES
from tasks.stages import STAGES, TRAINING
from tests.tasks.small_project import set_up, stage, working_in
from tests.tasks.training import killing

STEPS = 4
COMMON = ["sft.steps=1", "reward_model.steps=1", "checkpoint.seconds=0"]
CASES: dict[str, tuple[str, list[str]]] = {
    "sft": ("sft", []),
    "reward model": ("reward_model", []),
    "reward model, head first": ("reward_model", ["reward_model.head_steps=5"]),
    "reward model, head alone": ("reward_model", ["reward_model.head_steps=5", "reward_model.steps=0"]),
    "judge model": ("judge_model", []),
    "dpo": ("dpo", []),
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
    override(folder / "params.yaml", COMMON)
    with working_in(folder):
        for name in ("base", "prepare", "sft", "reward_model"):
            stage(name)
    return folder


def copied(place: Path, folder: Path, *settings: str) -> Path:
    """Return a copy of a project with other settings and no state of its own."""
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
    if words.split(maxsplit=1)[0] in {"ppo", "grpo", "rloo", "iterative_dpo", "reward_model", "judge_model"}:
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
