"""The Prefect server of a run: the user's, or a temporary one, which ends with this process, however that ends.

The temporary one runs below a supervisor, as stages do. So a Ctrl-C in the terminal does not reach it, and the run
can still tell it how it ended; and when this process is killed, nothing is left of it.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from flows import supervise
from flows.errors import UserError
from tasks.tracking.outbox import private, without_secrets

APPLICATION = "prefect.server.api.server:create_app"
HOST = "127.0.0.1"
CLOUD = "https://api.prefect.cloud/"
ANSWER_SECONDS = 10.0
GRACE_SECONDS = 5
START_SECONDS = 600.0  # a few on a free machine; one that has ended is seen at once


def start(folder: Path) -> str:
    """Start a temporary server that ends with this process and keeps its files in a folder; return its API address.

    Raises:
        UserError: it does not start.
    """
    log = folder / "server.log"
    with socket.create_server((HOST, 0)) as listening, open(log, "w", opener=private) as lines:
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
            umask=0o077,  # its database holds what stages print
        )
    atexit.register(_end, process)
    deadline = time.monotonic() + START_SECONDS
    while not _healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"Prefect's temporary server does not start; {log} says why")
        time.sleep(0.1)
    return url


def check(url: str, source: str, authorization: str) -> None:
    """Make sure that a Prefect server answers.

    Args:
        url: its API address.
        source: where the user set it.
        authorization: header of the request; empty for none.

    Raises:
        UserError: it does not answer, refuses, or is no Prefect server.
    """
    shown = f"{without_secrets(url)} ({source})"
    no_server = f"no Prefect server at {shown}: its address begins with http and ends in /api"
    if not url.startswith(("http://", "https://")):
        raise UserError(no_server)
    try:
        asked = urllib.request.Request(f"{url.rstrip('/')}/admin/version")  # a request that needs authorization
        if authorization:
            asked.add_header("Authorization", authorization)
        with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(
                f"the Prefect server at {shown} does not accept the password; "
                "set PREFECT_API_AUTH_STRING=user:password, or PREFECT_API_KEY"
            ) from None
        if error.code >= 500:
            raise UserError(f"the Prefect server at {shown} answers {error.code} {error.reason}") from None
        if not url.startswith(CLOUD):
            raise UserError(no_server) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        instead = "start it, or remove the setting to use a temporary server"
        raise UserError(f"no Prefect server answers at {shown}: {reason}; {instead}") from None
    except ValueError:  # not JSON
        raise UserError(no_server) from None


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
