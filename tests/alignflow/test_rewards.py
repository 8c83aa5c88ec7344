"""Rule rewards."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignflow.rewards import RuleError, RuleFailed, apply_rule, numbers_of, rule_file, rule_names
from alignflow.rules.brevity import brevity
from alignflow.rules.concise_answer import concise_answer
from alignflow.rules.right_abstain_wrong import right_abstain_wrong
from alignflow.rules.shared.outcome import outcome

PROMPT = "Why do stars twinkle?"


def test_a_short_concrete_answer_on_the_subject_gets_everything():
    assert concise_answer(PROMPT, "A star twinkles because moving air bends its light.", None) == 1.0


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("Stars twinkle because moving air bends their light", 5 / 6),  # no end of sentence
        ("Stars twinkle.", 5 / 6),  # too short
        ("Stars are far. Air moves a lot. It bends light rays.", 5 / 6),  # three sentences
        ("Sure, stars twinkle because moving air bends light.", 5 / 6),  # filler
        ("- Stars twinkle because moving air bends light.", 5 / 6),  # list
        ("Stars twinkle at night and stars twinkle at night.", 5 / 6),  # a phrase repeated
        ("Moving air bends light rays on their way.", 1 / 2),  # off the subject
        ("", 0.0),
        ("?!", 0.0),
    ],
)
def test_each_fault_costs_its_part(response: str, score: float):
    assert concise_answer(PROMPT, response, None) == pytest.approx(score, abs=1e-12)


def test_brevity_falls_from_30_to_90_words():
    assert [brevity("", "word " * n, None) for n in (0, 30, 60, 90, 200)] == [1.0, 1.0, 0.5, 0.0, 0.0]


VALUES = {"right": 1.0, "abstain": 0.2, "wrong": -2.0}


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("Paris", "It is paris, in France.", 1.0),
        ("Paris", "It is Parisian life.", -2.0),  # not as a whole word
        ("New York", "I think it is New\nYork!", 1.0),
        ("Paris", "I don't know.", 0.2),
        ("Paris", "I don’t know that.", 0.2),  # a typographic apostrophe
        ("Paris", "I'm not sure, but Paris comes to mind.", 1.0),  # right is right
        ("Paris", "Berlin.", -2.0),
        ("Paris", "", -2.0),
        ("42", "6 times 7 is 42.", 1.0),
        ("42", "42 is wrong, it is 43.", -2.0),  # the last number is the answer
        ("1,250", "That makes 1250.0 in all", 1.0),
        ("-3", "x = -3", 1.0),
        ("42", "I do not know.", 0.2),
        ("42", "Many.", -2.0),
    ],
)
def test_right_answers_earn_most_abstentions_a_little_and_wrong_ones_cost(answer: str, response: str, reward: float):
    assert right_abstain_wrong("", response, answer, **VALUES) == reward


def test_what_the_rule_pays_for_has_a_name():
    assert [outcome(text, "Paris") for text in ("Paris!", "I don't know.", "Rome")] == ["right", "abstain", "wrong"]


def test_a_rule_about_answers_does_not_apply_to_prompts_without_one():
    assert right_abstain_wrong("", "Paris", None, **VALUES) is None
    assert apply_rule(rule_file("right_abstain_wrong", Path("none")), "", "Paris", None, VALUES) is None


def test_a_rule_says_which_numbers_it_takes():
    file = rule_file("right_abstain_wrong", Path("none"))
    assert numbers_of(file) == ["right", "abstain", "wrong"]
    assert numbers_of(rule_file("brevity", Path("none"))) == []
    assert apply_rule(file, "", "Paris", "Paris", VALUES) == 1.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", r"rule mine raised ZeroDivisionError .* 'why\?'.*mend it in .*/mine\.py"),
        ("float('nan')", r"rule mine gave nan .* 'why\?'.*finite"),
        ("float('-inf')", r"rule mine gave -inf"),
        ("'high'", r"rule mine gave 'high'"),
        ("missing", r"rule mine raised NameError"),
    ],
)
def test_a_rule_that_raises_or_gives_no_number_is_named(body: str, message: str, tmp_path: Path):
    write(tmp_path, f"def mine(prompt, response, answer):\n    return {body}\n")
    with pytest.raises(RuleFailed, match=message):
        apply_rule(rule_file("mine", tmp_path), "why?", "because", None, {})


def test_a_users_rule_is_applied_like_a_shipped_one(tmp_path: Path):
    write(
        tmp_path,
        "from dataclasses import dataclass\nfrom alignflow.rules.brevity import brevity\n"
        "@dataclass\nclass Kept:\n    calls: int = 0\n"
        "kept = Kept()\n"
        "def mine(prompt, response, answer, *, factor):\n"
        "    kept.calls += 1\n"
        "    return factor * brevity(prompt, response, answer) + kept.calls\n",
    )
    file = rule_file("mine", tmp_path)
    assert numbers_of(file) == ["factor"]
    assert [apply_rule(file, "", "word " * 60, None, {"factor": 4.0}) for _ in range(2)] == [3.0, 4.0]  # loaded once


def test_rules_of_both_folders_are_known_by_name(tmp_path: Path):
    assert rule_names(tmp_path / "none") == ["brevity", "concise_answer", "right_abstain_wrong"]
    write(tmp_path, "")
    assert rule_names(tmp_path) == ["brevity", "concise_answer", "mine", "right_abstain_wrong"]


def test_a_name_in_both_folders_is_refused(tmp_path: Path):
    write(tmp_path, "", "brevity")
    with pytest.raises(RuleError, match=r"/brevity\.py: alignflow/rules has a rule brevity, too; give yours another"):
        rule_file("brevity", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def mine(:\n", r"mine\.py:1: not valid Python"),
        (
            "def other(prompt, response, answer):\n    return 1\n",
            r"mine\.py: has no function mine; write `def mine\(prompt",
        ),
    ],
)
def test_a_file_without_its_rule_is_refused(text: str, message: str, tmp_path: Path):
    with pytest.raises(RuleError, match=message):
        numbers_of(write(tmp_path, text))


def test_asking_for_a_rules_numbers_runs_no_rule(tmp_path: Path):
    """A user's rule may import a slow package; checking settings does not import it."""
    write(tmp_path, "raise RuntimeError\ndef mine(prompt, response, answer, *, size): ...\n")
    code = f"""
import sys
from pathlib import Path
from alignflow.rewards import numbers_of, rule_file, rule_names
own = Path({str(tmp_path)!r})
print([numbers_of(rule_file(name, own)) for name in rule_names(own)])
assert not [m for m in sys.modules if m.startswith(("alignflow.rules", "torch"))]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[], [], ['size'], ['right', 'abstain', 'wrong']]"


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path
