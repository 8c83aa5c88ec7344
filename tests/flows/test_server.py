"""The temporary Prefect server of `alignflow run`, and what is left of a run that is stopped or killed."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.project import alive, until


@pytest.fixture
def held_run(cloned):
    """A run on its temporary server, in the middle of a stage; and what belongs to it, asked while it lives."""
    cloned.order("hold sft")
    with cloned.flow("dpo.beta=0.8") as flow:
        until(lambda: "sft" in cloned.events("began"), "sft began", seconds=120)
        yield flow, lambda: belonging_to(cloned)


def belonging_to(toy):
    """Every living process of a project: each has its folder in the environment."""
    mark = f"TOY_ORDERS={toy.orders}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            given = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:  # ended, or another user's
            continue
        if mark in given and process.pid != os.getpid() and alive(process.pid):
            found.append(process)
    return found


def test_ctrl_c_in_a_terminal_ends_the_run_with_one_line(cloned, held_run):
    flow, left = held_run
    began = time.monotonic()
    os.killpg(flow.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches every process of the group
    said, _ = flow.communicate(timeout=60)
    assert flow.returncode == 130
    assert time.monotonic() - began < 20
    assert "Traceback" not in said
    assert said.splitlines()[-2:][0].endswith("[sft] stopped")
    assert said.splitlines()[-1] == "alignflow: stopped; the same command continues from the last checkpoint"
    assert cloned.events("stopped") == ["sft"]
    until(lambda: not left(), "nothing of the run is left", seconds=30)


def test_a_terminated_run_takes_its_temporary_server_with_it(held_run):
    flow, left = held_run
    flow.terminate()
    assert flow.wait(timeout=40) == 128 + signal.SIGTERM
    until(lambda: not left(), "nothing of the run is left", seconds=30)


def test_nothing_of_a_killed_run_is_left_after_a_minute(cloned, held_run):
    flow, left = held_run
    running = [" ".join(process.cmdline()) for process in left()]
    for part in ("uvicorn", "toy.py", "tasks.tracking.mlflow", "supervise.py"):
        assert any(part in command for command in running), part
    flow.kill()
    until(lambda: not left(), "nothing of the run is left", seconds=60)
    assert cloned.events("stopped") == ["sft"]
    assert cloned.alignflow("prune").stdout.endswith(": removed\n")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_group_of_a_run_leaves_nothing_of_it(held_run, number):
    """A terminal that closes, and a group that is killed."""
    flow, left = held_run
    os.killpg(flow.pid, number)
    until(lambda: not left(), "nothing of the run is left", seconds=60)
