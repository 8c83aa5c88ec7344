"""Sampling from a tiny random Llama."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.data.collate import collate
from alignflow.models.load import TooLong, decoder_of
from alignflow.models.roles import SharedBase
from alignflow.sampling.kv_cache import spread
from alignflow.sampling.own import Response, _choose, generate
from alignflow.types import Example
from tests.close import EXACT, close
from tests.tiny import disturb, open_base, write_model

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21], [5, 6, 7]]
NEVER = [255]


@pytest.fixture(scope="module")
def models(tiny: Path) -> SharedBase:
    models = open_base(tiny)
    models.add("policy")
    disturb(models, "policy", 3)
    return models


def sample(models: SharedBase, prompts: list[list[int]], **given: Any) -> list[Response]:
    settings: dict[str, Any] = {
        "eos_ids": NEVER,
        "max_response_length": 8,
        "temperature": 1.0,
        "seed": 1,
        "rows": 64,
    }
    with models.merged("policy") as model:
        return generate(model, prompts, **{**settings, **given})


def test_greedy_equals_the_library_one_prompt_at_a_time(models: SharedBase):
    found = sample(models, PROMPTS, temperature=0)
    for prompt, response in zip(PROMPTS, found, strict=True):
        with models.role("policy") as model, torch.no_grad():
            ids = torch.tensor([prompt])
            expected = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=255
            )
        assert list(response.tokens) == expected[0, len(prompt) :].tolist()


def test_in_float32_these_samples_are_the_same_however_rows_are_batched(models: SharedBase):
    """No draw is near an edge. Ends are frequent (a fifth of the ids): rows leave at different times."""
    ends = list(range(0, 250, 5))
    together = sample(models, PROMPTS * 3, eos_ids=ends, max_response_length=16)
    assert sample(models, PROMPTS * 3, eos_ids=ends, max_response_length=16, rows=1) == together
    assert sample(models, PROMPTS * 3, eos_ids=ends, max_response_length=16, rows=4) == together
    assert len({len(r.tokens) for r in together}) > 2


def test_in_bfloat16_batching_changes_a_response_only_where_its_draw_lies_on_an_edge(tiny: Path):
    """The draws are those of seed and row. At the first unlike token both tokens' shares of [0, 1) come near the draw.

    Edges are those of the same weights in float64. The same batches give the same responses.
    """
    rough = 0.02  # bfloat16 keeps 8 bits of a logit
    prompts, length = [list(range(5 + i, 9 + i + i % 5)) for i in range(48)], 16
    models = open_base(tiny, dtype="bfloat16", compute=torch.bfloat16)  # also where products are computed in float32
    models.add("policy")
    one, same, other = (sample(models, prompts, max_response_length=length, rows=n) for n in (48, 48, 5))
    assert same == one
    exact, changed = open_base(tiny, dtype="bfloat16").base.model.double(), 0
    for row, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        draws = torch.rand(length, generator=torch.Generator().manual_seed(1_000_003 + row), dtype=torch.float64)
        for t, pair in enumerate(zip(mine.tokens, theirs.tokens, strict=True)):
            with torch.no_grad():
                logits = exact(input_ids=torch.tensor([[*prompts[row], *mine.tokens[:t]]])).logits[0, -1]
            edges = torch.cat([torch.zeros(1), logits.softmax(-1).cumsum(-1)])
            for token in pair:
                assert edges[token] - rough <= draws[t] <= edges[token + 1] + rough
            if pair[0] != pair[1]:
                changed += 1
                break
    assert changed, "batching never mattered: this test shows nothing"


def test_a_block_with_its_streams_gets_the_responses_of_the_whole_and_says_how_far_it_is(models: SharedBase):
    prompts, shares = PROMPTS * 2, list[float]()
    together = sample(models, prompts)
    block = [1, 4, 8]
    found = sample(models, [prompts[i] for i in block], streams=block, rows=2, tell=shares.append)
    assert found == [together[i] for i in block]
    assert shares == [(t + 1) / 16 for t in range(16)]  # two batches of eight tokens


def test_equal_prompts_are_prefilled_once_and_answered_as_one_by_one(models: SharedBase):
    """Five prompts of two kinds, in no order: one forward of two rows, then steps of five rows and one token."""
    prompts, shapes = [[5, 6, 7], [9, 8], [5, 6, 7], [9, 8], [5, 6, 7]], []

    def look(_: Any, __: Any, given: dict[str, Any]) -> None:
        shapes.append(tuple(given["input_ids"].shape))

    hook = decoder_of(models.base.model).register_forward_pre_hook(look, with_kwargs=True)
    together = sample(models, prompts, max_response_length=4)
    hook.remove()
    assert shapes == [(2, 3), (5, 1), (5, 1), (5, 1)], "the last token of a response is never looked at"
    assert sample(models, prompts, max_response_length=4, rows=1) == together
    assert together[0] != together[2]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_roomy_cache_shows_attention_what_the_library_s_own_does(family: str, tmp_path: Path):
    """Through steps of two and of one token and a loss of rows; Mistral's window of 5 is passed on the way."""
    from transformers import DynamicCache

    model = open_base(write_model(tmp_path, family)).base.model
    shape, generator = (2, 2, 3, 16), torch.Generator().manual_seed(0)
    plain, roomy = DynamicCache(config=model.config), DynamicCache(config=model.config)
    rows = torch.tensor([1, 0, 0, 1])

    def feed(keys: torch.Tensor, values: torch.Tensor) -> None:
        for layer in range(2):
            assert roomy.get_mask_sizes(keys.shape[2], layer) == plain.get_mask_sizes(keys.shape[2], layer)
            found, expected = (cache.update(keys, values, layer) for cache in (roomy, plain))
            close(found[0], expected[0], EXACT)
            close(found[1], expected[1], EXACT)

    feed(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
    plain.batch_select_indices(rows)
    spread(roomy, rows, 8)
    assert roomy.is_sliding == plain.is_sliding == [family == "mistral"] * 2
    for step, new in enumerate([2, 1, 1, 1, 1, 1]):
        feed(*torch.randn((2, 4 if step < 3 else 3, 2, new, 16), generator=generator))
        assert roomy.get_seq_length() == plain.get_seq_length()
        if step == 2:
            for cache in (plain, roomy):
                cache.batch_select_indices(torch.tensor([3, 0, 1]))


def test_the_same_seed_repeats_and_another_differs(models: SharedBase):
    assert sample(models, PROMPTS) == sample(models, PROMPTS)
    assert sample(models, PROMPTS) != sample(models, PROMPTS, seed=2)
    first, *_, last = sample(models, PROMPTS)
    assert first != last, "two samples of one prompt must differ"


def test_a_response_ends_with_its_first_end_token(models: SharedBase):
    free = sample(models, PROMPTS)
    end = free[0].tokens[3]
    for before, after in zip(free, sample(models, PROMPTS, eos_ids=[end]), strict=True):
        if end in before.tokens:
            cut = before.tokens.index(end) + 1
            assert after == Response(before.tokens[:cut], False, before.logprobs[:cut])
        else:
            assert after == Response(before.tokens, True, before.logprobs)


def test_an_end_on_the_last_allowed_token_is_not_cut_off(models: SharedBase):
    (free,) = sample(models, PROMPTS[:1])
    assert free.tokens[7] not in free.tokens[:7]
    assert sample(models, PROMPTS[:1], eos_ids=[free.tokens[7]]) == [replace(free, truncated=False)]


def test_learned_positions_must_hold_the_longest_prompt_with_the_longest_response(tmp_path: Path):
    model = open_base(write_model(tmp_path, "gpt2", max_position_embeddings=16)).base.model
    settings: dict[str, Any] = {"eos_ids": NEVER, "temperature": 1.0, "seed": 1, "rows": 64}
    found = generate(model, [[5], [7] * 10], max_response_length=6, **settings)
    assert [len(r.tokens) for r in found] == [6, 6]
    with pytest.raises(TooLong, match=r"17 tokens .* 16 positions"):
        generate(model, [[5], [7] * 10], max_response_length=7, **settings)


def test_no_prompt_gives_no_response(models: SharedBase):
    assert sample(models, []) == []


def test_frequencies_follow_the_distribution_of_the_model(models: SharedBase):
    """Chi-square of 4,000 first tokens in 17 cells, the 16 likeliest and the rest: below 39.25, its 0.999 quantile."""
    draws, temperature = 4000, 0.6
    found = sample(models, [[5, 6, 7]] * draws, max_response_length=1, temperature=temperature, rows=draws)
    with models.role("policy") as model, torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    top = (logits / temperature).softmax(-1).topk(16)
    cells = [*zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    counts = [sum(r.tokens[0] == token for r in found) for token, _ in cells]
    expected = [p * draws for _, p in cells]
    counts.append(draws - sum(counts))
    expected.append(draws - sum(expected))
    assert min(expected) > 5
    assert sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True)) < 39.25


def test_the_draw_picks_where_the_cumulative_passes_it():
    """Probabilities 1/4, 1/2, 1/4: draws .2, .3, .74, .76 pick tokens 0, 1, 1, 2; temperature 0 the likeliest.

    Temperature 1/2 squares them to 1/6, 2/3, 1/6: draw .2 picks token 1.
    """
    logits = torch.tensor([0.25, 0.5, 0.25]).log().repeat(4, 1)
    draws = torch.tensor([0.2, 0.3, 0.74, 0.76], dtype=torch.float64)
    for temperature, tokens, probabilities in (
        (1.0, [0, 1, 1, 2], [0.25, 0.5, 0.5, 0.25]),
        (0.5, [1, 1, 1, 1], [2 / 3] * 4),
        (0.0, [1, 1, 1, 1], [1.0] * 4),
    ):
        chosen, logprobs = _choose(logits.clone(), draws, temperature)
        close(chosen, tokens)
        close(logprobs.exp(), probabilities)


def test_captured_log_probs_are_those_that_training_takes(models: SharedBase):
    found = sample(models, PROMPTS, temperature=0.7)
    examples = [Example(tuple(p), r.tokens) for p, r in zip(PROMPTS, found, strict=True)]
    batch = collate(examples)
    with torch.no_grad():
        expected = models.logprobs("policy", batch, 0.7)[0]
    close(torch.tensor([p for r in found for p in r.logprobs]), expected[batch.response_mask[:, 1:]])


def test_a_draw_next_to_one_stays_in_the_vocabulary():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    close(_choose(logits, torch.tensor([1 - 1e-12], dtype=torch.float64), 1.0)[0], [1])
