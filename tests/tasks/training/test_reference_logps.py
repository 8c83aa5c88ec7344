"""Log-probs of the reference kept on disk."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignflow.models.roles import SharedBase
from alignflow.types import Example
from tasks.paths import home
from tasks.training.reference_logps import kept, key_of
from tests.close import EXACT, close
from tests.tiny import disturb, open_base

ROWS = [Example((1, 2), (3, 4)), Example((6,), (7, 8))]
LOGPS = torch.randn(2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path))
    home.cache_clear()
    yield tmp_path / "reference_logps"
    home.cache_clear()


class Computing:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Tensor:
        self.times += 1
        return LOGPS


def test_the_second_run_gets_the_numbers_of_the_first_to_the_last_bit(place: Path):
    compute, said = Computing(), list[str]()
    first, second = (kept("a", compute, rows=2, say=said.append) for _ in range(2))
    close(first, LOGPS, EXACT)
    close(second, LOGPS, EXACT)
    assert (compute.times, len(said)) == (1, 1)
    kept("b", compute, rows=2, say=said.append)
    assert compute.times == 2
    assert sorted(path.name for path in place.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("spoil", ["empty", "cut", "other size"])
def test_a_broken_file_is_said_computed_again_and_replaced(place: Path, spoil: str):
    compute, said = Computing(), list[str]()
    kept("a", compute, rows=2, say=said.append)
    path = place / "a.safetensors"
    good = path.read_bytes()
    if spoil == "other size":
        kept("b", lambda: torch.zeros(3), rows=3, say=said.append)
        (place / "b.safetensors").replace(path)
    else:
        path.write_bytes(b"" if spoil == "empty" else good[:-3])
    close(kept("a", compute, rows=2, say=said.append), LOGPS, EXACT)
    assert compute.times == 2
    assert len(said) == 1
    assert path.read_bytes() == good


@pytest.fixture(scope="module")
def models(tiny: Path) -> SharedBase:
    found = open_base(tiny)
    for role in ("policy", "reference"):
        found.add(role, trained=role == "policy")
        disturb(found, role)
    return found


def test_the_key_is_the_same_for_the_same_reference_whatever_the_policy(tiny: Path, models: SharedBase):
    again = open_base(tiny)
    again.add("reference")
    disturb(again, "reference")
    assert key_of(again, ROWS, 64) == key_of(models, ROWS, 64)


def test_everything_that_the_numbers_depend_on_is_in_the_key(models: SharedBase):
    base = models.base
    keys = {
        key_of(models, ROWS, 64),
        key_of(models, ROWS, 32),
        key_of(models, ROWS[::-1], 64),
        key_of(models, [ROWS[0], Example((6,), (7, 9))], 64),
        key_of(models, [Example((1,), (2, 3, 4)), ROWS[1]], 64),  # the same tokens, another boundary
        key_of(_but(models, dtype=torch.bfloat16), ROWS, 64),
        key_of(_but(models, quantization="nf4"), ROWS, 64),
        key_of(_but(models, identity=replace(base.identity, sha256="0")), ROWS, 64),
    }
    shape = models.shape
    models.shape = replace(shape, alpha=16)  # it scales the same weights
    keys.add(key_of(models, ROWS, 64))
    models.shape = shape
    weight = models.parameters("reference")[0]
    with torch.no_grad():
        weight[0, 0] += 1
        keys.add(key_of(models, ROWS, 64))
        weight[0, 0] -= 1
    assert len(keys) == 10


def _but(models: SharedBase, **changed: object) -> SharedBase:
    """Return the same models with a field of the base changed."""
    other = SharedBase.__new__(SharedBase)
    other.__dict__.update(models.__dict__)
    other.base = replace(models.base, **changed)  # type: ignore[arg-type]
    return other
