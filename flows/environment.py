"""Settings that Prefect reads when it is imported; so this runs first and does not import Prefect."""

import base64
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from flows import server
from flows.errors import UserError
from tasks.paths import make_home
from tasks.tracking.outbox import without_secrets

QUIET = {
    # stage lines go to the run's page and to our own display; Prefect's console would repeat them
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
OWN_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def prepare() -> None:
    """Choose the Prefect server for a flow run of this process.

    A server that the user has configured is used. Otherwise a temporary one starts; its files
    are in the project's home, and the user's own Prefect folder is neither read nor written.

    Raises:
        UserError: the server that the user has configured does not answer, or the temporary one does not start.
    """
    _default(QUIET)
    url, source = setting("PREFECT_API_URL")
    if url:
        server.check(url, source, _authorization())
        return
    folder = make_home() / "prefect"
    folder.mkdir(exist_ok=True)
    _default(OWN_SERVER | {"PREFECT_HOME": str(folder)})
    os.environ["PREFECT_API_URL"] = server.start(folder)


def look() -> tuple[bool, str]:
    """Ask the Prefect server of a flow run; return whether it can be used, and what was found."""
    try:
        url, source = setting("PREFECT_API_URL")
        if url:
            server.check(url, source, _authorization())
    except UserError as error:
        return False, str(error)
    found = f"Prefect server at {without_secrets(url)} ({source})"
    return True, found if url else "no PREFECT_API_URL: each flow starts a temporary Prefect server"


def past_proxies() -> None:
    """Keep requests to this machine away from the proxies that the environment names."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    # Python reads the one, other programs the other
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [given, *THIS_MACHINE]))


def setting(name: str) -> tuple[str, str]:
    """Return one of Prefect's settings and the place where it is set: the environment or the user's active profile.

    Raises:
        UserError: the file of profiles cannot be read.
    """
    if given := os.environ.get(name):
        return given, f"{name} in the environment"
    folder = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", folder / "profiles.toml"))
    if not path.exists():
        return "", ""
    try:
        profiles = tomllib.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}, Prefect's file of profiles, cannot be read: {error}; mend or move it") from None
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
    return str(profiles.get("profiles", {}).get(active, {}).get(name, "")), f"{name} of profile {active} in {path}"


def _authorization() -> str:
    """Return the header by which Prefect's client proves who it is; empty where none is set."""
    if account := setting("PREFECT_API_AUTH_STRING")[0]:
        return f"Basic {base64.b64encode(account.encode()).decode()}"
    key = setting("PREFECT_API_KEY")[0]
    return f"Bearer {key}" if key else ""


def _default(settings: Mapping[str, str]) -> None:
    for key, value in settings.items():
        os.environ.setdefault(key, value)
