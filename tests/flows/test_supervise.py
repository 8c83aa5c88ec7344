"""The process between a flow and a stage: nothing below it survives what ends it."""

import signal
import subprocess
import sys

import pytest

from flows import supervise
from tests.flows.project import alive, until

# a shell below which the real work runs, as it does below DVC
SHELL = "{1} & wait $!"
WORK = "echo $$ > {0}/worker; while :; do sleep 0.05; done"
OBEDIENT = f"sh -c 'trap \"echo asked >> {{0}}/asked; sleep 0.3; touch {{0}}/saved; exit 143\" TERM; {WORK}'"
DEAF = f"sh -c 'trap \"\" TERM; {WORK}'"


@pytest.fixture
def start(tmp_path):
    """Start a supervised command; at the end of the test its lifeline is cut."""
    started = []

    def start(worker, grace=5):
        command = SHELL.format(tmp_path, worker.format(tmp_path))
        process = subprocess.Popen(
            [sys.executable, "-S", supervise.__file__, str(grace), "sh", "-c", command], stdin=subprocess.PIPE
        )
        started.append(process)
        until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text(), "the worker runs")
        return process, int((tmp_path / "worker").read_text())

    yield start
    for process in started:
        process.stdin.close()
        try:
            process.wait(timeout=20)
        finally:
            process.kill()


def test_it_passes_on_the_exit_status():
    command = [sys.executable, "-S", supervise.__file__, "1", "sh", "-c", "exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # its lifeline stays open while it runs
        assert process.wait(timeout=20) == 7


def test_sigterm_reaches_the_worker_and_waits_while_it_saves(start, tmp_path):
    process, worker = start(OBEDIENT)
    process.terminate()
    process.stdin.close()  # its caller, having asked, ends as well
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert not alive(worker)


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(start):
    process, worker = start(DEAF, grace=0.3)
    process.terminate()
    process.wait(timeout=10)
    assert not alive(worker)


def test_when_the_caller_dies_by_sigkill_the_worker_is_still_asked_to_stop(start, tmp_path):
    process, worker = start(OBEDIENT)
    process.stdin.close()  # what the kernel does for a process that was killed
    until(lambda: not alive(worker), "the worker is gone", seconds=10)
    assert (tmp_path / "saved").exists()
