"""Training states on disk."""

from pathlib import Path

import pytest
import torch

from alignflow import checkpoint
from tests.close import EXACT, close


def test_a_state_comes_back_as_it_was(tmp_path: Path):
    path = tmp_path / "deep" / "state.pt"
    state = {"step": 3, "optimizer": {"masters": [[torch.arange(3.0)]]}, "history": [{"loss": 0.5}], "seconds": 1.5}
    checkpoint.save(path, state)
    found = checkpoint.load(path)
    assert found is not None
    close(found["optimizer"]["masters"][0][0], [0.0, 1, 2], EXACT)
    assert (found["step"], found["history"], found["seconds"]) == (3, [{"loss": 0.5}], 1.5)
    assert list(path.parent.iterdir()) == [path]


def test_no_file_is_no_state(tmp_path: Path):
    assert checkpoint.load(tmp_path / "none.pt") is None


def test_an_interrupted_save_leaves_the_old_state(tmp_path: Path):
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"step": 1})

    class Unsaveable:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"step": 2, "bad": Unsaveable()})
    assert checkpoint.load(path) == {"step": 1}
    checkpoint.save(path, {"step": 3})
    assert checkpoint.load(path) == {"step": 3}
