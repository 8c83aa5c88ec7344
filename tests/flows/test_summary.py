"""The comparison in a terminal: the numbers and the words that the last stage wrote."""

import json

from rich.console import Console

from flows import summary
from tasks.comparison.table import scalars, table


def row(policy, rate, *judges, standing="not significant"):
    return {
        "policy": policy,
        "win_rate": rate,
        "win_rate_low": rate - 0.1,
        "win_rate_high": rate + 0.1,
        "standing": standing,
        "judges": {
            "score": {
                "win_rate": rate,
                "complete": {"win_rate": rate - 0.1},
                "length_controlled": {"value": rate - 0.05},
                "predicted": 0.66,
            },
            **{f"judge_{i}": {"win_rate": each, "complete": {"win_rate": each - 0.2}} for i, each in enumerate(judges)},
        },
    }


def shown(rows):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(rows))
    return capture.get()


def test_the_table_shows_every_judge_and_fits_a_terminal():
    text = shown([row("dpo", 0.75, 0.6, 0.55), row("ppo", 0.8, 0.4, 0.3)])
    assert "75    65–85  60 55 65 40 35   70    66" in text
    assert "judges: by judge_0, judge_1" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_judge_that_looked_at_some_policies_only_leaves_a_gap():
    assert "60 –" in shown([row("dpo", 0.75, 0.6), row("ppo", 0.8, 0.4, 0.3)])


def test_the_best_policy_is_one_that_is_better_however_high_another_scores():
    rows = [row("reference", 0.5, 0.5), row("dpo", 0.7, 0.6, standing="better"), row("ppo", 0.9, 0.2)]
    assert summary.best(rows) == "dpo"
    assert summary.best([row("reference", 0.5, 0.5), row("dpo", 0.7, 0.55), row("ppo", 0.9, 0.2)]) == "dpo"
    assert summary.best([{"policy": "reference", "win_rate": 0.5}, {"policy": "dpo", "win_rate": 0.6}]) == "dpo"


def test_the_words_are_those_of_the_report(tmp_path):
    assert summary.verdict(tmp_path) == []
    (tmp_path / "reports").mkdir()
    (tmp_path / summary.WORDS).write_text(json.dumps({"lines": ["DPO is better.", "PPO is not."]}))
    assert summary.verdict(tmp_path) == ["DPO is better.", "PPO is not."]


def test_a_flat_row_keeps_what_a_cell_can_hold():
    assert set(scalars(row("dpo", 0.75, 0.6))) == {
        "policy",
        "win_rate",
        "win_rate_low",
        "win_rate_high",
        "standing",
    }
