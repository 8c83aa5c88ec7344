"""The table of judges: one entry is enough for a further judge to be read, compared and named."""

from pathlib import Path

import pytest

from tasks import judges
from tasks.comparison import page
from tasks.comparison.verdict import verdict
from tests.tasks.comparison.evaluated import POLICIES, REPORT, answers, build, compared, write, write_answers


def test_a_name_outside_the_table_is_a_rule():
    assert judges.judge_title("concise_answer") == "rule concise_answer"
    assert judges.judge_title("judge_model") == "second reward model"
    assert judges.learned() == {"judge_model": Path("artifacts/judge_model")}


def test_judges_of_the_table_stand_before_rules():
    assert judges.in_order(["b_rule", "judge_model", "a_rule", "score"]) == ("score", "judge_model", "b_rule", "a_rule")


def test_a_further_reward_model_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path("artifacts/third_model")
    third = judges.Judge("third reward model", judges.Kind.REWARD_MODEL, folder, "The third reward model")
    monkeypatch.setitem(judges.JUDGES, "third_model", third)  # type: ignore[arg-type]
    root = build(tmp_path)
    for policy in POLICIES:
        rows = [row | {"judges": {**row["judges"], "third_model": row["score"]}} for row in answers(policy)]
        write_answers(root, policy, rows)
        write(root / "evaluations" / policy / "trajectory.json", [])
    write(root / folder / "report.json", REPORT)
    found = compared(root)
    assert found.judges == ("score", "judge_model", "third_model", "concise_answer")
    assert found.results["grpo"].rates["third_model"].rate == 0.9  # as by the training reward
    assert judges.learned()["third_model"] == folder
    said = verdict(found)
    assert said.headline == "One seed: DPO is better than the reference, and all 3 independent judges agree."
    text = page.render(found, said)
    assert '<h3 class="sub">The third reward model</h3>' in text
    assert "third reward model" in text.split("</ul>")[0]
