"""Slots for the accelerator, with real locks in real processes."""

import subprocess
import sys
import threading
from contextlib import contextmanager
from select import select

import pytest

from flows import device
from tests.flows.project import CODE, until

HOLD = """
import threading
from flows import device
with device.slot(threading.Event(), server=False, waiting=lambda: None):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    from tasks.paths import home

    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path))
    home.cache_clear()
    yield
    home.cache_clear()


@pytest.fixture
def holder(at_home):
    """Another process that holds a slot."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=CODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert select([process.stdout], [], [], 60)[0], "no slot was held within 60 s"
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@contextmanager
def free_slot():
    """Take a slot that has to be free; what it sets is given."""
    stop = threading.Event()
    with device.slot(stop, server=False, waiting=stop.set) as env:
        yield env


def take(stop, said, got):
    try:
        with device.slot(stop, server=False, waiting=lambda: said.append("waiting")):
            got.append("slot")
    except device.Stopped:
        got.append("stopped")


def attempt():
    stop, said, got = threading.Event(), [], []
    thread = threading.Thread(target=take, args=(stop, said, got), daemon=True)
    thread.start()
    return stop, said, got, thread


def test_one_slot_is_for_one_stage_at_a_time_and_a_killed_holder_frees_it(holder):
    _, said, got, thread = attempt()
    until(lambda: said, "the second stage waits for the slot")
    assert got == []
    holder.kill()
    thread.join(timeout=10)
    assert (said, got) == (["waiting"], ["slot"])


def test_waiting_for_a_slot_can_be_called_off(holder):
    stop, said, got, thread = attempt()
    until(lambda: said, "the second stage waits for the slot")
    stop.set()
    thread.join(timeout=10)
    assert got == ["stopped"]


def test_of_two_slots_each_sees_its_own_device(holder, monkeypatch):
    monkeypatch.setenv("ALIGNFLOW_DEVICE_SLOTS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with free_slot() as env:
        assert env == {"CUDA_VISIBLE_DEVICES": "6"}


def test_with_one_slot_the_stage_sees_what_the_user_chose(at_home, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with free_slot() as env:
        assert env == {}
