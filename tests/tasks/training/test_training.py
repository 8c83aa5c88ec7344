"""What the training stages share: the order of rows, prepared files, rewards."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.loops.order import pair_batches, rows_of_step
from alignflow.sampling.own import Response
from alignflow.types import Example, Pair
from tasks.data.prepared import read_prepared, read_prompts
from tasks.params.read import load
from tasks.params.sections import Params
from tasks.training.rewards import Reward, RewardError, check_sources, means, reward, within_groups
from tasks.training.rollouts import rollouts
from tasks.training.samples import Sample
from tests.close import close
from tests.toy import CONFIG, Given, enough

FILE = Path(__file__).resolve().parents[3] / "params.yaml"


def test_every_epoch_sees_each_row_once_in_its_own_order():
    """Batches of 4 from 6 rows: steps 0 to 2 are exactly two epochs."""
    rows = [row for step in range(3) for row in rows_of_step(6, CONFIG, step)]
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))
    assert rows[:6] != rows[6:]
    assert rows_of_step(6, CONFIG, 1) == rows[4:8]


def test_a_batch_larger_than_the_data_repeats_it():
    assert sorted(rows_of_step(2, CONFIG, 0)) == [0, 0, 1, 1]


def test_micro_batches_of_pairs_hold_the_rows_of_the_step_within_the_budget():
    pairs = [Pair((1,) * i, (2,) * (i + 1), (3,)) for i in range(1, 7)]
    parts = pair_batches(pairs, CONFIG, 0, CONFIG.micro_batch_tokens, torch.device("cpu"))
    assert sorted(row for rows, _ in parts for row in rows) == sorted(rows_of_step(6, CONFIG, 0))
    for rows, batch in parts:
        assert len(batch.input_ids) == 2 * len(rows)
        tokens = sum(len(pairs[i].prompt) + len(pairs[i].chosen) + len(pairs[i].rejected) for i in rows)
        assert len(rows) == 1 or tokens <= CONFIG.micro_batch_tokens


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/prepared"
    folder.mkdir(parents=True)
    return folder


def test_line_separators_inside_a_text_do_not_split_a_row(prepared: Path):
    row = {"prompt_id": "a", "prompt": "one\u2028two\x85three", "chosen": "c", "rejected": "r"}
    (prepared / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_prepared("train") == [row]


def test_a_prompt_with_several_pairs_is_one_prompt(prepared: Path):
    rows = [{"prompt_id": name, "chosen": str(i)} for i, name in enumerate("abacb")]
    (prepared / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [r["prompt_id"] + r["chosen"] for r in read_prompts("validation")]
    assert found == ["a0", "b1", "c3"]


ROWS = [{"prompt": "p", "answer": "Rome"}, {"prompt": "q", "answer": None}]
RULE = {"weight": 2.0, "right": 1.0, "abstain": 0.0, "wrong": -1.0}


@pytest.fixture
def earned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Reward]]:
    """Two responses, of 60 words and of one, with raw scores 3 and 0; the second was cut off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.training.rewards.ended_as_in_data", lambda _, examples: examples)  # without a tokenizer
    folder = tmp_path / "artifacts/reward_model"
    folder.mkdir(parents=True)
    (folder / "normalization.json").write_text('{"mean": 1.0, "std": 2.0}')

    def earn(learned: float, rules: dict[str, Any], scores: Sequence[float] = (3.0, 0.0)) -> list[Reward]:
        found = load(FILE).model_dump()
        found["rewards"] |= {"reward_model": learned, "rules": rules, "missing_eos_penalty": 0.5}
        return reward(
            Given(scores=torch.tensor(scores)),  # type: ignore[arg-type]
            Params.model_validate(found),
            ROWS,
            [Example((1,), (2,)), Example((1,), (3,))],
            [Response((2,), False, (-1.0,)), Response((3,), True, (-1.0,))],
            ["Rome " * 60, "word"],
            budget=enough(1000),
        )

    return earn


def test_the_reward_is_the_weighted_sum_of_sources_less_the_missing_end(earned: Callable[..., list[Reward]]):
    """Scores (3 - 1) / 2 = 1 and -0.5, times 2; brevity of 60 words 0.5 and of one 1, times 4; 0.5 off the second."""
    rewards = earned(2.0, {"brevity": 4.0})
    close([r.total for r in rewards], [2 + 2, -1 + 4 - 0.5])
    assert [r.sources["brevity"] for r in rewards] == [0.5, 1.0]
    close(means(rewards)["score/mean"], (4 + 2.5) / 2)
    close(means(rewards)["score/brevity"], 0.75)
    close(means(rewards)["score/reward_model"], 0.25)


def test_responses_count_by_their_reward_or_by_their_share_of_wins_inside_their_group():
    """Two prompts of two responses. Shares: s(2) and s(-2) at temperature 1; the second group has no second reward."""
    totals = [3.0, 1.0, None, 5.0]
    params = load(FILE)
    assert within_groups(params, totals, 2) == totals
    params = params.model_copy(update={"rewards": params.rewards.model_copy(update={"within_group": "wins"})})
    won = 1 / (1 + math.exp(-2))
    found = within_groups(params, totals, 2)
    close(found[:2], [won, 1 - won])
    assert found[2:] == [None, None]


def test_a_source_that_does_not_apply_adds_nothing(earned: Callable[..., list[Reward]]):
    """The second row has no answer: it keeps its learned score alone."""
    rewards = earned(1.0, {"right_abstain_wrong": RULE})
    close([r.total for r in rewards], [1 + 2, -0.5 - 0.5])
    assert rewards[1].sources["right_abstain_wrong"] is None
    assert means(rewards)["score/right_abstain_wrong"] == 1.0


def test_a_row_to_which_no_source_applies_has_no_reward(earned: Callable[..., list[Reward]]):
    rewards = earned(0.0, {"right_abstain_wrong": RULE})
    assert [r.total for r in rewards] == [2.0, None]
    assert means(rewards) == {"score/mean": 2.0}
    found = rollouts(
        [
            Sample(row, Example((1,), (2,)), Response((2,), truncated=i == 1, logprobs=(-1.0,)), "", one)
            for i, (row, one) in enumerate(zip(ROWS, rewards, strict=True))
        ],
        [one.total for one in rewards],
        torch.device("cpu"),
    )
    assert found.scores.tolist() == [2.0, 0.0]
    assert found.scored.tolist() == [True, False]
    assert found.truncated.tolist() == [False, True]


def rules_alone(rules: dict[str, Any]) -> Params:
    found = load(FILE).model_dump()
    found["rewards"] |= {"reward_model": 0.0, "rules": rules, "missing_eos_penalty": 0.5}
    return Params.model_validate(found)


def test_rules_that_apply_to_no_row_of_the_data_are_refused_before_anything_is_sampled():
    rows = [{"prompt": "p", "chosen": "c", "answer": None}, {"prompt": "q", "chosen": "d", "answer": "Rome"}]
    check_sources(rules_alone({"right_abstain_wrong": RULE}), rows)
    check_sources(rules_alone({"right_abstain_wrong": RULE, "brevity": {"weight": 1.0}}), rows[:1])
    with pytest.raises(RewardError, match=r"right_abstain_wrong.* any of 1 rows.*answer"):
        check_sources(rules_alone({"right_abstain_wrong": RULE}), rows[:1])


def test_a_reward_model_that_gives_nan_stops_the_run(earned: Callable[..., list[Reward]]):
    with pytest.raises(RewardError, match=r"reward model gave nan.*'q'"):
        earned(1.0, {}, scores=(3.0, float("nan")))
