"""The temporary Prefect server of `alignflow run`, and what is left of a run that is stopped or killed."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from flows import server
from tests.flows.project import alive, until


@pytest.fixture
def held_run(cloned):
    """A run on its temporary server, in the middle of a stage; and what belongs to it, asked while it lives."""
    cloned.order("hold sft")
    with cloned.flow("dpo.beta=0.8") as flow:
        until(lambda: "sft" in cloned.events("began"), "sft began", seconds=240)
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


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://u:secret@127.0.0.1:9/api", "no Prefect server answers at http://127.0.0.1:9/api"),
        ("127.0.0.1:4200/api", "no Prefect server at 127.0.0.1:4200/api"),
    ],
)
def test_a_prefect_server_that_is_off_is_named_with_the_place_of_its_setting(cloned, address, expected):
    done = cloned.alignflow("run", PREFECT_API_URL=address)
    assert done.returncode == 1
    assert done.stderr.startswith(f"alignflow: {expected} (PREFECT_API_URL in the environment)")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stdout + done.stderr
    profiles = cloned.root.parent / "profiles.toml"
    profiles.write_text(f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{address}"\n')
    done = cloned.alignflow("run", PREFECT_PROFILES_PATH=str(profiles))
    assert done.stderr.startswith(f"alignflow: {expected} (PREFECT_API_URL of profile team in {profiles})")
    assert done.stderr.count("\n") == 1


def test_a_broken_file_of_profiles_is_named(cloned):
    profiles = cloned.root.parent / "profiles.toml"
    profiles.write_text("active = team")
    done = cloned.alignflow("run", PREFECT_PROFILES_PATH=str(profiles))
    assert done.returncode == 1
    assert done.stderr.startswith(f"alignflow: {profiles}, Prefect's file of profiles, cannot be read: ")
    assert done.stderr.count("\n") == 1


def test_a_server_that_needs_another_password_or_another_path_is_told(cloned, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "team:right")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    url = server.start(tmp_path)
    for account in ({}, {"PREFECT_API_AUTH_STRING": "team:wrong"}):
        done = cloned.alignflow("run", PREFECT_API_URL=url, **account)
        assert done.returncode == 1
        assert "set PREFECT_API_AUTH_STRING=user:password, or PREFECT_API_KEY\n" in done.stderr
        assert done.stderr.count("\n") == 1
    right = {"PREFECT_API_AUTH_STRING": "team:right"}
    done = cloned.alignflow("run", "--only", "sft", PREFECT_API_URL=url, **right)
    assert done.returncode == 0, done.stdout + done.stderr
    done = cloned.alignflow("run", PREFECT_API_URL=url.removesuffix("/api"), **right)
    assert done.stderr.count("\n") == 1
    assert "ends in /api" in done.stderr


@pytest.mark.long
def test_a_proxy_is_not_asked_for_this_machine(cloned):
    dead = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"), dead)
    done = cloned.alignflow("run", "--only", "sft", NO_PROXY="", no_proxy="", **proxies)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_ctrl_c_in_a_terminal_ends_the_run_with_one_line(cloned, held_run):
    flow, left = held_run
    began = time.monotonic()
    os.killpg(flow.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches every process of the group
    said, _ = flow.communicate(timeout=60)
    assert flow.returncode == 130
    assert time.monotonic() - began < 40  # of these MLflow may take 10
    assert "Traceback" not in said
    assert "[sft] stopped\n" in said
    assert said.splitlines()[-1] == "alignflow: stopped; the same command continues from the last checkpoint"
    assert cloned.events("stopped") == ["sft"]
    until(lambda: not left(), "nothing of the run is left", seconds=30)


@pytest.mark.long
def test_a_terminated_run_takes_its_temporary_server_with_it(held_run):
    flow, left = held_run
    flow.terminate()
    assert flow.wait(timeout=40) == 128 + signal.SIGTERM
    until(lambda: not left(), "nothing of the run is left", seconds=30)


@pytest.mark.long
def test_nothing_of_a_killed_run_is_left_after_a_minute(cloned, held_run):
    flow, left = held_run
    running = [" ".join(process.cmdline()) for process in left()]
    for part in ("uvicorn", "toy.py", "tasks.tracking.mlflow", "supervise.py"):
        assert any(part in command for command in running), part
    flow.kill()
    until(lambda: not left(), "nothing of the run is left", seconds=60)
    assert cloned.events("stopped") == ["sft"]
    assert cloned.alignflow("prune").stdout.endswith(": removed\n")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_group_of_a_run_leaves_nothing_of_it(held_run, number):
    """A terminal that closes, and a group that is killed."""
    flow, left = held_run
    os.killpg(flow.pid, number)
    until(lambda: not left(), "nothing of the run is left", seconds=60)
