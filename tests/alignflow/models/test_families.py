"""What must hold for every family of models: tiny random ones in float32, and some of them in 4-bit with bfloat16."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.data.collate import sequence_lengths, take_rows
from alignflow.loops.order import micro_batches
from alignflow.models.roles import SharedBase
from alignflow.optim import MasterAdamW
from alignflow.sampling.own import Response, generate
from alignflow.types import Sequences, StepOutput
from tests.close import EXACT, FLOAT32, close
from tests.tiny import EOS, FAMILIES, four_roles, open_base, some_rows, write_model, write_tokenizer
from tests.toy import update

ROUGH = 0.06  # bfloat16 keeps 8 bits, and other shapes and layers sum in another order
ROLES = ("base", "policy", "reference", "reward_model", "critic")
PROMPTS = [[5, 6, 7], [9], [*range(11, 22)], [20, 21], [5, 6, 7], [30, 40, 50, 60, 70, 80, 90]]
END = 97  # the tokenizer's end-of-sequence
ENDS = [*range(0, 250, 5)]


@dataclass(frozen=True)
class Kind:
    """A family in one precision."""

    family: str
    quantization: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.family}-{self.quantization}"

    @property
    def within(self) -> float:
        return FLOAT32 if self.dtype == "float32" else ROUGH


FULL = [Kind(family, "none", "float32") for family in FAMILIES]
FOUR_BITS = [Kind(family, "nf4", "bfloat16") for family in ("llama", "gpt2", "qwen3")]
in_float32 = pytest.mark.parametrize("kind", FULL, ids=str, indirect=True, scope="module")
"""For what rounding would blur, e.g. which of two tokens is likelier."""


@pytest.fixture(scope="module", params=FULL + FOUR_BITS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp(str(kind)), kind.family)


@pytest.fixture(scope="module")
def models(kind: Kind, folder: Path) -> SharedBase:
    """Return four roles that no test trains."""
    return four_roles(folder, kind.quantization, kind.dtype)


def answers(models: SharedBase, batch: Sequences) -> list[Tensor]:
    """Return log-probs, entropies and values of all response tokens, and scores of all rows, row after row."""
    mask = batch.response_mask[:, 1:]
    with torch.no_grad():
        logprobs, entropies = models.logprobs("policy", batch, 0.7, entropy=True)
        values, scores = models.values("critic", batch), models.scores("reward_model", batch)
    assert entropies is not None
    return [logprobs[mask], entropies[mask], values[mask], scores]


def agree(found: list[Tensor], expected: list[Tensor], within: float) -> None:
    for a, e in zip(found, expected, strict=True):
        close(a, e, within)


def on_the_left(batch: Sequences) -> Sequences:
    """Return the rows with their padding moved to the left."""
    shifts = (~batch.attention_mask).sum(1).tolist()

    def move(rows: Tensor) -> Tensor:
        return torch.stack([row.roll(shift) for row, shift in zip(rows, shifts, strict=True)])

    return Sequences(move(batch.input_ids), move(batch.attention_mask), move(batch.response_mask))


def between(batch: Sequences, columns: int = 3) -> Sequences:
    """Return the rows with additional padding on both sides."""

    def widen(rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(rows, (columns, columns))

    return Sequences(widen(batch.input_ids), widen(batch.attention_mask), widen(batch.response_mask))


def ending(batch: Sequences) -> Sequences:
    """Return the rows with end-of-sequence as each one's last token."""
    ids = batch.input_ids.clone()
    for row, length in zip(ids, sequence_lengths(batch), strict=True):
        row[length - 1] = END
    return Sequences(ids, batch.attention_mask, batch.response_mask)


def sample(models: SharedBase, prompts: list[list[int]], rows: int = 64, temperature: float = 1.0) -> list[Response]:
    """Return responses that end often, so that rows leave the batch at different times."""
    with models.merged("policy") as model:
        return generate(
            model,
            prompts,
            eos_ids=ENDS,
            max_response_length=12,
            temperature=temperature,
            seed=1,
            rows=rows,
        )


# -- a row's numbers depend on its tokens alone --------------------------------------------------------------------


def test_a_row_gets_the_same_numbers_alone_and_in_a_batch(models: SharedBase, kind: Kind):
    batch = some_rows()
    alone = zip(*(answers(models, take_rows(batch, [row])) for row in range(4)), strict=True)
    agree(answers(models, batch), [torch.cat(parts) for parts in alone], kind.within)


def test_padding_on_the_left_or_on_both_sides_gives_the_numbers_of_padding_on_the_right(models: SharedBase, kind: Kind):
    batch = some_rows()
    right = answers(models, batch)
    agree(answers(models, on_the_left(batch)), right, kind.within)
    agree(answers(models, between(batch)), right, kind.within)
    agree(answers(models, between(on_the_left(batch))), right, kind.within)


@pytest.mark.parametrize("place", [lambda batch: batch, on_the_left, between], ids=["right", "left", "both"])
def test_what_the_padding_holds_changes_nothing(models: SharedBase, place: Callable[[Sequences], Sequences]):
    batch = place(some_rows())
    for ids in (torch.tensor(END), torch.randint(0, 256, batch.input_ids.shape)):
        filled = torch.where(batch.attention_mask, batch.input_ids, ids)
        other = Sequences(filled, batch.attention_mask, batch.response_mask)
        agree(answers(models, other), answers(models, batch), EXACT)


def test_micro_batches_and_padding_on_the_left_give_the_gradient_of_the_whole_batch(models: SharedBase, kind: Kind):
    """The first moment of Adam after one step is (1 − β₁) times the gradient."""
    batch = some_rows()

    def step(part: Sequences) -> StepOutput:
        return StepOutput(-models.logprobs("policy", part)[0], part.response_mask[:, 1:], {})

    def gradients(parts: list[Sequences]) -> Tensor:
        optimizer = MasterAdamW([(models.parameters("policy"), 0.0)], weight_decay=0.0, kind="adamw")
        update(parts, [step], lambda part: float(part.response_mask.sum()), optimizer, max_grad_norm=1e9)
        moments = optimizer.state()["adamw"]["state"].values()
        return torch.cat([moment["exp_avg"].flatten() for moment in moments]) * 10

    whole = gradients([batch])
    parts = [take_rows(batch, rows) for rows in micro_batches(sequence_lengths(batch), range(4), 14)]
    assert len(parts) == 3
    assert whole.abs().max() > 0.01
    close(gradients(parts), whole, kind.within)
    close(gradients([on_the_left(batch)]), whole, kind.within)


@pytest.mark.parametrize("pad", [EOS, None], ids=["pad=end", "no pad"])
def test_the_tokenizer_s_pad_token_changes_nothing(kind: Kind, folder: Path, tmp_path: Path, pad: str | None):
    """The closing end-of-sequence is scored, even where transformers would take it for padding."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = write_tokenizer(tmp_path, pad)
    assert tokenizer.eos_token_id == END
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": tokenizer.pad_token_id}))
    ours, other = (four_roles(place, kind.quantization, kind.dtype) for place in (folder, tmp_path))
    assert other.base.tokenizer.pad_token == pad
    batch = ending(some_rows())
    agree(answers(other, batch), answers(ours, batch), EXACT)
    assert sample(other, PROMPTS) == sample(ours, PROMPTS)
    with torch.no_grad():
        last = torch.tensor(sequence_lengths(batch)) - 1
        pooled = other.hidden("reward_model", batch)[torch.arange(4), last].float()
        close(other.scores("reward_model", batch), pooled @ other.heads["reward_model"].weight[0])


# -- log-probs, merged layers and sampling -------------------------------------------------------------------------


def test_log_probs_are_the_log_softmax_of_the_model_s_own_logits(models: SharedBase, kind: Kind):
    batch = some_rows()
    ids, mask = batch.input_ids, batch.response_mask[:, 1:]
    for role in ROLES:
        with torch.no_grad(), models.role(role) as model:
            logits = model(input_ids=ids, attention_mask=batch.attention_mask.long()).logits[:, :-1].float()
            found = models.logprobs(role, batch, 0.7, entropy=True)
        everything = torch.log_softmax(logits / 0.7, -1)
        close(found[0][mask], everything.gather(2, ids[:, 1:, None])[..., 0][mask], kind.within)
        close(found[1][mask], -(everything.exp() * everything).sum(-1)[mask], kind.within)


def test_merged_layers_give_the_logits_of_the_adapters(models: SharedBase, kind: Kind):
    ids = some_rows().input_ids
    for role in ("policy", "critic"):
        with torch.no_grad():
            with models.role(role) as model:
                expected = model(input_ids=ids).logits
            with models.merged(role) as model:
                close(model(input_ids=ids).logits, expected, kind.within)


@in_float32
def test_greedy_sampling_of_prompts_of_unlike_lengths_equals_the_library_on_each_alone(models: SharedBase):
    found = sample(models, PROMPTS, temperature=0)
    assert any(len(r.tokens) < 12 for r in found)
    for prompt, response in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        with models.role("policy") as model, torch.no_grad():
            expected = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=ENDS,
            )
        assert list(response.tokens) == expected[0, len(prompt) :].tolist()


@in_float32
def test_a_prompt_gets_the_same_sample_alone_and_beside_longer_ones(models: SharedBase):
    together = sample(models, PROMPTS * 3)
    assert len({len(r.tokens) for r in together}) > 2
    for rows in (1, 4):
        assert sample(models, PROMPTS * 3, rows) == together


# -- roles over one base -------------------------------------------------------------------------------------------


def test_the_shared_base_answers_like_one_model_for_each_role(models: SharedBase, kind: Kind, folder: Path, tmp_path):
    batch = some_rows()
    for role in ("policy", "reference", "reward_model", "critic"):
        models.save(role, tmp_path / role)
        alone = open_base(folder, kind.quantization, kind.dtype)
        alone.add("alone", start=tmp_path / role)
        with torch.no_grad():
            close(alone.logprobs("alone", batch)[0], models.logprobs(role, batch)[0], EXACT)
            if role in models.heads:
                close(alone.scores("alone", batch), models.scores(role, batch), EXACT)
                close(alone.values("alone", batch), models.values(role, batch), EXACT)


@pytest.fixture
def plain(kind: Kind) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a user without this project."""
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, kind.dtype)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"dtype": dtype, **({"quantization_config": four_bits} if kind.quantization == "nf4" else {})}


def test_a_saved_policy_gives_the_same_logits_in_plain_peft(models: SharedBase, kind: Kind, tmp_path: Path, plain):
    from peft import AutoPeftModelForCausalLM

    models.save("policy", tmp_path)
    theirs, batch = AutoPeftModelForCausalLM.from_pretrained(tmp_path, **plain).eval(), some_rows()
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    with torch.no_grad(), models.role("policy") as model:
        mask = batch.attention_mask
        close(theirs(**given).logits[mask].float(), model(**given).logits[mask].float(), kind.within)


def test_a_saved_reward_model_gives_the_same_score_in_plain_peft(models: SharedBase, kind: Kind, tmp_path: Path, plain):
    from peft import AutoPeftModelForSequenceClassification

    models.save("reward_model", tmp_path)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, **plain).eval()
    batch = some_rows()
    ids = batch.input_ids.masked_fill(~batch.attention_mask, theirs.config.pad_token_id)
    with torch.no_grad():
        found = theirs(input_ids=ids, attention_mask=batch.attention_mask.long()).logits[:, 0].float()
        close(found, models.scores("reward_model", batch), kind.within)


def test_training_policy_and_critic_leaves_all_other_weights_as_they_were(kind: Kind, folder: Path):
    models, batch = four_roles(folder, kind.quantization, kind.dtype), some_rows()
    mask = batch.response_mask[:, 1:]
    moving = {*models.parameters("policy"), *models.parameters("critic")}
    rest = [p for p in models.base.model.parameters() if p not in moving]
    kept = [p.detach().clone() for p in rest]
    with torch.no_grad():
        reference, scores = models.logprobs("reference", batch)[0], models.scores("reward_model", batch)
    before = {role: models.fingerprint(role) for role in ROLES[1:]}
    optimizer = MasterAdamW(
        [(models.parameters("policy"), 0.01), (models.parameters("critic"), 0.01)], 0.01, kind="adamw"
    )
    steps: list[Callable[[Sequences], StepOutput]] = [
        lambda part: StepOutput(-models.logprobs("policy", part)[0], mask, {}),
        lambda part: StepOutput((models.values("critic", part) - 1).square(), mask, {}),
    ]
    for _ in range(3):
        update([batch], steps, lambda _: 1.0, optimizer, max_grad_norm=1.0)
    after = {role: models.fingerprint(role) for role in ROLES[1:]}
    assert {role for role in after if after[role] != before[role]} == {"policy", "critic"}
    assert all(p.equal(k) for p, k in zip(rest, kept, strict=True))
    assert not any(p.requires_grad for p in rest)
    with torch.no_grad():
        close(models.logprobs("reference", batch)[0], reference, EXACT)
        close(models.scores("reward_model", batch), scores, EXACT)


def test_the_role_comes_back_after_an_exception(models: SharedBase):
    batch = some_rows()
    before = answers(models, batch)

    def fail() -> None:
        with models.role("policy"), models.merged("critic"):
            raise RuntimeError

    with models.role("reference") as model, torch.no_grad():
        expected = model(input_ids=batch.input_ids).logits
        with pytest.raises(RuntimeError):
            fail()
        close(model(input_ids=batch.input_ids).logits, expected, EXACT)
    agree(answers(models, batch), before, EXACT)
