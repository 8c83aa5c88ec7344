"""A private checkout for every flow run.

What a stage reads must not change while it runs: DVC records the parameters it finds *after* a stage
has run. So a run works in a git worktree under ``home()/runs`` that starts as an exact copy of the user's
files (uncommitted and untracked ones too), shares the DVC cache, and has overrides applied to its own
``params.yaml`` only. Its result is saved as a DVC experiment on the user's commit.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.errors import UserError
from flows.git import git, identity, tree_of
from flows.graph import PIPELINE
from tasks.params.names import suggest
from tasks.paths import LOCK, RULES, home, make_home
from tasks.tracking.outbox import private

KEPT = ("evaluations", "judgements", "reports", "params.yaml", str(RULES))
"""What the comparison over seeds reads of each seed's run."""


@dataclass(frozen=True)
class Workspace:
    """Where a flow run works and what it started from."""

    folder: str
    checkout: str
    name: str
    """Of the DVC experiment."""
    overrides: tuple[str, ...]
    tree: str
    """Git tree of the user's files at the start."""
    before: str
    """Git tree of the workspace at the start: the same, with overrides applied."""
    series: str = ""
    """Key of the run over seeds that it is a part of; empty without one."""

    @property
    def path(self) -> Path:
        """The root of the worktree."""
        return Path(self.folder)


def create(run: str, checkout: Path, overrides: Sequence[str], name: str, series: str = "") -> Workspace:
    """Make the workspace of a flow run, or return the one that an earlier attempt of this run left.

    Raises:
        UserError: the experiment's name is taken or not usable, or params.yaml names a file outside the checkout.
        tasks.params.read.ParamsError: an override names an unknown parameter or has a value out of range.
    """
    folder, record = _runs() / run, _runs() / f"{run}.json"
    if record.exists() and folder.exists():
        return _load(record)
    check_name(checkout, name, series)
    discard(checkout, run)  # what is left of an attempt that died while creating it
    make_home()
    folder.parent.mkdir(exist_ok=True)
    tree = tree_of(checkout)
    git(checkout, "worktree", "add", "--quiet", "--detach", "--no-checkout", str(folder), "HEAD")
    git(folder, "read-tree", "--reset", "-u", tree)
    _share(checkout, folder)
    if overrides:
        from tasks.params.edit import override

        override(folder / "params.yaml", overrides)
    _restore_known_outputs(folder)
    _bring_inputs(checkout, folder)
    made = Workspace(str(folder), str(checkout), name, tuple(overrides), tree, tree_of(folder), series)
    with open(record, "w", opener=private) as file:
        file.write(json.dumps(asdict(made)))  # last: a complete workspace has a record
    return made


def check_name(checkout: Path, name: str, series: str = "") -> None:
    """Make sure that a new experiment can have this name; one of the same series is replaced by it.

    Raises:
        UserError: it cannot.
    """
    try:
        git(checkout, "check-ref-format", f"refs/exps/{name}")
    except UserError:
        raise UserError(f"--name: {name!r} cannot name an experiment; use letters, digits, - and _") from None
    if "/" in name:
        raise UserError(f"--name: {name!r} cannot name an experiment: it holds a /")
    found = git(checkout, "for-each-ref", "--format=%(contents:subject)", f"refs/exps/*/*/{name}").splitlines()
    if [said for said in found if not series or said != _message(series)]:
        raise UserError(f"--name: experiment {name} exists; choose another, or `dvc exp remove {name}`")


def changed(workspace: Workspace) -> bool:
    """Return whether the run differs from what the user has: other parameters, or a stage's new result."""
    return bool(workspace.overrides) or tree_of(workspace.path) != workspace.before


def save(workspace: Workspace, stages: Sequence[str]) -> None:
    """Save the workspace as a DVC experiment on the user's commit.

    The stages are named because DVC would otherwise record *every* stage as up to date, also those that
    this run did not touch. DVC keeps its notes of a save in refs that all worktrees share, hence the lock.
    """
    with _exclusive(home() / "experiments.lock"):
        message = ("--message", _message(workspace.series)) if workspace.series else ()
        save = ("exp", "save", "--force", "--name", workspace.name, *message, *stages)
        done = _dvc(workspace.path, *save, env=identity(workspace.path))
    if done.returncode:
        raise UserError(f"could not save experiment {workspace.name}: {_last_line(done.stderr)}")


def bring_back(workspace: Workspace) -> bool:
    """Put the run's lock and outputs into the user's checkout; False if that is not safe.

    Safe means: no overrides, no file of the user changed since the start, and no output there that DVC does
    not know (`dvc checkout` refuses to overwrite those). On False the checkout is as it was.
    """
    checkout = Path(workspace.checkout)
    if workspace.overrides or tree_of(checkout) != workspace.tree:
        return False
    different = git(workspace.path, "diff", "-z", "--name-only", workspace.before, tree_of(workspace.path))
    # what DVC itself writes
    made = [path for path in different.split("\0") if Path(path).name in (LOCK.name, ".gitignore")]
    earlier = {path: _read(checkout / path) for path in made}
    for path in made:
        _write(checkout / path, _read(workspace.path / path))
    if _dvc(checkout, "checkout", "--allow-missing").returncode == 0:
        return True
    for path, content in earlier.items():
        _write(checkout / path, content)
    return False


def apply(checkout: Path, name: str) -> None:
    """Bring an experiment into the user's files.

    DVC brings all of it, but reports an error for each stage that the experiment did not run.

    Raises:
        UserError: there is no such experiment, or it could not be applied.
    """
    known = git(checkout, "for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps/*/*/*").splitlines()
    commits = dict(line.split() for line in known)
    if name not in commits:
        raise UserError(f"no experiment {name}{suggest(name, commits) if commits else ': there are none yet'}")
    done = _dvc(checkout, "exp", "apply", name)
    if not done.returncode:
        return
    # a stage without results is an error for DVC, after it has brought all else
    files = (PIPELINE, "params.yaml", str(LOCK))
    wanted = [git(checkout, "rev-parse", f"{commits[name]}:{file}") for file in files]
    brought = git(checkout, "hash-object", *files).split() == wanted
    if not brought or _dvc(checkout, "checkout", "--allow-missing").returncode:
        raise UserError(f"could not apply experiment {name}: {_last_line(done.stderr)}")


def keep(workspace: Workspace) -> None:
    """Copy what the comparison over seeds reads into the folder of the series."""
    target = series_folder(workspace.series) / workspace.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in KEPT:
        made = workspace.path / name
        if made.is_dir():
            shutil.copytree(made, target / name)
        elif made.exists():
            shutil.copy(made, target / name)


def series_folder(key: str) -> Path:
    """Return the folder of a run over seeds; it lies with the workspaces, so `prune` removes what is left of it."""
    return _runs() / series_run(key)


def series_run(key: str) -> str:
    """Return the name under which a run over seeds is in use and is discarded."""
    return f"seeds-{key}"


def discard(checkout: Path, run: str) -> None:
    """Remove a run's worktree and record."""
    folder = _runs() / run
    if folder.exists():
        with suppress(UserError):  # git does not know a folder that was created only in part
            git(checkout, "worktree", "remove", "--force", str(folder))
        shutil.rmtree(folder, ignore_errors=True)
    git(checkout, "worktree", "prune")
    (_runs() / f"{run}.json").unlink(missing_ok=True)


@contextmanager
def in_use(run: str) -> Iterator[None]:
    """Mark a run as being worked on, for as long as this process lives, so that ``prune`` leaves it alone."""
    lock = _runs() / f"{run}.lock"
    with _exclusive(lock):
        yield
        lock.unlink(missing_ok=True)


def prune(checkout: Path, *, dry_run: bool) -> Iterator[tuple[str, bool]]:
    """Remove the workspaces of failed and cancelled runs; yield each name, and False if it is still in use."""
    for folder in sorted(f for f in _runs().glob("*") if f.is_dir()):
        lock = _runs() / f"{folder.name}.lock"
        try:
            with _exclusive(lock, wait=False):
                if not dry_run:
                    discard(checkout, folder.name)
                    lock.unlink(missing_ok=True)
        except BlockingIOError:
            yield folder.name, False
        else:
            yield folder.name, True


def _message(series: str) -> str:
    """Return the commit message of an experiment of a series, by which it is known again."""
    return f"alignflow: series {series}"


def _runs() -> Path:
    return home() / "runs"


def _load(record: Path) -> Workspace:
    fields = json.loads(record.read_text())
    return Workspace(**{**fields, "overrides": tuple(fields["overrides"])})


def _share(checkout: Path, folder: Path) -> None:
    """Give the worktree the checkout's DVC cache, remotes (also private settings) and converted models."""
    from dvc.config import Config, merge
    from dvc.repo import Repo

    with Repo(str(checkout)) as repo:
        cache = repo.cache.local_cache_dir
    theirs = Config(str(checkout / ".dvc"), validate=False)
    with Config(str(folder / ".dvc"), validate=False).edit("local") as settings:
        for level in ("repo", "local"):  # paths in them are relative to the checkout; DVC has resolved them
            merge(settings, theirs.read(level))
        # relative, so that DVC writes it relative to its file: of a path it can write ASCII alone
        merge(settings, {"cache": {"dir": os.path.relpath(cache)}})
    models = checkout / "models"
    models.mkdir(exist_ok=True)
    if not (folder / "models").exists():
        (folder / "models").symlink_to(models.resolve())


def _bring_inputs(checkout: Path, folder: Path) -> None:
    """Bring along what params.yaml names and git does not know: a copy of data, a link to a model.

    Raises:
        UserError: a path leads out of the checkout.
    """
    from tasks.params.read import load

    params = load(folder / "params.yaml")
    data = {"data.path": params.data.path, "evaluate.capability_path": params.evaluate.capability_path}
    data |= {f"data.sources, entry {i}": source.path for i, source in enumerate(params.data.sources, start=1)}
    models = {"base.model": params.base.model, "base.chat_template": params.base.chat_template}
    for key, given in {**data, **models}.items():
        if given is None or Path(given).is_absolute():
            continue
        here, there = checkout / given, folder / given
        if not here.exists() or _has(there, here):
            continue
        if ".." in Path(given).parts and not here.resolve().is_relative_to(checkout.resolve()):
            raise UserError(
                f"{key}: {given} lies outside the checkout, where a run does not see it; give its full path"
            )
        there.parent.mkdir(parents=True, exist_ok=True)
        if key in models:
            there.symlink_to(here.resolve())
        elif here.is_dir():  # without .git, where it is a clone
            shutil.copytree(here, there, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
        else:
            shutil.copy(here, there)


def _has(there: Path, here: Path) -> bool:
    """Return whether a file, or every file of a folder, is in another place, too."""
    files = [path.relative_to(here) for path in here.rglob("*") if ".git" not in path.parts] if here.is_dir() else []
    return there.exists() and all((there / path).exists() for path in files)


def _restore_known_outputs(folder: Path) -> None:
    """Check out what dvc.lock and the cache know already: unchanged stages then need no process at all."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with suppress(DvcException), Repo(str(folder)) as repo:
        known = [out.fs_path for stage in repo.index.stages for out in stage.outs if out.hash_info]
        if known:
            repo.checkout(known, force=True, allow_missing=True)


def _dvc(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    # not a terminal: DVC refuses where it would otherwise ask
    return subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")


@contextmanager
def _exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    make_home()
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", opener=private) as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, path)
