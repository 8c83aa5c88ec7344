"""AdamW on float32 masters, and the schedule."""

import copy
import io
import itertools
import math

import pytest
import torch
from torch.nn import Parameter
from torch.utils._pytree import tree_map_only

from alignflow.optim import MasterAdamW, learning_rate_factor
from tests.close import EXACT, LOOSE, close
from tests.toy import ON_CUDA


def test_with_float32_parameters_it_is_plain_adamw():
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = Parameter(start.clone()), Parameter(start.clone())
    mine = MasterAdamW([([ours], 0.1)], 0.01, kind="adamw")
    plain = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    for step in range(5):
        for weight in (ours, theirs):
            weight.grad = (weight.detach() - 1.0).clone()
        torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        plain.param_groups[0]["lr"] = 0.1 * (1 - step / 10)
        plain.step()
        norm = mine.step(factor=1 - step / 10, max_grad_norm=0.5)
        assert norm > 0.5
        assert ours.grad is None
    close(ours, theirs, 1e-6)


def test_small_updates_to_bfloat16_weights_are_not_lost():
    """A step of 1e-4 at 1.0 is below bfloat16's spacing of 2^-7 there; a hundred of them are 0.01."""
    weight = Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([([weight], 1e-4)], 0.0, kind="adamw")
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step(factor=1.0, max_grad_norm=10.0)
    assert weight.dtype == torch.bfloat16
    close(optimizer.state()["masters"][0][0], [0.99], 1e-4)
    assert float(weight.detach()) < 1.0


def test_the_norm_before_clipping_spans_all_groups():
    """Gradients 3 and 4 have norm 5."""
    a, b = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    optimizer = MasterAdamW([([a], 0.1), ([b], 0.2)], 0.0, kind="adamw")
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert optimizer.step(factor=0.5, max_grad_norm=1.0) == pytest.approx(5.0, abs=1e-6)
    close(torch.cat([a, b]), [-0.05, -0.1], 1e-6)  # Adam's first step is the rate, each group's own


def test_a_parameter_without_gradient_stays():
    weight = Parameter(torch.ones(2))
    MasterAdamW([([weight], 0.1)], 0.1, kind="adamw").step(factor=1.0, max_grad_norm=1.0)
    close(weight, [1.0, 1.0], EXACT)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float):
    weight = Parameter(torch.ones(2))
    optimizer = MasterAdamW([([weight], 0.1)], 0.1, kind="adamw")
    weight.grad = torch.tensor([1.0, bad])
    assert not math.isfinite(optimizer.step(factor=1.0, max_grad_norm=1.0))
    close(weight, [1.0, 1.0], EXACT)


def test_a_restored_optimiser_continues_exactly():
    first, second = (Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2))
    one, two = MasterAdamW([([first], 1e-3)], 0.01, kind="adamw"), MasterAdamW([([second], 1e-3)], 0.01, kind="adamw")

    def go(optimizer: MasterAdamW, weight: Parameter) -> None:
        weight.grad = torch.tensor([0.1, -2.0, 3.0], dtype=torch.bfloat16)
        optimizer.step(factor=1.0, max_grad_norm=1.0)

    for _ in range(3):
        go(one, first)
    two.restore(copy.deepcopy(one.state()))
    close(second, first, EXACT)
    go(one, first)
    go(two, second)
    close(two.state()["masters"][0][0], one.state()["masters"][0][0], EXACT)


def test_the_schedule_by_hand():
    """Ten steps, a fifth of warm-up: thirds, then a cosine from 1 over 0.55 half-way to near 0.1."""
    factors = [learning_rate_factor(k, 10, 0.2) for k in range(10)]
    close(factors[:3], [1 / 3, 2 / 3, 1.0])
    close(factors[6], 0.55)
    assert all(a > b for a, b in itertools.pairwise(factors[2:]))
    assert 0.1 < factors[9] < 0.15


def test_the_schedule_without_warm_up_starts_at_the_peak():
    assert learning_rate_factor(0, 8, 0.0) == 1.0
    assert learning_rate_factor(0, 1, 0.9) > 0


@pytest.mark.parametrize("critic_gradient", [0.0, 1e6])
def test_a_large_gradient_of_one_group_does_not_shrink_the_step_of_another(critic_gradient: float) -> None:
    """Its first moment after gradients 1 and 3, none of them clipped: 0.9·(0.1·1) + 0.1·3."""
    policy, critic = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    optimizer = MasterAdamW([([policy], 0.1), ([critic], 0.1)], weight_decay=0.0, kind="adamw")
    for gradient in (1.0, 3.0):
        policy.grad, critic.grad = torch.tensor([gradient]), torch.tensor([critic_gradient])
        optimizer.step(factor=1.0, max_grad_norm=10.0)
    moments = optimizer.state()["adamw"]["state"][0]["exp_avg"]
    close(moments, [0.1 * 1.0 * 0.9 + 0.1 * 3.0], 1e-6)


KINDS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
of_every_kind = pytest.mark.parametrize("kind", KINDS)
on_every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
not_paged_on_a_cpu = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def _walk(weights: list[Parameter], optimizer: MasterAdamW, seed: int, steps: int = 4) -> None:
    """Take steps along gradients that point to 1 with some noise."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for weight in weights:
            weight.grad = weight.detach() - 1 + 0.3 * torch.randn(weight.shape, generator=generator).to(weight)
        optimizer.step(factor=1.0, max_grad_norm=1e3)


def _weights(device: str) -> list[Parameter]:
    """Return a tensor large enough for 8 bits and for pages, and one that is not, in the model's precision."""
    return [Parameter(torch.zeros(shape, dtype=torch.bfloat16, device=device)) for shape in ((256, 400), (10,))]


@not_paged_on_a_cpu
@on_every_device
@of_every_kind
def test_every_kind_takes_adamw_s_steps(kind: str, device: str):
    """In 8 bits within a tenth of the distance, otherwise exactly; small tensors are always float32."""
    mine, plain = _weights(device), [Parameter(w.detach().float()) for w in _weights(device)]
    optimizer, theirs = MasterAdamW([(mine, 0.01)], 0.1, kind=kind), torch.optim.AdamW(plain, 0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        for weight, other in zip(mine, plain, strict=True):
            other.grad = (0.5 + 0.3 * torch.randn(other.shape, generator=generator)).bfloat16().to(other)
            weight.grad = other.grad.bfloat16()
        optimizer.step(factor=1.0, max_grad_norm=1e3)
        theirs.step()
    large, small = optimizer.state()["masters"][0]
    assert float(plain[0].detach().abs().max()) > 0.05
    close(large, plain[0], 0.006 if "8bit" in kind else 1e-6)
    close(small, plain[1], 1e-6)
    close(mine[0], large, LOOSE)


@not_paged_on_a_cpu
@on_every_device
@of_every_kind
def test_every_kind_continues_exactly_from_a_checkpoint(kind: str, device: str):
    whole, resumed = _weights(device), _weights(device)
    one, two = (MasterAdamW([(weights, 0.01)], 0.1, kind=kind) for weights in (whole, resumed))
    _walk(whole, one, seed=1)
    file = io.BytesIO()
    torch.save(one.state(), file)
    file.seek(0)
    two.restore(torch.load(file, map_location="cpu", weights_only=True))
    assert _kinds(two) == _kinds(one)
    for optimizer, weights in ((one, whole), (two, resumed)):
        _walk(weights, optimizer, seed=2)
    for mine, other in zip(two.state()["masters"][0], one.state()["masters"][0], strict=True):
        close(mine, other, EXACT)
    bytes_kept = sum(v.nbytes for v in two._adamw.state[two._pairs[0][0][1]].values() if isinstance(v, torch.Tensor))
    assert bytes_kept < 3 * 256 * 400 if "8bit" in kind else bytes_kept >= 8 * 256 * 400


def _kinds(optimizer: MasterAdamW) -> list[dict[str, tuple[object, ...]]]:
    """Return type, precision, device and paging of every tensor of the moments."""
    return [
        {
            name: (type(value), value.dtype, value.device, getattr(value, "is_paged", False))
            for name, value in moments.items()
            if isinstance(value, torch.Tensor)
        }
        for moments in optimizer._adamw.state.values()
    ]


@not_paged_on_a_cpu
@pytest.mark.parametrize("kind", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_moments_are_paged_again_after_a_checkpoint(monkeypatch: pytest.MonkeyPatch, kind: str):
    """Without a GPU, pages are tensors with the mark that bitsandbytes gives them; a move to a device takes it off."""
    from bitsandbytes.optim.optimizer import Optimizer8bit

    def page(self: object, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        buffer = torch.zeros_like(p, dtype=dtype)
        buffer.is_paged = p.numel() >= 1e5  # type: ignore[attr-defined]
        return buffer

    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", page)
    monkeypatch.setattr(Optimizer8bit, "prefetch_state", lambda self, p: None)
    whole, resumed = _weights("cpu"), _weights("cpu")
    one, two = (MasterAdamW([(weights, 0.01)], 0.1, kind=kind) for weights in (whole, resumed))
    _walk(whole, one, seed=1)
    file = io.BytesIO()
    torch.save(one.state(), file)
    file.seek(0)
    moved = tree_map_only(torch.Tensor, torch.clone, torch.load(file, map_location="cpu", weights_only=True))
    two.restore(moved)
    assert _kinds(two) == _kinds(one)
    assert _kinds(two)[0]["state1"][-1] is True
    for mine, other in zip(two._adamw.state.values(), one._adamw.state.values(), strict=True):
        assert all(mine[name].equal(other[name]) for name in ("state1", "state2"))
