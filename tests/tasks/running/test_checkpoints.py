"""Which checkpoint a stage continues from, what it says of the others, and when it saves."""

import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from alignflow import checkpoint
from tasks.params.edit import override
from tasks.params.read import load
from tasks.paths import TRAIN, home
from tasks.running import checkpoints, provenance
from tasks.running.checkpoints import Checkpoints, checkpoints_of
from tasks.running.stage import Interrupted, Stage
from tasks.tracking.recorder import Silent
from tests.pipeline import ROOT
from tests.tasks.small_project import set_up, stage, weights, working_in

USED = {"sft": {"learning_rate": 1e-4, "steps": 3}}


@pytest.fixture
def inputs(tmp_path: Path) -> Iterator[list[str]]:
    """A home without checkpoints, and a stage's data."""
    with working_in(tmp_path):
        TRAIN.parent.mkdir(parents=True)
        TRAIN.write_text("{}\n")
        yield [TRAIN.as_posix()]


def _other_data(_: pytest.MonkeyPatch) -> None:
    TRAIN.write_text('{"more": 1}\n')


def _other_code(patch: pytest.MonkeyPatch) -> None:
    found = provenance.code("sft")
    patch.setattr(checkpoints, "code", lambda _: {**found, "alignflow/optim.py": "0" * 64})


def _other_library(patch: pytest.MonkeyPatch) -> None:
    found = provenance.libraries()
    patch.setattr(checkpoints, "libraries", lambda: {**found, "peft": "99.0"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _: None, r"sft\.learning_rate \(0\.0001, now 0\.0002\)"),
        (_other_data, r"data/prepared/train\.jsonl"),
        (_other_code, r"code alignflow/optim\.py"),
        (_other_library, r"version of peft \([\d.]+, now 99\.0\)"),
        (
            lambda patch: patch.setattr(checkpoints, "kind", lambda: "NVIDIA H200"),
            r"device \(CPU .*, now NVIDIA H200\)",
        ),
        (lambda patch: patch.setattr("alignflow.distributed.world", lambda: 4), r"number of processes \(1, now 4\)"),
    ],
    ids=["settings", "data", "code", "library", "device", "processes"],
)
def test_a_checkpoint_of_another_run_is_not_used_and_the_difference_is_named(
    inputs: list[str], monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None], named: str
):
    first = checkpoints_of("sft", USED, inputs)
    first.save({"step": 7})
    used = {"sft": {**USED["sft"], "learning_rate": 2e-4}} if "learning_rate" in named else USED
    with monkeypatch.context() as patch:
        change(patch)
        state, said = checkpoints_of("sft", used, inputs).load()
    assert state is None
    assert re.fullmatch(
        f"starts from the beginning: the checkpoint that is there has another {named}; it is kept, and the same "
        "settings, data, code, libraries, device and number of processes as then continue it",
        said,
    )
    if change is not _other_data:
        assert checkpoints_of("sft", USED, inputs).load() == ({"step": 7}, "")


def test_of_several_checkpoints_the_nearest_is_compared_with_and_other_stages_are_not(inputs: list[str]):
    for name, steps, rate in (("sft", 4, 1.0), ("sft", 3, 1.0), ("sft_more", 3, 1e-4), ("sft@a", 3, 1e-4)):
        checkpoints_of(name, {"sft": {"learning_rate": rate, "steps": steps}}, inputs).save({"step": 1})
    said = checkpoints_of("sft", USED, inputs).load()[1]
    assert "another sft.learning_rate (1.0, now 0.0001);" in said


def test_a_first_run_says_nothing(inputs: list[str]):
    assert checkpoints_of("sft", USED, inputs).load() == (None, "")


def test_the_code_of_a_stage_is_that_of_dvc_yaml_and_the_rules_in_use(inputs: list[str]):
    Path("artifacts/rules").mkdir(parents=True)
    Path("artifacts/rules/rewards.json").write_text("{}")
    ppo, sft = set(provenance.code("ppo")), set(provenance.code("sft"))
    assert {"tasks/ppo.py", "alignflow/optim.py", "alignflow/models/roles.py", "artifacts/rules/rewards.json"} <= ppo
    assert {"tasks/sft.py", "alignflow/optim.py"} <= sft
    assert not sft & {"alignflow/algorithms/ppo.py", "artifacts/rules/rewards.json", "tasks/running/progress.py"}
    assert not [path for path in ppo if "__pycache__" in path]
    # the stage that DVC does not know depends on everything
    assert ppo < set(provenance.code("test"))


def test_budgets_that_memory_has_halved_and_results_of_parts_are_part_of_a_checkpoint(inputs: list[str]):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    override(Path("params.yaml"), ["checkpoint.seconds=0"])
    where, params = Checkpoints("sft", {}, {}), load(Path("params.yaml"))
    first = Stage("sft", params, Silent(), where)
    first.budget("passes", 4096).size = 512
    assert first.once("pairs", lambda: [{"prompt": "a"}]) == [{"prompt": "a"}]
    again = Stage("sft", params, Silent(), where, where.load()[0])
    assert again.budget("passes", 4096).size == 512
    assert again.budget("updates", 4096).size == 4096
    assert again.once("pairs", pytest.fail) == [{"prompt": "a"}]
    assert again.resume is None


@pytest.mark.parametrize("length", [0.5, 7.0, 25.0, 45.0, 59.0, 61.0, 300.0])
def test_no_more_than_the_seconds_of_params_or_one_step_is_at_risk(
    inputs: list[str], monkeypatch: pytest.MonkeyPatch, length: float
):
    start = time.monotonic()
    clock, saved = [start], [start]
    monkeypatch.setattr("tasks.running.stage.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: saved.append(clock[0]))
    assert load(ROOT / "params.yaml").checkpoint.seconds == 60
    running = Stage("sft", load(ROOT / "params.yaml"), Silent(), Checkpoints("sft", {}, {}))
    running._saved = running._chance = start
    for step in range(1, 200):
        clock[0] += length
        running.keep(step, lambda step=step: {"step": step})  # type: ignore[misc]
    gaps = [after - before for before, after in pairwise(saved)]
    assert max(gaps) <= max(60, length) + 1e-6
    assert length >= 30 or min(gaps) >= 30, "and not much more often"


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond a small size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_is_said_and_the_stage_goes_on_and_saves_later(
    inputs: list[str], capsys: pytest.CaptureFixture[str]
):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    override(Path("params.yaml"), ["checkpoint.seconds=0"])
    where = Checkpoints("sft", {}, {})
    running = Stage("sft", load(Path("params.yaml")), Silent(), where)
    running.keep(1, lambda: {"step": 1})
    capsys.readouterr()
    with full_disk():
        running.keep(2, lambda: {"step": 2, "masters": torch.zeros(1_000_000)})
        running.stop()
        with pytest.raises(Interrupted, match="stopped after step 3; the same command continues after the last check"):
            running.keep(3, lambda: {"step": 3, "masters": torch.zeros(1_000_000)})
    said = "[sft] cannot save a checkpoint (File too large): goes on and tries again after the next step\n"
    assert capsys.readouterr().out == 2 * said
    state, fault = where.load()
    assert state is not None
    assert (state["training"], fault) == ({"step": 1}, "")
    assert not list(home().rglob("*.partial"))
    running._stop = 0
    running.keep(4, lambda: {"step": 4})
    state, _ = where.load()
    assert state is not None
    assert state["training"] == {"step": 4}


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with prepared data that saves after every step, and the adapter of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, tiny)
    override(folder / "params.yaml", ["checkpoint.seconds=0", "sft.steps=4"])
    with working_in(folder):
        for name in ("base", "prepare", "sft"):
            stage(name)
        shutil.move("artifacts/sft", "whole")
        yield folder


def stop_after(step: int, number: int, patch: pytest.MonkeyPatch) -> int:
    """Send a signal to sft in a step and return its exit code."""
    original = Stage.log

    def log(self: Stage, at: int, metrics: Mapping[str, float]) -> None:
        original(self, at, metrics)
        if at == step:
            os.kill(os.getpid(), number)

    with patch.context() as within:
        within.setattr(Stage, "log", log)
        with pytest.raises(SystemExit) as stopped:
            stage("sft")
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def files() -> list[Path]:
    """Return the checkpoints of sft, newest first."""
    return sorted((home() / "checkpoints").glob("sft-*/*/*.pt"), reverse=True)


def check_whole() -> None:
    stage("sft")
    mine, whole = weights("artifacts/sft"), weights("whole")
    assert all(mine[name].equal(whole[name]) for name in whole)
    assert not files()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_ctrl_c_save_and_stop(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
):
    assert stop_after(2, number, monkeypatch) == code
    said = capsys.readouterr()
    assert "stopped after step 2; the same command continues there" in said.out
    assert "Traceback" not in said.err
    check_whole()
    assert "continues after step 2" in capsys.readouterr().out


def test_a_second_ctrl_c_stops_at_once_without_a_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    original = Stage.log

    def log(self: Stage, at: int, metrics: Mapping[str, float]) -> None:
        original(self, at, metrics)
        if at == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "log", log)
        with pytest.raises(SystemExit) as stopped:
            stage("sft")
    assert stopped.value.code == 130
    check_whole()
    assert "continues after step 1" in capsys.readouterr().out


def test_sigusr1_saves_and_the_stage_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch):
    override(Path("params.yaml"), ["checkpoint.seconds=1e9"])
    original, saved = Checkpoints.save, list[int]()

    def save(self: Checkpoints, state: checkpoint.State) -> None:
        saved.append(state["training"]["step"])
        original(self, state)

    log = Stage.log

    def signalled(self: Stage, at: int, metrics: Mapping[str, float]) -> None:
        log(self, at, metrics)
        if at == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        patch.setattr(Stage, "log", signalled)
        check_whole()
    override(Path("params.yaml"), ["checkpoint.seconds=0"])
    assert saved == [2]


def test_a_broken_newest_checkpoint_is_said_in_a_line_and_the_one_before_continues(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stop_after(3, signal.SIGTERM, monkeypatch)
    newest, _ = files()
    os.truncate(newest, 1000)
    partial = newest.with_name("000009.999999999.partial")
    partial.touch()
    capsys.readouterr()
    check_whole()
    said = capsys.readouterr()
    assert f"[sft] broken checkpoint ({newest.name}: its checksum differs): goes on from the one before\n" in said.out
    assert "continues after step 2\n" in said.out
    assert "Traceback" not in said.out + said.err
    assert not partial.exists()


def test_two_broken_checkpoints_are_said_in_a_line_and_the_stage_starts_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stop_after(3, signal.SIGTERM, monkeypatch)
    newest, before = files()
    newest.write_bytes(b"")
    before.write_bytes(before.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    check_whole()
    said = capsys.readouterr()
    assert (
        f"[sft] broken checkpoint ({newest.name}: its checksum differs; {before.name}: its checksum differs): starts "
        "from the beginning\n"
    ) in said.out
    assert "step 1/4" in said.out
    assert "Traceback" not in said.out + said.err
