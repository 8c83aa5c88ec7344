"""Settings that Prefect reads when it is imported; so this runs first and does not import Prefect."""

import os
import tomllib
from pathlib import Path

from tasks.paths import home

QUIET = {
    # stage lines go to the run's page and to our own display; Prefect's console would repeat them
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
OWN_SERVER = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 is too short while a training runs
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def prepare() -> None:
    """Choose the Prefect server for a flow run of this process.

    A server that the user has configured is used. Otherwise Prefect starts a temporary one by itself; its
    files then go to the project's home, and the user's own Prefect folder is neither read nor written.
    """
    settings = dict(QUIET)
    if not configured_server():
        folder = home() / "prefect"
        folder.mkdir(parents=True, exist_ok=True)  # Prefect makes the last level only
        settings |= OWN_SERVER | {"PREFECT_HOME": str(folder)}
    for key, value in settings.items():
        os.environ.setdefault(key, value)


def configured_server() -> str:
    """Return the API address in the environment or in the user's active Prefect profile; empty if none."""
    if given := os.environ.get("PREFECT_API_URL"):
        return given
    folder = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", folder / "profiles.toml"))
    if not path.exists():
        return ""
    profiles = tomllib.loads(path.read_text())
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
    return str(profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL", ""))
