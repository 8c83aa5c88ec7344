"""Training states on disk: an interruption or a broken file at any moment leaves a good one.

A state is written aside, brought to the disk and renamed. The name holds a number and the start of the file's SHA-256;
the newest two stay: ``000007-….newest.pt`` and ``000006-….before.pt``.
"""

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

State = dict[str, Any]
Keep = Callable[[int, Callable[[], State]], None]
"""Receives an optimiser step and a function that returns the state there; decides whether to save it."""
NAME = re.compile(r"(\d{6})-([0-9a-f]{16})\.(newest|before)\.pt")


class Broken(ValueError):
    """A checkpoint cannot be used; the message says why."""


@dataclass(frozen=True)
class Found:
    """What a folder of checkpoints holds."""

    state: State | None
    """Of the newest good file."""
    path: Path | None
    """That file."""
    faults: tuple[str, ...]
    """What is wrong with newer files."""
    broken: tuple[Path, ...]
    """Newer files that are of no use."""


def save(folder: Path, state: State) -> None:
    """Add a state to a folder and remove all but the newest two.

    Raises:
        OSError: the disk refuses; the states that were there still are.
    """
    earlier = _files(folder)
    number = int(earlier[0].name[:6]) + 1 if earlier else 1
    with _aside(folder / f"{number:06}.pt") as partial:
        with partial.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch closes its archive, which fails as well
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            _to_disk(file)
        partial.replace(folder / f"{number:06}-{_digest(partial)}.newest.pt")
    sync(folder)  # before an older one goes
    for path in earlier[:1]:
        path.replace(path.with_name(path.name.replace(".newest.", ".before.")))
    for path in earlier[1:]:
        path.unlink()
    sync(folder)


def load(folder: Path) -> Found:
    """Return the newest good state, and what is wrong with newer ones; changes nothing."""
    files = _files(folder)
    faults, broken = list[str](), list[Path]()
    if files and not any(".newest." in path.name for path in files):
        faults.append("the newest file is missing")
    for path in files:
        try:
            return Found(read(path), path, tuple(faults), tuple(broken))
        except Broken as error:
            faults.append(f"{path.name}: {error}")
            broken.append(path)
    return Found(None, None, tuple(faults), tuple(broken))


def read(path: Path) -> State:
    """Return the state in a file.

    Raises:
        Broken: the file cannot be read, differs from its checksum, or holds something else than data.
    """
    try:
        if path.name.split(".")[0].rpartition("-")[2] != _digest(path):
            raise Broken("its checksum differs")
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Broken(f"it cannot be read ({error.strerror})") from None
    except pickle.UnpicklingError:
        raise Broken("it holds other things than tensors, numbers and texts, which are not loaded") from None
    except (RuntimeError, EOFError, KeyError) as error:
        raise Broken(f"it is no checkpoint ({type(error).__name__})") from None
    return state


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that the path holds either the old content or the new one, never a part, whoever else writes."""
    with _aside(path) as partial:
        with partial.open("wb") as file:
            write(file)
            _to_disk(file)
        partial.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Bring the entries of a folder to the disk: which files there are, under which names."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Bring a folder with all its files to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (folder, *filter(Path.is_dir, folder.rglob("*"))):
        sync(path)


def tidy(folder: Path) -> None:
    """Remove what killed processes were writing, below a folder."""
    for partial in folder.rglob("*.partial"):
        writer = partial.suffixes[-2].lstrip(".") if len(partial.suffixes) > 1 else ""
        if not (writer.isdecimal() and _lives(int(writer))):
            partial.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a path to write to before it gets its name; whatever is left there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _lives(process: int) -> bool:
    """Return whether another process of this number runs; this one is not writing when it asks."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
