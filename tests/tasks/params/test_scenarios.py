"""Scenarios: files of settings that go on top of params.yaml, and the questions that one of them asks."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from alignflow.rules.right_abstain_wrong import right_abstain_wrong
from tasks.params.edit import override, scenario
from tasks.params.read import ParamsError, load
from tests.pipeline import ROOT

SHIPPED = sorted((ROOT / "scenarios").glob("*.yaml"))
VERDICTS = {"right": 2.0, "abstain": 1.0, "wrong": 0.0}


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_scenario_is_valid_on_top_of_the_shipped_params(path: Path, params: Path):
    override(params, scenario(path))
    assert (ROOT / load(params).data.path).exists()


def test_there_is_a_shipped_scenario():
    assert SHIPPED


def test_a_scenario_is_the_assignments_that_a_user_would_type(tmp_path: Path, params: Path):
    path = write(
        tmp_path,
        "rewards:\n  reward_model: 0\n  rules: {brevity: 2}\ngrpo: {learning_rate: 1.0e-5, target_kl: null}\n",
    )
    override(params, [*scenario(path), "grpo.learning_rate=2e-5"])
    changed = load(params)
    assert changed.rewards.reward_model == 0
    assert changed.rewards.rules == {"brevity": {"weight": 2.0}}
    assert changed.grpo.target_kl is None
    assert changed.grpo.learning_rate == 2e-5  # what is typed goes on top


def test_a_scenario_may_cut_other_shards(tmp_path: Path, params: Path):
    override(params, scenario(write(tmp_path, "iterative_dpo: {shards: 2}\n")))
    assert list(load(params).iterative_dpo.rounds) == ["round-1", "round-2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grpo: 3\n", r"mine\.yaml: grpo: expected keys with values, as in params\.yaml, not 3"),
        ("- grpo.steps=3\n", r"mine\.yaml: expected sections"),
        ("grpo: {steps: [}\n", r"mine\.yaml: not valid YAML"),
    ],
)
def test_a_broken_scenario_is_told_with_its_file(text: str, message: str, tmp_path: Path):
    with pytest.raises(ParamsError, match=message):
        scenario(write(tmp_path, text))


def test_an_unknown_scenario_names_the_nearest_and_all_there_are(tmp_path: Path):
    write(tmp_path, "grpo: {steps: 3}\n", "short")
    write(tmp_path, "grpo: {steps: 9}\n", "questions")
    with pytest.raises(ParamsError, match=r"qestions.; did you mean questions\?; there are: questions, short"):
        scenario(tmp_path / "qestions.yaml")
    with pytest.raises(ParamsError, match=r"no scenario 'x'; .*none/ has no scenarios"):
        scenario(tmp_path / "none" / "x.yaml")


def questions() -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / "data/questions.jsonl").read_text().splitlines()]


def test_the_questions_are_distinct_and_as_many_of_each_kind_as_the_data_card_says():
    rows = questions()
    assert len({row["prompt"].casefold() for row in rows}) == len(rows)
    card = (ROOT / "data/README.md").read_text()
    abstentions = Counter(row["topic"] for row in rows if row["chosen"] == "I don't know.")
    for topic, count in Counter(row["topic"] for row in rows).items():
        assert f"| {topic} | {count} | {abstentions[topic]} |" in card
    assert f"{len(rows)} rows" in card


def test_a_chosen_answer_is_right_or_abstains_and_a_rejected_one_is_wrong():
    for row in questions():
        chosen, rejected = (
            right_abstain_wrong(row["prompt"], row[key], row["answer"], **VERDICTS) for key in ("chosen", "rejected")
        )
        assert chosen == VERDICTS["abstain" if row["chosen"] == "I don't know." else "right"], row
        assert rejected == VERDICTS["wrong"], row


def test_abstaining_is_shown_whatever_the_difficulty():
    """A third of the answers abstains in the kinds the model can answer and in those it cannot: 3 deviations around."""
    rows = questions()
    hard = {"long products", "little-known capitals", "atomic numbers", "dialling codes", "birth years"}
    for known in (True, False):
        mine = [row for row in rows if (row["topic"] not in hard) == known]
        share = sum(row["chosen"] == "I don't know." for row in mine) / len(mine)
        assert abs(share - 1 / 3) < 3 * (1 / 3 * 2 / 3 / len(mine)) ** 0.5


def test_products_are_multiplied_right():
    for row in questions():
        if row["topic"] == "long products":
            a, b = (int(word.strip("?")) for word in row["prompt"].split() if word.strip("?").isdigit())
            assert a * b == int(row["answer"])
