"""The few git commands the flows need; none of them touches the user's index, branch or files."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flows.errors import UserError

NO_REPOSITORY = "not a git repository"
NAMELESS = {"NAME": "alignflow", "EMAIL": "alignflow@localhost"}


def git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run git in a folder, without the user's hooks, and return what it printed.

    Raises:
        UserError: there is no git, or it failed; the message is git's own, in English.
    """
    try:
        done = subprocess.run(
            ["git", "-c", "core.hooksPath=/dev/null", *arguments],
            cwd=folder,
            env={**os.environ, "LANGUAGE": "C", **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("git is not installed; a run needs it for its private checkout") from None
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def checkout_root(folder: Path) -> Path:
    """Return the root of the git checkout that holds ``folder``, after checking that the pipeline can run in it.

    Raises:
        UserError: not a git checkout, without a commit, or without a file that the pipeline needs.
    """
    try:
        root = Path(git(folder, "rev-parse", "--show-toplevel"))
    except UserError as error:
        if NO_REPOSITORY not in str(error):  # e.g. a folder of another user: git says what to do
            raise
        raise UserError(f"{folder} is not inside a git checkout; clone the project, or `git init` and commit") from None
    for needed in (".dvc", "dvc.yaml", "params.yaml"):
        if not (root / needed).exists():
            raise UserError(f"{root / needed} is missing; run inside a checkout of the project")
    try:
        git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except UserError:
        raise UserError(f"{root} has no commit yet; `git add . && git commit` first") from None
    return root


def tree_of(checkout: Path) -> str:
    """Return the id of a git tree of the folder as it is now, uncommitted and untracked files included.

    Works on a copy of the index, so the user's staging area and files stay as they are.
    """
    index = Path(git(checkout, "rev-parse", "--path-format=absolute", "--git-path", "index"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        if index.exists():
            shutil.copy2(index, copy)
        env = {"GIT_INDEX_FILE": str(copy)}
        git(checkout, "add", "--all", env=env)
        return git(checkout, "write-tree", env=env)


def identity(checkout: Path) -> dict[str, str]:
    """Return environment variables with which a commit has an author and a committer, also where git knows no name."""
    try:
        git(checkout, "config", "user.name")
        git(checkout, "config", "user.email")
    except UserError:
        names = {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in NAMELESS.items()}
        return {name: os.environ.get(name, value) for name, value in names.items()}
    return {}
