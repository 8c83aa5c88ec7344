"""The DVC remote, which keeps results for other machines: whether it can be used."""

from pathlib import Path

from flows.errors import UserError
from tasks.tracking.outbox import without_secrets


def check(root: Path) -> None:
    """Make sure that the package for the remote is installed; nothing is sent.

    Raises:
        UserError: it is not.
    """
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            return
        try:
            repo.cloud.get_remote_odb()
        except ImportError as error:
            kind = str(repo.config["remote"][name]["url"]).partition("://")[0]
            raise UserError(f"DVC remote {name}: {error}; `pip install 'dvc[{kind}]'`") from None


def look(root: Path) -> tuple[bool, str]:
    """Ask the remote; return whether it holds results, and what was found."""
    from dvc.repo import Repo

    try:
        check(root)
    except UserError as error:
        return False, str(error)
    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            return True, "no DVC remote: results stay on this machine"
        store = repo.cloud.get_remote_odb()
        shown = f"DVC remote {name} at {without_secrets(str(repo.config['remote'][name]['url']))}"
        if store.fs.exists(store.path):
            return True, shown
        return False, f"{shown} holds no results or does not answer; `dvc push` sends them or says why not"
