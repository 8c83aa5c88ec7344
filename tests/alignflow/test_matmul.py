"""Products of bfloat16 numbers that are computed in float32: the same numbers, by other instructions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alignflow import matmul as module
from alignflow.matmul import linear, matmul_dtype
from alignflow.models.linear import frozen_linear
from alignflow.models.roles import SharedBase
from alignflow.ops import token_logprobs
from alignflow.prefix_tree import prefix_tree, tree_attention
from alignflow.sampling.own import Response, generate
from tests.close import EXACT, close
from tests.tiny import four_roles, some_rows, write_model

BIT = 2**-7  # between two neighbours in bfloat16
ROUGH = 0.06  # after several layers
CPU = torch.device("cpu")
WAYS = [torch.float32, torch.bfloat16]
KINDS = [("llama", "nf4"), ("gpt2", "nf4"), ("gpt2", "none"), ("mistral", "none"), ("gemma2", "none")]


def whole(*shape: int, seed: int) -> Tensor:
    """Return whole numbers in bfloat16. Their sums of products are exact in float32, and need rounding to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-40, 41, shape, generator=generator).bfloat16()


# -- which dtype ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("able", [True, False])
def test_only_bfloat16_on_a_cpu_without_its_instructions_is_computed_in_another_dtype(
    able: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "has_bfloat16", lambda: able)
    assert matmul_dtype(torch.bfloat16, CPU) == (torch.bfloat16 if able else torch.float32)
    assert matmul_dtype(torch.float32, CPU) == torch.float32
    assert matmul_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "onednn", "able"),
    [
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),
        ("x86_64", False, False, True, False),  # AVX-512, where oneDNN converts
        ("x86_64", False, False, False, False),
        ("aarch64", False, False, True, True),
        ("aarch64", False, False, False, False),
    ],
)
def test_x86_needs_instructions_that_multiply_and_arm_needs_those_of_onednn(
    machine: str, avx512: bool, amx: bool, onednn: bool, able: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch._C, "_has_mkldnn", True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert module.has_bfloat16() == able


# -- the same numbers ----------------------------------------------------------------------------------------------


def test_a_linear_layer_s_results_and_gradients_are_the_exact_ones_rounded_once():
    states, weight, bias, pull = whole(2, 3, 33, seed=1), whole(9, 33, seed=2), whole(9, seed=3), whole(2, 3, 9, seed=4)
    given = [x.requires_grad_() for x in (states, weight)]
    out = linear(*given, bias, compute=torch.float32)
    out.backward(pull)
    exact = [x.detach().double() for x in (states, weight, bias, pull)]
    rows, pulls = exact[0].view(6, 33), exact[3].view(6, 9)
    for found, expected in (
        (out, exact[0] @ exact[1].T + exact[2]),
        (states.grad, exact[3] @ exact[1]),
        (weight.grad, pulls.T @ rows),
    ):
        assert found is not None
        assert found.equal(expected.bfloat16())
        assert not found.double().equal(expected)  # rounding does something


def test_a_frozen_weight_is_read_again_for_the_gradient_and_gets_none():
    states, weight, reads = whole(3, 33, seed=1).requires_grad_(), whole(33, 9, seed=2), list[tuple[int, ...]]()

    def values(stored: Tensor) -> Tensor:
        reads.append(tuple(stored.shape))
        return stored.T

    linear(states, weight, None, compute=torch.float32, values=values).backward(torch.ones(3, 9).bfloat16())
    assert reads == [(33, 9)] * 2
    assert states.grad is not None
    assert states.grad.equal((torch.ones(3, 9).double() @ weight.double().T).bfloat16())
    assert weight.grad is None


@pytest.mark.parametrize("packed", [True, False])
def test_a_layer_for_sampling_holds_float32_and_rounds_its_results(packed: bool, monkeypatch: pytest.MonkeyPatch):
    if not packed:
        monkeypatch.setattr("alignflow.models.linear.packable", lambda weight: False)
    states, weight, bias = whole(3, 33, seed=1), whole(9, 33, seed=2), whole(9, seed=3)
    layer = frozen_linear(weight, bias, torch.float32)
    assert layer.weight.dtype == torch.float32
    assert layer(states).equal((states.double() @ weight.double().T + bias.double()).bfloat16())


def test_logprobs_and_their_gradients_are_those_of_rounded_logits():
    hidden, weight, targets = whole(5, 33, seed=1) / 64, whole(40, 33, seed=2) / 64, torch.tensor([0, 39, 3, 3, 1])
    found = hidden.clone().requires_grad_()
    logprobs, entropies = token_logprobs(found, weight, targets, chunk=3, entropy=True, compute=torch.float32)
    (logprobs - 2 * entropies).sum().backward()
    logits = (hidden.double() @ weight.double().T).bfloat16().double().requires_grad_()
    expected = torch.log_softmax(logits, -1)
    close(logprobs, expected[torch.arange(5), targets])
    (expected[torch.arange(5), targets] + 2 * (expected.exp() * expected).sum(-1)).sum().backward()
    assert logits.grad is not None
    close(found.grad, logits.grad @ weight.double(), 2 * BIT)


def test_attention_over_a_tree_gives_the_numbers_of_bfloat16_instructions():
    tree = prefix_tree([[1, 2, 3, 4], [1, 2, 5], [6], [1, 2, 3, 7, 8, 9]], CPU)
    generator = torch.Generator().manual_seed(0)
    count = len(tree.tokens)
    given, pull = ([torch.randn(count, n, 16, generator=generator).bfloat16() for n in ns] for ns in ((4, 2, 2), (4,)))
    results = []
    for compute in WAYS:
        inputs = [x.clone().requires_grad_() for x in given]
        out = tree_attention(tree, *inputs, scale=0.25, compute=compute)
        out.backward(pull[0])
        results.append([out, *(x.grad for x in inputs)])
        assert all(x is not None and x.dtype == torch.bfloat16 for x in results[-1])
    for found, expected in zip(*results, strict=True):
        close(found, expected, BIT)


# -- whole models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def ways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, SharedBase]:
    """Return one model in bfloat16, with products in float32 and in bfloat16."""
    family, quantization = request.param
    folder = write_model(tmp_path_factory.mktemp(family), family)
    return {compute: four_roles(folder, quantization, "bfloat16", compute) for compute in WAYS}


def trained(models: SharedBase) -> tuple[Tensor, list[Tensor]]:
    """Return log-probs of the policy, and the gradients of their sum."""
    parameters = models.parameters("policy")
    logprobs, entropies = models.logprobs("policy", some_rows(), entropy=True)
    assert entropies is not None
    (logprobs.sum() + entropies.sum()).backward()
    gradients = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return logprobs.detach(), [g for g in gradients if g is not None]


def sampled(models: SharedBase) -> list[Response]:
    with models.merged("policy") as model:
        return generate(
            model,
            [[5, 6, 7], [9], [*range(11, 22)]] * 3,
            eos_ids=[255],
            max_response_length=12,
            temperature=1.0,
            seed=1,
            rows=9,
        )


def test_logprobs_and_gradients_are_those_of_bfloat16_instructions(ways: dict[torch.dtype, SharedBase]):
    (found, gradients), (expected, theirs) = (trained(ways[compute]) for compute in WAYS)
    close(found, expected, ROUGH)
    assert len(gradients) == len(theirs) == len(ways[torch.float32].parameters("policy"))
    for mine, other in zip(gradients, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - other.float()).norm() < 0.1 * other.float().norm()


def test_samples_have_the_logprobs_of_bfloat16_instructions(ways: dict[torch.dtype, SharedBase]):
    """Compared up to the first token whose draw lies on an edge."""
    same = 0
    for mine, other in zip(*(sampled(ways[compute]) for compute in WAYS), strict=True):
        equal = [a == b for a, b in zip(mine.tokens, other.tokens, strict=True)]
        until = equal.index(False) if False in equal else len(equal)
        close(mine.logprobs[:until], other.logprobs[:until], ROUGH)
        same += until
    assert same > 9 * 12 / 4


PRODUCTS = ("mm", "bmm", "baddbmm", "addmm", "matmul", "linear", "scaled_dot", "gemm", "einsum", "conv")


class Operands(TorchDispatchMode):
    """Records the dtypes of the operands of every product."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[torch.dtype, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.name() for word in PRODUCTS):
            for operand in args:
                if isinstance(operand, Tensor) and operand.is_floating_point():
                    self.dtypes.setdefault(operand.dtype, set()).add(func.name())
        return func(*args, **(kwargs or {}))


def padded(models: SharedBase) -> None:
    models.shares_prefixes = False
    trained(models)
    models.shares_prefixes = True


def adapted(models: SharedBase) -> None:
    """Sample through the layers of training."""
    with models.role("policy"):
        generate(models.base.model, [[5, 6, 7]], eos_ids=[255], max_response_length=4, temperature=1.0, seed=1, rows=1)


@pytest.mark.parametrize("work", [trained, padded, sampled, adapted])
def test_no_product_is_left_to_instructions_that_the_processor_lacks(
    ways: dict[torch.dtype, SharedBase], work: Callable[[SharedBase], object]
):
    with Operands() as seen:
        work(ways[torch.float32])
    assert torch.bfloat16 not in seen.dtypes, seen.dtypes
    with Operands() as seen:
        work(ways[torch.bfloat16])
    assert torch.bfloat16 in seen.dtypes


def test_a_processor_with_the_instructions_gets_the_plain_layers(tiny: Path):
    """So it does in float32."""
    for models in (
        four_roles(tiny, "nf4", "bfloat16", torch.bfloat16),
        four_roles(tiny, "nf4", "float32"),
        four_roles(tiny, "none", "float32"),
    ):
        assert not any("forward" in vars(layer) for layer in models.base.model.modules())
        assert models.base.model.config._attn_implementation == "prefix_tree_sdpa"
        assert models.base.model.attention_dtype is None


def test_weights_in_memory_stay_as_they_are(tiny: Path):
    plain, wide = (four_roles(tiny, "nf4", "bfloat16", compute) for compute in (torch.bfloat16, torch.float32))
    kept = [(name, p.dtype, p.shape) for name, p in plain.base.model.named_parameters()]
    assert [(name, p.dtype, p.shape) for name, p in wide.base.model.named_parameters()] == kept
    close(plain.parameters("policy")[0], wide.parameters("policy")[0], EXACT)
