"""Roles over one shared base, on a tiny random Llama, in float32 and in 4-bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignflow.data.collate import take_rows
from alignflow.models.adapters import AdapterShape, AdaptsOutput, UnlikeAdapter, saved_shape
from alignflow.models.heads import scalar_head
from alignflow.models.load import TooLong, UnsupportedModel
from alignflow.models.roles import SharedBase
from alignflow.types import Sequences
from tests.close import EXACT, FLOAT32, close
from tests.tiny import disturb, four_roles, open_base, some_rows, write_model
from tests.toy import rows

KINDS = [("none", "float32"), ("nf4", "bfloat16")]
ROUGH = 0.15  # bfloat16 keeps 8 bits, and batches of another shape sum in another order


@pytest.fixture(params=KINDS, ids=["float32", "nf4"])
def models(request: pytest.FixtureRequest, tiny: Path) -> SharedBase:
    return four_roles(tiny, *request.param)


def within(models: SharedBase) -> float:
    return FLOAT32 if models.base.dtype == torch.float32 else ROUGH


def logprobs(models: SharedBase, role: str, batch: Sequences | None = None) -> Tensor:
    with torch.no_grad():
        return models.logprobs(role, batch or some_rows())[0]


def test_logprobs_equal_those_of_the_whole_model(models: SharedBase):
    batch = some_rows()
    with torch.no_grad(), models.role("policy") as model:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits[:, :-1].float()
    expected = torch.log_softmax(logits / 0.7, -1).gather(2, batch.input_ids[:, 1:, None])[..., 0]
    with torch.no_grad():
        found, entropy = models.logprobs("policy", batch, 0.7, entropy=True)
    mask = batch.response_mask[:, 1:]
    close(found, torch.where(mask, expected, 0.0), within(models))
    assert entropy is not None
    assert entropy[mask].gt(0).all()
    assert entropy[~mask].eq(0).all()


def test_roles_answer_differently_and_come_back_after_an_exception(models: SharedBase):
    answers = {role: logprobs(models, role) for role in ("base", "policy", "reference", "critic")}
    assert all(not a.equal(b) for x, a in answers.items() for y, b in answers.items() if x < y)

    def fail() -> None:
        with models.role("policy"), models.role("reference"):
            raise RuntimeError

    with models.role("critic"):
        with pytest.raises(RuntimeError):
            fail()
        assert models._active == "critic"
    assert models._active == "base"
    for role, answer in answers.items():
        close(logprobs(models, role), answer, EXACT)


def test_an_unknown_role_is_refused_and_changes_nothing(models: SharedBase):
    before = logprobs(models, "base")
    with pytest.raises(ValueError, match="no role 'judge'"), models.role("judge"):
        pass
    with models.role("base") as model, torch.no_grad():
        model(input_ids=torch.ones(1, 2, dtype=torch.long))
    close(logprobs(models, "base"), before, EXACT)


def test_a_fresh_adapter_changes_nothing(tiny: Path):
    models = open_base(tiny)
    before = logprobs(models, "base")
    models.add("policy", trained=True)
    close(logprobs(models, "policy"), before, EXACT)


def test_the_score_is_the_head_on_the_last_response_token(models: SharedBase):
    """Rows end at 3+4, 6+2, 2+9 and 5+1 tokens, so at columns 6, 7, 10 and 5."""
    batch = some_rows()
    with torch.no_grad():
        states = models.hidden("reward_model", batch)[torch.arange(4), torch.tensor([6, 7, 10, 5])].float()
        close(models.scores("reward_model", batch), states @ models.heads["reward_model"].weight[0], FLOAT32)


def test_gradients_reach_the_trained_role_alone_and_the_reference_stays(models: SharedBase):
    frozen = {role: models.fingerprint(role) for role in ("reference", "reward_model")}
    moved = {role: models.fingerprint(role) for role in ("policy", "critic")}
    optimizer = torch.optim.SGD([*models.parameters("policy"), *models.parameters("critic")], lr=0.1)
    batch = some_rows()
    logprobs(models, "reference")  # forwards in between, as in a rollout
    (-models.logprobs("policy", batch)[0].sum()).backward()
    assert all(p.grad is None for p in models.parameters("critic"))
    models.values("critic", batch).sum().backward()
    for role in ("policy", "critic"):
        grads = [p.grad for p in models.parameters(role)]
        assert any(g is not None and g.abs().sum() > 0 for g in grads)
    optimizer.step()
    assert all(p.grad is None for role in frozen for p in models.parameters(role))
    assert {role: models.fingerprint(role) for role in frozen} == frozen
    assert all(models.fingerprint(role) != before for role, before in moved.items())


def test_two_forwards_may_wait_for_one_backward(tiny: Path):
    """A switch between forward and backward freezes the other adapter in PEFT; its gradient must still come."""
    models = four_roles(tiny)
    loss = models.logprobs("policy", some_rows())[0].sum() + models.values("critic", some_rows()).sum()
    logprobs(models, "reference")
    loss.backward()
    for role in ("policy", "critic"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in models.parameters(role))


def test_gradients_flow_in_four_bits_after_a_forward_without_gradients(tiny: Path):
    """bitsandbytes repacks 4-bit weights on some CPUs at the first such forward; that would cut the gradient."""
    models = four_roles(tiny, "nf4", "bfloat16")
    before = logprobs(models, "policy")
    found = models.logprobs("policy", some_rows())[0]
    close(found, before, EXACT)
    found.sum().backward()
    first = [p for p in models.parameters("policy") if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(first) == len(models.parameters("policy"))


def test_merged_layers_answer_like_the_role_and_the_adapted_layers_come_back(models: SharedBase):
    before, ids = logprobs(models, "policy"), some_rows().input_ids

    def fail() -> None:
        with models.merged("policy"):
            raise RuntimeError

    with torch.no_grad(), models.role("policy") as model:
        expected = model(input_ids=ids).logits.float()
    with models.merged("policy") as model:
        close(model(input_ids=ids).logits.float(), expected, within(models))
        assert not any(layer in set(model.modules()) for layer in models._layers)
    close(logprobs(models, "policy"), before, EXACT)
    with pytest.raises(RuntimeError):
        fail()
    close(logprobs(models, "policy"), before, EXACT)
    assert models._active == "base"


def test_merging_the_base_role_leaves_adapters_out(tiny: Path):
    models, ids = four_roles(tiny), some_rows().input_ids
    with models.merged("base") as model:
        merged = model(input_ids=ids).logits
    with torch.no_grad():
        close(merged, open_base(tiny).base.model(input_ids=ids).logits)


def test_a_saved_role_comes_back_with_its_head_and_the_same_bytes(tiny: Path, tmp_path: Path):
    models = four_roles(tiny)
    models.save("reward_model", tmp_path / "once")
    models.save("reward_model", tmp_path / "twice")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    other = open_base(tiny)
    other.add("judge", start=tmp_path / "once")
    assert other.fingerprint("judge") == models.fingerprint("reward_model")
    with torch.no_grad():
        close(other.scores("judge", some_rows()), models.scores("reward_model", some_rows()), EXACT)
    assert not any(p.requires_grad for p in other.parameters("judge"))


@pytest.mark.parametrize(
    "shape", [AdapterShape(8, 8, "all-linear"), AdapterShape(4, 16, "all-linear"), AdapterShape(4, 8, ("q_proj",))]
)
def test_an_adapter_of_another_shape_is_refused_with_the_reason(tiny: Path, tmp_path: Path, shape: AdapterShape):
    four_roles(tiny).save("policy", tmp_path)
    with pytest.raises(UnlikeAdapter, match=f"{tmp_path.name} (holds an adapter of|does not fit)"):
        SharedBase(open_base(tiny).base, shape).add("policy", start=tmp_path)


def test_a_role_of_its_own_shape_stands_beside_the_others_and_comes_back(tiny: Path, tmp_path: Path):
    """The judge model may have another rank than the policies; its folder says which."""
    models = four_roles(tiny)
    before = {role: logprobs(models, role) for role in ("policy", "reference")}
    models.add("judge", shape=AdapterShape(2, 6, "all-linear"), trained=True, seed=5)
    models.add_head("judge", seed=5)
    disturb(models, "judge")
    with torch.no_grad():
        scores = models.scores("judge", some_rows())
    assert all(min(p.shape) == 2 for p in models.parameters("judge", heads=False))
    for role, expected in before.items():
        close(logprobs(models, role), expected, EXACT)
    models.save("judge", tmp_path)
    shape = saved_shape(tmp_path)
    assert (shape.rank, shape.alpha) == (2, 6)
    again = four_roles(tiny)
    again.add("judge", start=tmp_path, shape=shape)
    with torch.no_grad():
        close(again.scores("judge", some_rows()), scores, EXACT)
    with pytest.raises(UnlikeAdapter, match=r"nowhere holds no adapter \(adapter_config.json is missing\)"):
        saved_shape(tmp_path / "nowhere")


@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), r".*(q_proj|lm_head)"])
def test_an_adapter_of_the_output_embedding_is_refused(tiny: Path, targets: tuple[str, ...] | str):
    base = open_base(tiny).base
    with pytest.raises(AdaptsOutput, match=r"lm_head.* includes the output embedding"):
        SharedBase(base, AdapterShape(4, 8, targets)).add("policy")


def test_an_adapter_of_the_input_embedding_is_trained_and_comes_back(tiny: Path, tmp_path: Path):
    shape = AdapterShape(4, 8, ("embed_tokens", "q_proj"))
    models, other = SharedBase(open_base(tiny).base, shape), SharedBase(open_base(tiny).base, shape)
    models.add("policy", trained=True)
    assert len(models.parameters("policy")) == 2 + 2 * 2
    disturb(models, "policy")
    before, after = logprobs(models, "base"), models.logprobs("policy", some_rows())[0]
    assert not after.equal(before)
    after.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in models.parameters("policy"))
    models.save("policy", tmp_path)
    other.add("policy", start=tmp_path)
    close(logprobs(other, "policy"), after, EXACT)


def test_a_critic_comes_back_with_the_bias_of_its_head(tiny: Path, tmp_path: Path):
    models, other, batch = four_roles(tiny), open_base(tiny), some_rows()
    models.standardize_head("critic", 0.3, 2.0)
    models.save("critic", tmp_path)
    other.add("critic", start=tmp_path, trained=True)
    assert other.heads["critic"].bias.requires_grad
    with torch.no_grad():
        close(other.values("critic", batch), models.values("critic", batch), EXACT)


def test_a_critic_scores_without_its_bias_in_plain_peft(tiny: Path, tmp_path: Path):
    from peft import AutoPeftModelForSequenceClassification

    models, batch = four_roles(tiny), take_rows(some_rows(), [2])
    models.save("critic", tmp_path)
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, dtype=torch.float32).eval()
    with torch.no_grad():
        found = plain(input_ids=batch.input_ids).logits[:, 0]
        close(found, models.scores("critic", batch) - models.heads["critic"].bias)


def test_adding_a_role_leaves_the_state_of_random_numbers_and_its_seed_decides_alone(tiny: Path):
    first, second, third = (open_base(tiny) for _ in range(3))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first.add("policy", seed=1)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(6)
    second.add("policy", seed=1)
    third.add("policy", seed=2)
    assert first.fingerprint("policy") == second.fingerprint("policy") != third.fingerprint("policy")


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_sequence_longer_than_learned_positions_is_refused_with_both_numbers(tmp_path: Path, family: str):
    models = open_base(
        write_model(tmp_path, family, max_position_embeddings=16, **({"ffn_dim": 128} if family == "opt" else {}))
    )
    fits, too_long = rows([(10, 6)]), rows([(2, 2), (10, 7)])
    assert logprobs(models, "base", fits).isfinite().all()
    with pytest.raises(TooLong, match=r"17 tokens .* 16 positions"):
        logprobs(models, "base", too_long)


def test_padding_takes_no_learned_position(tmp_path: Path):
    models, batch = open_base(write_model(tmp_path, "gpt2", max_position_embeddings=16)), rows([(10, 6)])
    wide = Sequences(
        *(torch.nn.functional.pad(t, (4, 4)) for t in (batch.input_ids, batch.attention_mask, batch.response_mask))
    )
    close(logprobs(models, "base", wide)[:, 4:-4], logprobs(models, "base", batch))


def test_rotary_positions_have_no_end(tmp_path: Path):
    models = open_base(write_model(tmp_path, max_position_embeddings=16))
    assert logprobs(models, "base", rows([(30, 5)])).isfinite().all()


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused(tmp_path: Path):
    """Granite divides them by a number of its configuration."""
    assert open_base(write_model(tmp_path / "one", "granite", logits_scaling=1.0))
    with pytest.raises(UnsupportedModel, match=r"Granite.* changes its logits"):
        open_base(write_model(tmp_path / "eight", "granite", logits_scaling=8.0))


def test_a_folder_without_adapter_is_refused(tiny: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="holds no adapter"):
        open_base(tiny).add("policy", start=tmp_path)


def test_a_fresh_score_head_is_small_and_float32_in_four_bits_too(tiny: Path):
    """4,096 draws of deviation 1 / sqrt(4097): their own deviation is within 5 % of it."""
    head = scalar_head(4096, seed=1, device=torch.device("cpu"))
    close(head.weight.std() * 4097**0.5, 1.0, 0.05)
    assert head.bias is None
    models = four_roles(tiny, "nf4", "bfloat16")
    assert models.heads["reward_model"].weight.dtype == torch.float32
    assert models.scores("reward_model", some_rows()).dtype == torch.float32
    assert models.values("critic", some_rows()).dtype == torch.float32


def test_a_standardised_head_gives_the_normalised_score(tiny: Path):
    models, batch = four_roles(tiny), some_rows()
    with torch.no_grad():
        raw = models.scores("reward_model", batch)
        models.standardize_head("reward_model", 0.3, 2.0)
        close(models.scores("reward_model", batch), (raw - 0.3) / 2.0)
