"""The Prefect server of a run that has none: a temporary one, which ends with this process, however that ends.

It runs below a supervisor, as stages do. So a Ctrl-C in the terminal does not reach it, and the run can still tell
it how it ended; and when this process is killed, nothing is left of it.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from flows import supervise
from flows.errors import UserError

APPLICATION = "prefect.server.api.server:create_app"
HOST = "127.0.0.1"
GRACE_SECONDS = 5
START_SECONDS = 120.0  # a few on a free machine; a training may run beside it


def start(folder: Path) -> str:
    """Start a temporary server that ends with this process and keeps its files in a folder; return its API address.

    Raises:
        UserError: it does not start.
    """
    log = folder / "server.log"
    with socket.create_server((HOST, 0)) as listening, log.open("w") as lines:
        url = f"http://{HOST}:{listening.getsockname()[1]}/api"
        handle = str(listening.fileno())
        options = ["--fd", handle, "--log-level", "error", "--timeout-graceful-shutdown", "1"]
        process = subprocess.Popen(
            supervise.command([sys.executable, "-m", "uvicorn", "--factory", APPLICATION, *options], GRACE_SECONDS),
            stdin=subprocess.PIPE,
            stdout=lines,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"},
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
    atexit.register(_end, process)
    deadline = time.monotonic() + START_SECONDS
    while not _healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"Prefect's temporary server does not start; {log} says why")
        time.sleep(0.1)
    return url


def _healthy(url: str) -> bool:
    """Return whether the server answers; a connection waits until it does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/health", timeout=START_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
