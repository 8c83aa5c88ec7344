"""Files of weights that are broken or made to run code: one message, and nothing runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignflow.models.adapters import UnlikeAdapter
from alignflow.models.base import BaseModelError, identify
from alignflow.models.load import load_base
from tests.tiny import four_roles, write_model


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


def attack(path: Path) -> None:
    torch.save({"weight": Hostile()}, path)


def check_harmless(path: Path) -> None:
    """Check that nothing ran, and that the file is an attack: loaded without care it runs."""
    assert not Path("ran").exists()
    with path.open("rb") as file:  # by its name it would be read as safetensors
        torch.load(file, weights_only=False)
    assert Path("ran").exists()


def open_folder(folder: Path) -> None:
    identity = identify(folder.as_posix(), None, converted=folder / "converted")
    load_base(identity, quantization="none", dtype="float32")


def test_a_hostile_base_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = write_model(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    attack(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"base are broken or hold more than tensors, and nothing of them was"):
        open_folder(folder)
    check_harmless(folder / "pytorch_model.bin")


@pytest.mark.parametrize("kind", ["a pickle under the name of safetensors", "cut", "empty"])
def test_a_broken_base_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.chdir(tmp_path)
    folder = write_model(tmp_path / "base")
    path = folder / "model.safetensors"
    if kind.startswith("a pickle"):
        attack(path)
    else:
        os.truncate(path, path.stat().st_size // 2 if kind == "cut" else 0)
    with pytest.raises(BaseModelError, match="base are broken, and nothing of them was loaded"):
        open_folder(folder)
    if kind.startswith("a pickle"):
        check_harmless(path)


@pytest.mark.parametrize("kind", ["a pickle under the name of safetensors", "cut", "empty"])
def test_a_broken_adapter_is_one_message(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.chdir(tmp_path)
    models = four_roles(tiny)
    models.save("policy", tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    if kind.startswith("a pickle"):
        attack(path)
    else:
        os.truncate(path, path.stat().st_size // 2 if kind == "cut" else 0)
    with pytest.raises(UnlikeAdapter, match=r"adapter_model\.safetensors is broken: "):
        models.add("other", start=tmp_path / "adapter")
    if kind.startswith("a pickle"):
        check_harmless(path)
