"""Run one stage of the pipeline: DVC decides whether it has to run, a supervisor can stop it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Protocol

from flows import device, supervise
from flows.errors import UserError
from flows.graph import Node
from tasks.paths import home
from tasks.running import progress
from tasks.running.progress import StepProgress
from tasks.tracking.outbox import masked

GRACE_SECONDS = 20  # for a checkpoint after SIGTERM; Prefect kills a cancelled flow after 30
TAIL = 12  # last lines of a failed stage that its error shows

WAITING, RUNNING, FAILED = "waiting", "running", "failed"
RAN, RESTORED, UNCHANGED = "ran", "restored", "unchanged"
CHANGED, LOST = "changed", "lost"
WHY = {
    CHANGED: "its settings, code or inputs are new",
    LOST: "neither the cache nor a remote has its recorded results",
}
REFUSED = {"SHELL": shutil.which("false") or "false"}
"""DVC runs a stage's command by this program, which ends at once with an error."""

_NOISE = (  # DVC's advice, which does not apply here
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git",
    "To enable auto staging",
    "\tgit add",
    "\tdvc config",
    "Use `dvc push`",
)


class Say(Protocol):
    """Takes a line about the stage."""

    def __call__(self, state: str, text: str, steps: Sequence[StepProgress] = (), /) -> None:
        """Take the stage's state (a word from above), a line of text, and the steps that were done since the last."""


@dataclass(frozen=True)
class StageResult:
    """How a stage got its outputs: ``ran``, ``restored`` from a cache, or ``unchanged``."""

    stage: str
    target: str
    """The stage as DVC knows it."""
    how: str
    seconds: float
    """Without waiting for a slot."""
    metrics: Mapping[str, float]
    """From its metrics files."""


class StageFailed(UserError):
    """A stage ended with an error; the message ends with its last lines."""


class Stop:
    """Ends all supervised stages of this process at once (a flow runs several, in threads)."""

    def __init__(self) -> None:
        self.asked = Event()
        self._running: set[subprocess.Popen[str]] = set()

    def __call__(self) -> None:
        """Ask every stage to end and wait until the last has ended; their supervisors limit the time."""
        self.asked.set()
        running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()

    @contextmanager
    def covers(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Include a process while it runs."""
        self._running.add(process)
        try:
            if self.asked.is_set():  # asked between the start and the line above
                process.terminate()
            yield
        finally:
            self._running.discard(process)


def run(
    stage: Node,
    root: Path,
    say: Say,
    stop: Stop,
    *,
    env: Mapping[str, str] | None = None,
    server: bool = False,
    compute: bool = True,
) -> StageResult:
    """Bring one stage up to date in a checkout whose upstream stages are.

    Raises:
        StageFailed: its command failed, it was stopped, or it would have to be computed and may not be.
    """
    how, seconds = UNCHANGED, 0.0
    if (state := _state(stage, root)) != UNCHANGED:

        def waiting() -> None:
            say(WAITING, "waiting for a device slot")

        try:
            with ExitStack() as held:
                seen: Mapping[str, str] = {}
                if stage.device and compute:
                    seen = held.enter_context(device.slot(stop.asked, server=server, waiting=waiting))
                started = time.monotonic()
                how = _reproduce(stage, root, say, stop, {**(env or {}), **seen, **({} if compute else REFUSED)})
                seconds = round(time.monotonic() - started, 1)
        except device.Stopped:
            raise StageFailed(f"{stage.name} was stopped before it began") from None
        except StageFailed:
            if compute or stop.asked.is_set():
                raise
            raise StageFailed(f"{stage.name} has to be computed: {WHY[state]}; --no-compute computes nothing") from None
        if (how, state) == (RAN, LOST):
            say(RUNNING, f"was computed again: {WHY[LOST]}")
    say(how, f"{how} ({seconds:.1f} s)" if seconds else how)
    return StageResult(stage.name, stage.target, how, seconds, _metrics(stage, root))


def run_alone(name: str, root: Path, say: Say, stop: Stop) -> None:
    """Run a stage that DVC does not know, on the device, whatever has changed.

    Raises:
        StageFailed: it failed, or it was stopped.
    """

    def waiting() -> None:
        say(WAITING, "waiting for a device slot")

    try:
        with device.slot(stop.asked, server=False, waiting=waiting) as seen:
            _follow(name, [sys.executable, "-m", "tasks", name], root, say, stop, seen)
    except device.Stopped:
        raise StageFailed(f"{name} was stopped before it began") from None


@contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Stop the stages at once on SIGTERM and Ctrl-C, then call the earlier signal handler.

    Prefect alone would wait for its task threads, while the trainings go on for half a minute.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    earlier = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        stop()
        previous = earlier[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)
        else:
            raise SystemExit(128 + number)

    try:
        for number in signals:
            signal.signal(number, handle)
    except ValueError:  # not in the main thread, which alone handles signals
        yield
        return
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, earlier[number])


def _state(stage: Node, root: Path) -> str:
    """Ask DVC in this process (0.1 s; a DVC process takes 0.6 s); if DVC cannot answer, the stage runs."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            # a bare name would be looked up in the working folder's dvc.yaml
            found = repo.status(targets=[str(root / stage.address)])
    except (DvcException, LockError):
        return CHANGED
    reasons = [reason for each in found.values() for reason in each]
    if not reasons:
        return UNCHANGED
    return LOST if all(_only_missing(reason) for reason in reasons) else CHANGED


def _only_missing(reason: object) -> bool:
    """Return whether a stage is out of date because its outputs are missing, and for nothing else."""
    if not isinstance(reason, dict) or set(reason) != {"changed outs"}:
        return False
    return {*reason["changed outs"].values()} <= {"deleted", "not in cache"}


def _reproduce(stage: Node, root: Path, say: Say, stop: Stop, env: Mapping[str, str]) -> str:
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *_pull(root), stage.target]
    how = RESTORED

    def watch(state: str, text: str, steps: Sequence[StepProgress] = ()) -> None:
        nonlocal how
        if text.startswith("Running stage"):
            how = RAN
        say(state, text, steps)

    _follow(stage.name, dvc, root, watch, stop, env)
    return how


def _follow(name: str, command: Sequence[str], root: Path, say: Say, stop: Stop, env: Mapping[str, str]) -> None:
    """Run a supervised command and tell its lines and progress."""
    tail = deque[str](maxlen=TAIL)
    say(RUNNING, "starting")
    with tempfile.NamedTemporaryFile(prefix="alignflow-progress-") as file:
        reader = progress.Reader(Path(file.name))
        with _supervised(command, root, stop, {**env, progress.VARIABLE: file.name}) as process:
            assert process.stdout is not None
            for line in (masked(line.rstrip()) for line in process.stdout):
                if line and not line.startswith(_NOISE):
                    tail.append(line)
                    say(RUNNING, line, reader.new())
            status = process.wait()
    if status:
        cause = "was stopped" if stop.asked.is_set() else f"failed with exit status {status}"
        raise StageFailed("\n  ".join([f"{name} {cause}", *tail]))


@contextmanager
def _supervised(
    command: Sequence[str], root: Path, stop: Stop, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        supervise.command([*command], GRACE_SECONDS),
        cwd=root,
        stdin=subprocess.PIPE,  # it closes when this process ends, and the supervisor then stops the command
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=True,
        env={**os.environ, "PATH": _path(), "PYTHONUNBUFFERED": "1", "ALIGNFLOW_HOME": str(home()), **env},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout, stop.covers(process):
        yield process


def _path() -> str:
    """Return the search path with this interpreter first: dvc.yaml says `python`, activated environment or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _metrics(stage: Node, root: Path) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for path in stage.metrics:
        numbers |= json.loads((root / path).read_text())
    return numbers


def _pull(root: Path) -> list[str]:
    """``--pull`` fetches results that another machine has pushed; without a remote DVC warns about it."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return ["--pull"] if repo.config["core"].get("remote") else []
