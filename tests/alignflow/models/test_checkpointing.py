"""Layers are recomputed for the gradient with the role of their forward pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignflow.models.checkpointing import CannotCheckpoint, checkpoint_layers
from alignflow.models.roles import SharedBase
from tests.close import EXACT, close
from tests.tiny import FAMILIES, four_roles, some_rows, write_model

KINDS = [(family, "none", "float32") for family in FAMILIES] + [("llama", "nf4", "bfloat16")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind[:2]))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SharedBase, SharedBase]:
    """Return a plain model with four roles, and the same one with checkpointed layers."""
    family, quantization, dtype = request.param
    folder = write_model(tmp_path_factory.mktemp(family), family)
    plain, checkpointed = (four_roles(folder, quantization, dtype) for _ in range(2))
    checkpoint_layers(checkpointed.base.model)
    return plain, checkpointed


def policy_loss(models: SharedBase) -> Tensor:
    return models.logprobs("policy", some_rows())[0].sum()


def critic_loss(models: SharedBase) -> Tensor:
    return (models.values("critic", some_rows(1)) - 1).square().sum()


def gradients(models: SharedBase, *losses: Callable[[SharedBase], Tensor], during: str = "base") -> list[Tensor]:
    """Return the gradients of policy and critic after a backward pass of the sum, while another role is active."""
    trained = [*models.parameters("policy"), *models.parameters("critic")]
    for parameter in trained:
        parameter.grad = None
    total = torch.stack([loss(models) for loss in losses]).sum()
    with models.role(during):
        total.backward()  # type: ignore[no-untyped-call]
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]
    assert any(bool(g.any()) for g in found)
    return found


@pytest.mark.parametrize("during", ["base", "critic", "reference"])
def test_policy_and_critic_of_one_update_get_the_gradients_of_the_plain_model(
    both: tuple[SharedBase, SharedBase], during: str
):
    plain, checkpointed = (gradients(models, policy_loss, critic_loss, during=during) for models in both)
    for mine, other in zip(checkpointed, plain, strict=True):
        close(mine, other, EXACT)


@pytest.mark.parametrize("loss", [policy_loss, critic_loss])
def test_a_role_s_backward_pass_reaches_no_other_role(
    both: tuple[SharedBase, SharedBase], loss: Callable[[SharedBase], Tensor]
):
    plain, checkpointed = (gradients(models, loss) for models in both)
    for mine, other in zip(checkpointed, plain, strict=True):
        close(mine, other, EXACT)


def test_roles_answer_as_before_after_a_backward_pass(both: tuple[SharedBase, SharedBase]):
    plain, checkpointed = both
    wanted = [p.requires_grad for p in checkpointed.base.model.parameters()]
    loss, ids = policy_loss(checkpointed), some_rows().input_ids
    with checkpointed.role("reference") as model:
        with torch.no_grad():
            before = model(input_ids=ids).logits
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            close(model(input_ids=ids).logits, before, EXACT)
    assert [p.requires_grad for p in checkpointed.base.model.parameters()] == wanted
    with torch.no_grad():
        for role in ("base", "policy", "reference"):
            close(checkpointed.logprobs(role, some_rows())[0], plain.logprobs(role, some_rows())[0], EXACT)
        close(checkpointed.scores("reward_model", some_rows()), plain.scores("reward_model", some_rows()), EXACT)


def test_less_is_kept_for_the_backward_pass(both: tuple[SharedBase, SharedBase]):
    """A plain forward pass keeps several tensors per projection; a checkpointed one mostly the layers' inputs."""

    def kept(models: SharedBase) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            models.hidden("policy", some_rows())
        return total

    plain, checkpointed = map(kept, both)
    assert checkpointed < plain / 5


def test_without_gradients_nothing_is_computed_twice(tiny: Path):
    models = four_roles(tiny)
    checkpoint_layers(models.base.model)
    calls = list[int]()
    models.base.model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        models.hidden("policy", some_rows())
    assert len(calls) == 1
    gradients(models, policy_loss)
    assert len(calls) == 1 + 2


def test_a_model_whose_layers_are_unknown_is_refused():
    with pytest.raises(CannotCheckpoint, match="marks no layers"):
        checkpoint_layers(nn.Sequential(nn.Linear(2, 2)))
