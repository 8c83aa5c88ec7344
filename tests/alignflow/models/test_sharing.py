"""One base in memory: layers that fetch their weight while they compute, and processes that map the same memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignflow import distributed
from alignflow.models.adapters import AdapterShape
from alignflow.models.base import identify
from alignflow.models.checkpointing import checkpoint_layers
from alignflow.models.load import decoder_of, load_base
from alignflow.models.roles import SharedBase
from alignflow.models.sharing import CannotShare, fetch_around, share_base
from tests.close import EXACT, close
from tests.pipeline import ROOT
from tests.tiny import disturb, four_roles, some_rows, write_model

KINDS = [
    (family, quantization, dtype, checkpointed)
    for family, quantization, dtype in (("gemma2", "none", "float32"), ("llama", "nf4", "bfloat16"))
    for checkpointed in (False, True)
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[1]}-{'checkpointed' if kind[3] else 'plain'}")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SharedBase, SharedBase]:
    """Return a model with four roles, and the same one whose layers fetch their weights."""
    family, quantization, dtype, checkpointed = request.param
    folder = write_model(tmp_path_factory.mktemp(family), family)
    plain, fetching = (four_roles(folder, quantization, dtype) for _ in range(2))
    for layer in frozen(fetching):
        fetch_around(layer, layer.weight.data.clone())
    if checkpointed:
        for models in (plain, fetching):
            checkpoint_layers(models.base.model)
    return plain, fetching


def frozen(models: SharedBase) -> list[nn.Linear]:
    """Return the linear layers of the base itself, without the output embedding."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [m.get_base_layer() for m in models.base.model.modules() if isinstance(m, BaseTunerLayer)]
    found = [layer for layer in adapted if isinstance(layer, nn.Linear)]
    assert len(found) == 2 * 7  # of two decoder layers
    return found


def held(models: SharedBase) -> list[int]:
    """Return the current number of bytes of the weights."""
    return [layer.weight.untyped_storage().nbytes() for layer in frozen(models)]


def trained(models: SharedBase) -> list[nn.Parameter]:
    return [*models.parameters("policy"), *models.parameters("critic")]


def loss(models: SharedBase) -> Tensor:
    """Return a loss of two trained roles, one of them asked twice, which have no gradients yet."""
    for parameter in trained(models):
        parameter.grad = None
    policy = models.logprobs("policy", some_rows())[0].sum() + models.logprobs("policy", some_rows(1))[0].sum()
    return policy + (models.values("critic", some_rows(1)) - 1).square().sum()


def gradients(models: SharedBase) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained(models)]
    assert sum(bool(g.any()) for g in found) > 0.9 * len(found)
    return found


def test_loss_and_gradients_are_those_of_weights_that_stay(both: tuple[SharedBase, SharedBase]):
    plain, fetching = both
    losses = [loss(models) for models in both]
    assert not any(held(fetching))
    assert losses[0].equal(losses[1])
    for total in losses:
        total.backward()  # type: ignore[no-untyped-call]
    assert not any(held(fetching))
    for mine, other in zip(gradients(fetching), gradients(plain), strict=True):
        close(mine, other, EXACT)


def test_one_weight_at_a_time_is_held_in_a_forward_pass(both: tuple[SharedBase, SharedBase]):
    _, fetching = both
    sizes = list[int]()
    hooks = [
        register(lambda *_: sizes.append(sum(map(bool, held(fetching)))))
        for layer in frozen(fetching)
        for register in (layer.register_forward_hook, layer.register_forward_pre_hook)
    ]
    with torch.no_grad():
        fetching.hidden("policy", some_rows())
    for hook in hooks:
        hook.remove()
    assert sizes == [1, 0] * 14  # the hooks of this test run after those that fetch and drop


@pytest.mark.parametrize(("quantization", "dtype"), [("none", "float32"), ("nf4", "bfloat16")])
def test_roles_over_a_base_that_is_shared_as_on_gpus(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path, quantization: str, dtype: str
):
    """A single process runs the code for GPUs, as far as a CPU can, in the order of a stage.

    The last projections have no adapter: their saved weights ask for the layer's second run amid their own backward.
    """
    found = []
    for shared in (False, True):
        base = load_base(identify(str(tiny), None, converted=tiny), quantization=quantization, dtype=dtype)
        if shared:
            with monkeypatch.context() as patch:
                patch.setattr(distributed, "world", lambda: 2)
                patch.setattr(type(base.model), "device", torch.device("cuda"))
                share_base(base.model)
        checkpoint_layers(base.model)
        models = SharedBase(base, AdapterShape(rank=4, alpha=8, target_modules=("q_proj",)))
        models.add("policy", trained=True)
        disturb(models, "policy")
        models.save_adapter("policy", tmp_path / "policy")
        models.add("reference", start=tmp_path / "policy")
        layers = [m for m in decoder_of(base.model).modules() if isinstance(m, nn.Linear) and hasattr(m, "common")]
        assert len(layers) == (2 * 7 if shared else 0)
        loss = models.logprobs("policy", some_rows())[0].sum()
        assert not any(layer.weight.untyped_storage().nbytes() for layer in layers)
        loss.backward()  # type: ignore[no-untyped-call]
        assert not any(layer.weight.untyped_storage().nbytes() for layer in layers)
        with torch.no_grad():
            answers = [models.logprobs(role, some_rows())[0] for role in ("base", "reference")]
        found.append([loss.detach(), *answers, *(p.grad for p in models.parameters("policy"))])
    for mine, other in zip(*found, strict=True):
        assert mine is not None
        close(mine, other, EXACT)


def test_layers_are_merged_for_sampling_as_if_their_weights_had_stayed(both: tuple[SharedBase, SharedBase]):
    logits = []
    for models in both:
        with models.merged("policy") as model, torch.no_grad():
            logits.append(model(input_ids=some_rows().input_ids).logits)
    assert logits[0].equal(logits[1])
    assert not any(held(both[1]))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_a_pass_that_broke_off_left_goes_with_the_next(both: tuple[SharedBase, SharedBase], where: str):
    plain, fetching = both
    layer = frozen(fetching)[3]  # the first whose input has a gradient

    def broken(*_: object) -> None:
        raise torch.OutOfMemoryError("of a test")

    register = layer.register_forward_pre_hook if where == "forward" else layer.register_full_backward_pre_hook
    hook = register(broken)
    with pytest.raises(torch.OutOfMemoryError):
        loss(fetching).backward()  # type: ignore[no-untyped-call]
    hook.remove()
    assert any(held(fetching)) == (where == "backward")
    for models in both:
        loss(models).backward()  # type: ignore[no-untyped-call]
    assert not any(held(fetching))
    for mine, other in zip(gradients(fetching), gradients(plain), strict=True):
        close(mine, other, EXACT)


def test_a_single_process_is_left_as_it_is(tiny: Path):
    models = four_roles(tiny)
    before = [p.data_ptr() for p in models.base.model.parameters()]
    share_base(models.base.model)
    assert [p.data_ptr() for p in models.base.model.parameters()] == before


def test_processes_of_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch, tiny: Path):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda _: ["left", "right"])
    with pytest.raises(CannotShare, match=r"one Linux machine.*left, right"):
        share_base(four_roles(tiny).base.model)


@pytest.mark.long
def test_two_processes_hold_a_4_bit_base_once_and_answer_as_before(tiny: Path, tmp_path: Path):
    """One process reads what the other writes into each weight; no file stays open."""
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    command = [sys.executable, "-m", *launcher, "-m", "tests.alignflow.models.holding", str(tiny), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert main == other
    assert main["equal"]
    assert len(main["mapped"]) == 1
    assert len(main["inside"]) == 2 * 9 + 3  # seven projections and two norms a layer; embeddings, last norm, head
    assert all(main["inside"])
    assert set(main["last"]) == {77}
    assert main["open"] == []
