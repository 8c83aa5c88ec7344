"""Training states on disk, after every way to lose or spoil a file."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow import checkpoint
from tests.close import EXACT, close


def test_a_state_comes_back_as_it_was(tmp_path: Path):
    state = {"step": 3, "optimizer": {"masters": [[torch.arange(3.0)]]}, "history": [{"loss": 0.5}], "seconds": 1.5}
    checkpoint.save(tmp_path / "deep", state)
    found = checkpoint.load(tmp_path / "deep")
    assert found.state is not None
    close(found.state["optimizer"]["masters"][0][0], [0.0, 1, 2], EXACT)
    assert (found.state["step"], found.state["history"], found.state["seconds"]) == (3, [{"loss": 0.5}], 1.5)
    assert list((tmp_path / "deep").iterdir()) == [found.path]
    assert found.faults == ()


def test_no_file_is_no_state(tmp_path: Path):
    assert checkpoint.load(tmp_path / "none") == checkpoint.Found(None, None, (), ())


def save(folder: Path, count: int) -> list[Path]:
    """Save states of steps 1 to ``count``; return the files, newest first."""
    for step in range(1, count + 1):
        checkpoint.save(folder, {"step": step, "masters": torch.full((1000,), float(step))})
    return sorted(folder.iterdir(), reverse=True)


def step_of(folder: Path) -> int | None:
    state = checkpoint.load(folder).state
    return None if state is None else state["step"]


def test_the_newest_two_are_kept(tmp_path: Path):
    files = save(tmp_path, 5)
    assert [path.name[:6] + path.name[23:] for path in files] == ["000005.newest.pt", "000004.before.pt"]
    assert step_of(tmp_path) == 5


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (cut, "its checksum differs"),
        (flip, "its checksum differs"),
        (empty, "its checksum differs"),
        (Path.unlink, "the newest file is missing"),
    ],
)
def test_a_newest_file_that_is_lost_or_broken_leaves_the_one_before(
    tmp_path: Path, spoil: Callable[[Path], None], fault: str
):
    newest, before = save(tmp_path, 4)
    spoil(newest)
    found = checkpoint.load(tmp_path)
    assert found.state is not None
    assert (found.state["step"], found.path) == (3, before)
    assert [line.rpartition(": ")[2] for line in found.faults] == [fault]


def test_two_broken_files_are_no_state_and_both_are_named(tmp_path: Path):
    files = save(tmp_path, 2)
    for path in files:
        flip(path)
    found = checkpoint.load(tmp_path)
    assert found.state is None
    assert found.broken == tuple(files)
    assert [line.partition(":")[0] for line in found.faults] == [path.name for path in files]


def test_any_flipped_bit_is_seen(tmp_path: Path):
    (newest,) = save(tmp_path, 1)
    good = newest.read_bytes()
    for place in torch.randint(0, 8 * len(good), (200,), generator=torch.Generator().manual_seed(1)).tolist():
        content = bytearray(good)
        content[place // 8] ^= 1 << place % 8
        newest.write_bytes(content)
        with pytest.raises(checkpoint.Broken, match="checksum differs"):
            checkpoint.read(newest)


class Unsaveable:
    def __reduce__(self) -> str:
        raise KeyboardInterrupt


def test_an_interrupted_save_leaves_the_old_states(tmp_path: Path):
    files = save(tmp_path, 3)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, {"step": 4, "bad": Unsaveable()})
    assert sorted(tmp_path.iterdir(), reverse=True) == files
    checkpoint.save(tmp_path, {"step": 5})
    assert step_of(tmp_path) == 5


def save_until_killed(folder: Path, at: int) -> None:
    """Save a state in a process that is killed before its call number ``at`` of those that touch the disk."""
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        return call

    for module, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "open")):
        setattr(module, name, counted(getattr(module, name)))
    checkpoint.save(folder, {"step": 4})


def test_a_kill_at_any_moment_of_saving_leaves_a_good_state(tmp_path: Path):
    """Before each call that touches the disk, until one save ends without a kill."""
    steps = list[int | None]()
    for at in range(1, 30):
        folder = tmp_path / str(at)
        save(folder, 3)
        process = multiprocessing.get_context("fork").Process(target=save_until_killed, args=(folder, at))
        process.start()
        process.join()
        steps.append(step_of(folder))
        assert checkpoint.load(folder).faults == ()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        checkpoint.tidy(folder)
        assert not list(folder.glob("*.partial"))
        checkpoint.save(folder, {"step": 5})
        assert step_of(folder) == 5
        assert len(list(folder.iterdir())) == 2
    assert process.exitcode == 0
    assert len(steps) > 6
    assert steps == sorted(steps, key=str)  # once the new state is there it stays
    assert (steps[0], steps[-1]) == (3, 4)


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 3)
    done = list[str]()
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def synced(file: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{file}").resolve().is_dir() else "file")
        fsync(file)

    def named(self: Path, target: Path) -> Path:
        done.append("name" if self.suffix == ".partial" else "older")
        return replace(self, target)

    def removed(self: Path, missing_ok: bool = False) -> None:
        if self.exists():
            done.append("remove")
        unlink(self, missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    monkeypatch.setattr(Path, "unlink", removed)
    checkpoint.save(tmp_path, {"step": 4})
    assert done == ["file", "name", "folder", "older", "remove", "folder"]


def test_what_a_killed_process_was_writing_goes_and_what_a_living_one_writes_stays(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        files = {name: tmp_path / "a" / f"000001.{name}.partial" for name in (str(gone.pid), str(living.pid), "x")}
        (tmp_path / "a").mkdir()
        for path in files.values():
            path.touch()
        checkpoint.tidy(tmp_path)
        assert list((tmp_path / "a").iterdir()) == [files[str(living.pid)]]
        living.communicate(b"\n")


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("hides", ["alone", "in a tensor's place"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hides: str):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, {"step": 1})
    # with a correct checksum: it was made, not broken
    checkpoint.save(folder, {"step": 2, "bad": Hostile() if hides == "alone" else [[Hostile(), torch.ones(2)]]})
    found = checkpoint.load(folder)
    assert found.state == {"step": 1}
    assert "holds other things than tensors, numbers and texts" in found.faults[0]
    assert not Path("ran").exists()
    torch.load(found.broken[0], weights_only=False)
    assert Path("ran").exists(), "the file is no attack"
