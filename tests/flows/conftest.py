"""A toy project with the real pipeline's shape, in a real git and DVC repository, and one Prefect server."""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.project import CODE, Toy


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The project as cloned: committed, nothing computed. To be copied, not changed."""
    toy = Toy(tmp_path_factory.mktemp("bare") / "project")
    shutil.copytree(CODE / "tests/flows/toy", toy.root)
    toy.orders.mkdir()
    for name in ("params.yaml", ".gitignore"):
        shutil.copy(CODE / name, toy.root)
    toy.do("git", "init", "--quiet")
    toy.do("dvc", "init", "--quiet")
    toy.do("git", "add", "--all")
    identity = ("-c", "user.name=Toy", "-c", "user.email=toy@localhost")
    toy.do("git", *identity, "commit", "--quiet", "--message", "toy")
    toy.do(sys.executable, "-m", "flows.cli", "set", "iterative_dpo.shards=2")
    toy.do("git", *identity, "commit", "--quiet", "--all", "--message", "two rounds")
    return toy


@pytest.fixture(scope="session")
def first_run(bare: Toy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, str]:
    """The project after the very first `alignflow run`, on Prefect's temporary server, and what that printed.

    One for all workers of a test run: the first makes it, others wait. To be copied, not changed.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first"
    said = folder / "said"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            toy = _copy(bare, folder)
            done = toy.alignflow("run", HOME=str(folder))
            assert done.returncode == 0, done.stdout + done.stderr
            said.write_text(done.stdout)
    return Toy(folder / bare.root.name), said.read_text()


@pytest.fixture
def cloned(bare: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A project in which nothing has been computed yet."""
    return _enter(_copy(bare, tmp_path), monkeypatch)


@pytest.fixture
def after_first_run(first_run: tuple[Toy, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A project in which the pipeline has run once, with its diary of that run."""
    return _enter(_copy(first_run[0], tmp_path), monkeypatch)


@pytest.fixture
def toy(after_first_run: Toy) -> Toy:
    """A project in which the pipeline has run once, with an empty diary."""
    after_first_run.forget()
    return after_first_run


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """One real Prefect server with a database of its own; its address."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


def _copy(toy: Toy, folder: Path) -> Toy:
    shutil.copytree(toy.root.parent, folder, dirs_exist_ok=True, symlinks=True)
    return Toy(folder / toy.root.name)


def _enter(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Go there, as a user would; flows that run in this process then find it."""
    from tasks.paths import home

    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "ALIGNFLOW_"))]:
        monkeypatch.delenv(name)
    for name, value in toy.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(toy.root)
    home.cache_clear()
    return toy
