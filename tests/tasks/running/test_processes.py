"""Training stages in two processes against the same stages in one, on the tiny model."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from alignflow.checkpoint import read
from tasks.params.edit import override
from tasks.running import processes
from tests.close import close
from tests.tasks.small_project import QUIET, ROOT, set_up, stage, weights, working_in

pytestmark = pytest.mark.long

TRAINED = ["sft", "reward_model", "dpo", "iterative_dpo round-1", "grpo", "ppo", "rloo", "kto"]
ONCE = ["sft", "reward_model", "grpo"]
EVALUATED = ["judge_model", "answer grpo", "evaluate grpo"]
LAUNCHER = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
WITHIN = 1e-4  # of a tensor's largest weight: gradients are summed in another order, and Adam divides by their size
RUNS_OUT = """
import os
if os.environ.get("RANK") == "1":
    from torch import OutOfMemoryError
    from alignflow.algorithms import grpo
    step = grpo.step
    def short(models, batch, *rest, **named):
        if len(batch.sequences.input_ids) > 2:
            raise OutOfMemoryError("of a test")
        return step(models, batch, *rest, **named)
    grpo.step = short
"""
NOT_A_NUMBER = """
import os
if os.environ.get("RANK") == "1":
    from alignflow.algorithms import sft
    step = sft.step
    def broken(models, batch):
        output = step(models, batch)
        output.losses.data.fill_(float("nan"))
        return output
    sft.step = broken
"""


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a project with everything trained by one process; its folder ``two`` is the same, untrained."""
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, tiny)
    with working_in(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # PPO: 2 and 1 rows in the two optimiser steps of a rollout batch: a process has none at times
        # KTO: thumbs up weigh more, so that all responses become likelier and the reference point leaves 0
        override(Path("params.yaml"), ["ppo.batch_size=3", "ppo.minibatches=2", "kto.undesirable_weight=0.1"])
        stage("base")
        stage("prepare")
        shutil.copytree(folder, folder / "two")
        for words in [*TRAINED, *EVALUATED]:
            stage(*words.split())
        yield folder


def environment(folder: Path, start: str = QUIET, **more: str) -> dict[str, str]:
    """Return the environment of a program that runs some code of a test before its own."""
    (folder / "start").mkdir(exist_ok=True)
    (folder / "start" / "sitecustomize.py").write_text(start)
    paths = os.pathsep.join([str(folder / "start"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "ALIGNFLOW_HOME": str(folder / "home"), **more}


@pytest.fixture(scope="module")
def two(place: Path) -> Path:
    """Train everything once more in two processes that a user starts with accelerate; return the folder.

    The memory of one of them does not hold more than two rows of a GRPO batch.
    """
    folder = place / "two"
    command = [sys.executable, "-m", *LAUNCHER, "-m", "tests.tasks.running.several", *TRAINED, *EVALUATED]
    env = environment(folder, QUIET + RUNS_OUT)
    said = subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert {line.partition("]")[0] for line in said.splitlines() if "memory ran out" in line} == {"[grpo, process 1"}
    return folder


@pytest.fixture(scope="module")
def once(two: Path) -> Path:
    """Train some once more in two processes that hold the base once; return the folder."""
    folder = prepared(two, two / "once")
    override(folder / "params.yaml", ["memory.share_base=true"])
    command = [sys.executable, "-m", *LAUNCHER, "-m", "tests.tasks.running.several", *ONCE, *EVALUATED]
    subprocess.run(command, cwd=folder, env=environment(folder, QUIET + RUNS_OUT), check=True)
    return folder


@pytest.mark.parametrize("name", ONCE)
def test_two_processes_that_hold_the_base_once_train_to_the_last_digit_as_two_that_do_not(
    two: Path, once: Path, name: str
):
    expected, found = curve(two, name), curve(once, name)
    for row in (*expected, *found):
        del row["tokens_per_second"]
    assert found == expected
    before, after = (weights(str(folder / "artifacts" / name)) for folder in (two, once))
    assert before.keys() == after.keys()
    assert all(after[key].equal(before[key]) for key in before)


@pytest.mark.parametrize("file", ["responses.jsonl", "trajectory.json"])
def test_two_processes_that_hold_the_base_once_evaluate_to_the_last_byte_as_two_that_do_not(
    two: Path, once: Path, file: str
):
    expected, found = ((folder / "evaluations/grpo" / file).read_bytes() for folder in (two, once))
    assert found == expected


def curve(folder: Path, name: str) -> list[dict[str, float]]:
    with (folder / "plots" / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def check_alike(one: Path, two: Path, name: str) -> None:
    """Check that two projects have the same learning curve and the same weights of a stage."""
    for left, right in zip(curve(one, name), curve(two, name), strict=True):
        assert left.keys() == right.keys()
        # the first batch's margins are 0 or a rounding error, of which accuracy knows the sign alone
        others = {"tokens_per_second"} | ({"rewards/accuracy"} if left["step"] == 1 else set())
        for key in left.keys() - others:
            close(right[key], left[key])
    expected, found = (weights(str(folder / "artifacts" / name)) for folder in (one, two))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        scale = tensor.abs().max().clamp(min=1e-9)
        close(found[key] / scale, tensor / scale, WITHIN)


@pytest.mark.parametrize("words", TRAINED)
def test_two_processes_have_the_curve_and_the_weights_of_one(place: Path, two: Path, words: str):
    check_alike(place, two, words.replace(" ", "/"))


def test_the_reference_point_that_two_processes_take_together_is_not_0(place: Path):
    assert curve(place, "kto")[-1]["kl/reference_point"] > 0.1


def test_two_processes_evaluate_as_one(place: Path, two: Path):
    one, other = (
        [json.loads(line) for line in (folder / "evaluations/grpo/responses.jsonl").read_text().splitlines()]
        for folder in (place, two)
    )
    assert [row["response"] for row in one] == [row["response"] for row in other]
    for left, right in zip(one, other, strict=True):
        close([right["score"], right["kl"]], [left["score"], left["kl"]])
    left, right = (json.loads((folder / "metrics/evaluate/grpo.json").read_text()) for folder in (place, two))
    assert left.keys() == right.keys()
    for key in left.keys() - {"peak_memory_gib"}:
        close(right[key], left[key])


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_one_of_two_processes_writes(place: Path, two: Path, name: str):
    one, other = (
        {path.relative_to(folder / "artifacts") for path in (folder / "artifacts" / name).rglob("*")}
        for folder in (place, two)
    )
    assert one == other
    (record,) = (two / "home/outbox").glob(f"{name}-*")
    kinds = [json.loads(line)["kind"] for line in (record / "journal.jsonl").read_text().splitlines()]
    assert [kinds.count(kind) for kind in ("start", "adapter", "end")] == [1, 1, 1]


@contextmanager
def started(folder: Path, env: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Start sft in two processes, as DVC would; what is left of it at the end is killed."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "tasks", "sft"]
    env = {**env, "ALIGNFLOW_PROCESSES": "2"}
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def prepared(place: Path, folder: Path) -> Path:
    """Copy what sft needs."""
    for name in ("base", "data", "artifacts/base"):
        shutil.copytree(place / name, folder / name)
    shutil.copy(place / "params.yaml", folder)
    return folder


def test_a_stop_saves_once_and_two_processes_go_on_to_the_same_bytes_which_one_would_not(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Gradients of one process are summed in another order: its last digits differ."""
    folders = [prepared(place, tmp_path / name) for name in ("whole", "stopped")]
    for folder in folders:
        override(folder / "params.yaml", ["sft.steps=30", "sft.learning_rate=1e-6"])
    whole, stopped = folders
    with started(stopped, environment(stopped)) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "step 3/" in line:
                process.terminate()
        assert process.wait() == 143
        assert process.stderr is not None
        told = process.stderr.read()
    assert told == ""
    assert sum("the same command continues there" in line for line in said) == 1
    (state,) = (stopped / "home/checkpoints").glob("sft-*/*/*.newest.pt")
    assert 3 <= read(state)["training"]["step"] < 30
    alone = prepared(place, tmp_path / "alone")
    shutil.copy(stopped / "params.yaml", alone)
    shutil.copytree(stopped / "home", alone / "home")
    with working_in(alone):
        stage("sft")
    assert "another number of processes (2, now 1)" in capsys.readouterr().out
    for folder in folders:
        with started(folder, environment(folder)) as process:
            assert "sft" in process.communicate(timeout=300)[0]
            assert process.returncode == 0
    assert not state.exists()
    assert [row["step"] for row in curve(stopped, "sft")] == list(range(1, 31))
    adapters = [(folder / "artifacts/sft/adapter_model.safetensors").read_bytes() for folder in folders]
    assert adapters[0] == adapters[1]
    check_alike(whole, alone, "sft")


def test_a_loss_that_is_not_finite_in_one_process_ends_both_and_is_told_once(place: Path, tmp_path: Path):
    folder = prepared(place, tmp_path / "project")
    with started(folder, environment(folder, QUIET + NOT_A_NUMBER)) as process:
        said, told = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "step 1/" not in said
    assert told.splitlines() == [
        "[sft] error: step 1: the loss of micro-batch 1 of 1 in process 1 is nan; lower the learning rate or look at "
        "this step's data"
    ]


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_bad_number_of_processes_is_one_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
):
    monkeypatch.setenv("ALIGNFLOW_PROCESSES", value)
    with pytest.raises(SystemExit) as failed:
        stage("sft")
    assert failed.value.code == 1
    assert f"ALIGNFLOW_PROCESSES is '{value}'" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("ALIGNFLOW_PROCESSES", "3")
    with pytest.raises(processes.BadProcesses, match="3 processes need a GPU each, but only 2 visible"):
        processes.wanted()
    monkeypatch.setenv("ALIGNFLOW_PROCESSES", "2")
    assert processes.wanted() == 2


LAUNCHED = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "shared", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, True, "add --multi_gpu"),
        (LAUNCHED, False, "runs in one process"),
        ({**LAUNCHED, "ACCELERATE_USE_FSDP": "true"}, True, "FSDP is not supported.*memory.share_base: true"),
        ({**LAUNCHED, "ACCELERATE_USE_DEEPSPEED": "true"}, True, "DEEPSPEED is not supported"),
    ],
)
def test_a_launcher_that_was_told_what_cannot_be_had_is_told_so(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], shared: bool, message: str
):
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(processes.BadProcesses, match=message):
        processes.join(shared=shared)


def test_one_process_makes_no_group_and_imports_no_accelerate():
    code = (
        "import sys, torch; from alignflow import distributed as d; p = torch.nn.Parameter(torch.ones(1)); "
        "d.sum_gradients([p]); d.barrier(); print(p.grad, d.mine('ab'), d.gather(1), d.agree(False), d.is_main(), "
        "d.deal(2, list), 'accelerate' in sys.modules, torch.distributed.is_initialized())"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "None ['a', 'b'] [1] False True [0, 1] False False"
