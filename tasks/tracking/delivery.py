"""When records are delivered and what happens when that fails; ``tasks.tracking.mlflow`` sends them."""

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from tasks.tracking.outbox import (
    children,
    exclusive,
    has_ended,
    masked,
    pending_records,
    private,
    title,
    undelivered,
    uri_of,
    without_secrets,
)

LIVE_SECONDS = 2.0  # metrics of a running stage appear about this late
LONGEST_PAUSE = 30.0  # between attempts while the server is away
LOCK_SECONDS = 30.0  # wait for a process that delivers the same record, then leave it to that process
# With MLflow's defaults one lost request blocks a delivery for minutes; a user's setting has priority.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # what a run measures goes to the user's server and nowhere else
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def deliver_all(outbox: Path, send: Callable[[Path], None], reach: Callable[[str], None]) -> list[str]:
    """Deliver every record that is pending; return a line with the reason for each that failed."""
    failed: list[str] = []
    unreachable: dict[str, str] = {}  # each server is asked once
    with _environment():
        for folder in pending_records(outbox):
            uri = uri_of(folder)
            if uri not in unreachable:
                unreachable[uri] = _failure(reach, uri)
            reason = unreachable[uri] or _attempt(folder, send, wait=LOCK_SECONDS)
            if reason:
                failed.append(f"{title(folder)}: {undelivered(folder)} to {without_secrets(uri)} ({reason})")
    return failed


def unreachable(uri: str, reach: Callable[[str], None]) -> str:
    """Return why a server cannot be used; empty if it can."""
    with _environment():
        return _failure(reach, uri)


def follow(folder: Path, send: Callable[[Path], None]) -> None:
    """Deliver a record while its stage runs, and once more when the stage has ended or died; then return.

    A stage that died leaves its run RUNNING, so that the resumed stage continues it. A pipeline's process
    also delivers what its ended stages could not.
    """
    pause, lives = 0.0, True
    with _environment():
        while lives:
            lives = _lives(pause)
            failed = bool(_attempt(folder, send, wait=LOCK_SECONDS))
            if not failed:
                for child in children(folder):
                    if has_ended(child):
                        _attempt(child, send, wait=0)
            pause = min(2 * max(pause, LIVE_SECONDS), LONGEST_PAUSE) if failed else LIVE_SECONDS


def _lives(seconds: float) -> bool:
    """Wait; return at once with False when the stage has closed our standard input, or died."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return not readable


def _attempt(folder: Path, send: Callable[[Path], None], *, wait: float) -> str:
    """Deliver the rest of one record; return the reason of a failure, and write it beside the record."""
    note = folder / "problem.txt"
    if not undelivered(folder):
        return ""
    try:
        with exclusive(folder, wait):
            send(folder)
    except Exception as error:  # whatever went wrong, the record stays and the next attempt may succeed
        if not isinstance(error, BlockingIOError):  # the other process reports its result
            with open(note, "w", opener=private) as file:
                file.write(reason_of(error))
        return reason_of(error)
    note.unlink(missing_ok=True)
    return ""


def _failure(reach: Callable[[str], None], uri: str) -> str:
    try:
        reach(uri)
    except Exception as error:  # any failure means the same here
        return reason_of(error)
    return ""


def reason_of(error: BaseException) -> str:
    """Return an error as one short line: the operating system's error if that is the cause of MLflow's."""
    if _status(error) == HTTPStatus.UNAUTHORIZED:
        return "user name or password is wrong; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "no answer"
        cause = cause.__cause__ or cause.__context__
    return masked((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


def is_refused(error: Exception) -> bool:
    """Return whether the server rejected this request; the rest of the record can still be delivered."""
    return _status(error) == HTTPStatus.BAD_REQUEST


def _status(error: BaseException) -> int | None:
    """Return the status of the server's answer that MLflow's error is about; None if there is none."""
    status = getattr(error, "get_http_status_code", None)
    return int(status()) if status else None


@contextmanager
def _environment() -> Iterator[None]:
    """Set MLflow's timeouts and log level for the time of a delivery."""
    new = {key: value for key, value in {**IMPATIENT, **QUIET}.items() if key not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            del os.environ[key]
