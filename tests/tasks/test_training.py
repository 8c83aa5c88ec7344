"""What the training stages share: the order of rows, prepared files, rewards."""

import json
from pathlib import Path

import pytest
import torch

from alignflow.generate import Response
from alignflow.types import Example, Pair
from tasks import params, rewarding, training
from tests.close import close
from tests.toy import CONFIG, Given

FILE = Path(__file__).resolve().parents[2] / "params.yaml"


def test_every_epoch_sees_each_row_once_in_its_own_order():
    """Batches of 4 from 6 rows: steps 0 to 2 are exactly two epochs."""
    rows = [row for step in range(3) for row in training.rows_of_step(6, CONFIG, step)]
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))
    assert rows[:6] != rows[6:]
    assert training.rows_of_step(6, CONFIG, 1) == rows[4:8]


def test_a_batch_larger_than_the_data_repeats_it():
    assert sorted(training.rows_of_step(2, CONFIG, 0)) == [0, 0, 1, 1]


def test_micro_batches_of_pairs_hold_the_rows_of_the_step_within_the_budget():
    pairs = [Pair((1,) * i, (2,) * (i + 1), (3,)) for i in range(1, 7)]
    parts = training.pair_batches(pairs, CONFIG, 0, torch.device("cpu"))
    assert sorted(row for rows, _ in parts for row in rows) == sorted(training.rows_of_step(6, CONFIG, 0))
    for rows, batch in parts:
        assert len(batch.input_ids) == 2 * len(rows)
        assert len(rows) == 1 or batch.input_ids.numel() <= CONFIG.micro_batch_tokens


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/prepared"
    folder.mkdir(parents=True)
    return folder


def test_line_separators_inside_a_text_do_not_split_a_row(prepared: Path):
    row = {"prompt_id": "a", "prompt": "one\u2028two\x85three", "chosen": "c", "rejected": "r"}
    (prepared / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert training.read_prepared("train") == [row]


def test_a_prompt_with_several_pairs_is_one_prompt(prepared: Path):
    rows = [{"prompt_id": name, "chosen": str(i)} for i, name in enumerate("abacb")]
    (prepared / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [r["prompt_id"] + r["chosen"] for r in training.read_prompts("eval")]
    assert found == ["a0", "b1", "c3"]


def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: dict[str, float], learned: float) -> list[float]:
    found = params.load(FILE).model_dump()
    found["rewards"] = {"reward_model": learned, "rules": rules, "missing_eos_penalty": 0.5}
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "artifacts/reward_model"
    folder.mkdir(parents=True)
    (folder / "normalization.json").write_text('{"mean": 1.0, "std": 2.0}')
    return rewarding.reward(
        Given(scores=torch.tensor([3.0, 0.0])),  # type: ignore[arg-type]
        params.Params.model_validate(found),
        ["p", "q"],
        [Example((1,), (2,)), Example((1,), (3,))],
        [Response((2,), truncated=False), Response((3,), truncated=True)],
        ["word " * 60, "word"],
        budget=1000,
    )


def test_the_reward_is_the_weighted_sum_of_sources_less_the_missing_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Scores (3 - 1) / 2 = 1 and -0.5, times 2; brevity of 60 words 0.5 and of one 1, times 4; 0.5 off the second."""
    close(reward(tmp_path, monkeypatch, {"brevity": 4.0}, 2.0), [2 + 2, -1 + 4 - 0.5])
