"""Settings that Prefect reads when it is imported; so this runs first and does not import Prefect."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from flows import server
from tasks.paths import home

QUIET = {
    # stage lines go to the run's page and to our own display; Prefect's console would repeat them
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
OWN_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def prepare() -> None:
    """Choose the Prefect server for a flow run of this process.

    A server that the user has configured is used. Otherwise a temporary one starts; its files
    are in the project's home, and the user's own Prefect folder is neither read nor written.

    Raises:
        UserError: the temporary server does not start.
    """
    _default(QUIET)
    if not configured_server():
        folder = home() / "prefect"
        folder.mkdir(parents=True, exist_ok=True)  # Prefect makes the last level only
        _default(OWN_SERVER | {"PREFECT_HOME": str(folder)})
        os.environ["PREFECT_API_URL"] = server.start(folder)


def _default(settings: Mapping[str, str]) -> None:
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
