"""A toy project to run flows in, and ways to look at it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).parents[2]
STAGES = [
    "answer@dpo",
    "answer@iterative_dpo",
    "compare",
    "dpo",
    "evaluate@dpo",
    "evaluate@iterative_dpo",
    "iterative_dpo@round-1",
    "iterative_dpo@round-2",
    "judge_model",
    "sft",
]


@dataclass(frozen=True)
class Toy:
    """A project folder and what its stages did there."""

    root: Path

    @property
    def orders(self) -> Path:
        return self.root.parent / "orders"

    def order(self, what: str, text: str = "") -> Path:
        """Leave an order, e.g. ``hold dpo`` or ``fail dpo`` (with how often)."""
        path = self.orders / what
        path.write_text(text)
        return path

    @contextmanager
    def held(self, *stages: str, meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Inside the block, hold the stages until all of them have begun, do something, and let them go on.

        When they do not begin together, they go on all the same, and the block ends with that error.
        """
        holds = [self.order(f"hold {name}") for name in stages]

        def watch() -> None:
            try:
                until(lambda: set(stages) <= set(self.events("began")), f"{' and '.join(stages)} began", seconds=90)
                meanwhile()
            finally:
                for hold in holds:
                    hold.unlink()

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            yield
            watching.result()

    @contextmanager
    def flow(self, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Run `alignflow run` beside the block; what is left of it at the end is killed."""
        with subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", *arguments],
            cwd=self.root,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def events(self, what: str) -> list[str]:
        """The stages that ``began``, ``ended`` or were ``stopped``, in that order of time."""
        return [name for event, name, _ in self.diary() if event == what]

    def diary(self) -> list[list[str]]:
        path = self.orders / "diary"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def forget(self) -> None:
        (self.orders / "diary").unlink(missing_ok=True)

    def do(self, *command: str, **env: str) -> str:
        """Run a command in the project; it has to succeed."""
        done = self.attempt(*command, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def attempt(self, *command: str, at: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project or another folder, whatever becomes of it."""
        return subprocess.run(
            command,
            cwd=at or self.root,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "ALIGNFLOW_"))}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(CODE),
            "TOY_ORDERS": str(self.orders),
            "GIT_CONFIG_GLOBAL": os.devnull,  # a fresh machine: nobody told git a name
            "GIT_CONFIG_SYSTEM": os.devnull,
        }

    def alignflow(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.attempt(sys.executable, "-m", "flows.cli", *arguments, **env)

    def files(self) -> dict[str, bytes]:
        """Everything the user has in the project, outputs included; no git or DVC internals."""
        hidden = {".git", ".dvc", ".alignflow"}
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.relative_to(self.root).parts[0] not in hidden
        }

    def status(self) -> str:
        return self.do("git", "status", "--short")

    def stale(self) -> str:
        """What DVC would compute; empty when everything is up to date."""
        said = self.do("dvc", "status")
        return "" if "up to date" in said else said

    def experiments(self) -> list[str]:
        return self.do("dvc", "exp", "list", "--name-only").split()


def until(true: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait until a condition holds; fail if it takes too long, saying what did not come."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
