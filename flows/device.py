"""Slots for the accelerator: how many stages may compute on it at once, by default 1."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

from tasks.paths import home, make_home
from tasks.tracking.outbox import private

LIMIT = "device-slot"
"""Name of the Prefect global concurrency limit that counts slots across machines."""

LEASE_SECONDS = 60  # a holder that was killed frees its slot after this; Prefect's own default is 300
PATIENCE_SECONDS = 10  # timeout of one request to the server, which is then repeated or given up


class Stopped(Exception):
    """The wait for a slot was cancelled."""


@contextmanager
def slot(stop: Event, *, server: bool, waiting: Callable[[], None]) -> Iterator[Mapping[str, str]]:
    """Hold a device slot; yield the stage's environment variables for the device.

    File locks, which the kernel always releases, count the slots of this machine. With a server, its limit
    also counts across machines. ``ALIGNFLOW_DEVICE_SLOTS`` is the number on this machine;
    when ``CUDA_VISIBLE_DEVICES`` lists as many devices, each slot sees its own.

    Raises:
        Stopped: ``stop`` was set while waiting.
    """
    slots = int(os.environ.get("ALIGNFLOW_DEVICE_SLOTS", "1"))
    with ExitStack() as held:
        number = _take_any(slots, held, stop, waiting)
        if server:
            _take_shared(held, stop, waiting)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        own = slots > 1 and len(visible) == slots
        yield {"CUDA_VISIBLE_DEVICES": visible[number]} if own else {}


def _take_any(slots: int, held: ExitStack, stop: Event, waiting: Callable[[], None]) -> int:
    make_home()
    told = False
    while True:
        for number in range(slots):
            if _take(home() / f"device-{number}.lock", held):
                return number
        if not told:
            waiting()
            told = True
        if stop.wait(0.2):
            raise Stopped


def _take(path: Path, held: ExitStack) -> bool:
    file = os.fdopen(private(str(path), os.O_WRONLY | os.O_CREAT), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    held.enter_context(file)
    return True


def _take_shared(held: ExitStack, stop: Event, waiting: Callable[[], None]) -> None:
    from prefect.concurrency.sync import concurrency

    started = time.monotonic()
    while not stop.is_set():
        try:
            held.enter_context(concurrency(LIMIT, lease_duration=LEASE_SECONDS, timeout_seconds=PATIENCE_SECONDS))
            return
        except TimeoutError:
            if time.monotonic() - started < 2 * PATIENCE_SECONDS:
                waiting()
    raise Stopped
