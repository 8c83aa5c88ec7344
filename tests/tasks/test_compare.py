"""Stage ``compare`` on real files: numbers by hand, words that fit them, a page that needs nothing else."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alignflow.comparison import Resampling
from tasks import compare, params, report
from tasks.evaluations import InputError
from tasks.outcomes import compare as compare_policies
from tasks.outcomes import metrics
from tasks.verdict import Standing, verdict

ROUNDS = ("round-1", "round-2")
RESAMPLING = Resampling(samples=500, confidence=0.95, seed=3)
PROMPTS = 40
KEYS = [
    "policy",
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    "score_mean",
    "gold_mean",
    "kl_reference",
    "response_length_mean",
    "truncated_fraction",
    "train_seconds",
    "trained_tokens",
    "peak_memory_gib",
]
WINS = {"base": (8, 20), "dpo": (30, 30), "iterative_dpo": (32, 20), "ppo": (22, 20), "grpo": (36, 4)}
"""Prompts of 40 on which a policy beats the reference, by reward model and by independent judge."""
COSTS = {
    "sft": (60.0, 4000, 1.25),
    "dpo": (90.0, 8000, 1.5),
    "iterative_dpo/round-1": (40.0, 3000, 1.75),
    "iterative_dpo/round-2": (50.5, 3500, 1.625),
    "ppo": (200.0, 6000, 2.0),
    "grpo": (180.0, 9000, 1.875),
}
HOSTILE = '</p><script>alert("x")</script><img src=http://example.org/a.png onerror=alert(1)> & {{ 7 * 7 }}'


def answers(policy: str) -> list[dict[str, object]]:
    """The reference scores 0 and is judged 0.5; a win is +1 and 0.75, a loss -1 and 0.25."""
    by_score, by_gold = WINS.get(policy, (None, None))
    rows = []
    for i in range(PROMPTS):
        score = 0.0 if by_score is None else 1.0 if i < by_score else -1.0
        gold = 0.5 if by_gold is None else 0.75 if i < by_gold else 0.25
        rows.append(
            {
                "prompt_id": f"p{i:02d}",
                "prompt": f"Question {i}?",
                "response": f"{policy} answers {i}: {HOSTILE}",
                "score": score,
                "gold": gold,
                "kl": 0.0 if policy == "reference" else 2.0,
                "response_length": 20 + i % 2,
                "truncated": i % 4 == 0,
            }
        )
    return rows


def write_answers(root: Path, policy: str, rows: Iterable[Mapping[str, object]]) -> None:
    path = root / "evaluations" / policy / "responses.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def build(tmp_path: Path) -> Path:
    for policy in ("base", "reference", *list(WINS)[1:]):
        write_answers(tmp_path, policy, answers(policy)[::-1] if policy == "ppo" else answers(policy))
    for stage, (seconds, tokens, memory) in COSTS.items():
        numbers = {"train_seconds": seconds, "trained_tokens": tokens, "peak_memory_gib": memory, "loss": 0.4}
        for folder in ("metrics", "plots"):
            (tmp_path / folder / stage).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "metrics" / f"{stage}.json").write_text(json.dumps(numbers))
        with (tmp_path / "plots" / f"{stage}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "loss", "rewards/accuracy"])
            writer.writerows([[1, 0.7, 0.5], [2, 0.6, ""], [3, 0.5, 0.8]])
    return tmp_path


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


@pytest.fixture
def settings(root):
    """The project's own params.yaml, set to what the files above were made for."""
    path = root / "params.yaml"
    path.write_text((Path(__file__).parents[2] / "params.yaml").read_text())
    values = {"compare.bootstrap_samples": 500, "compare.confidence": 0.95, "compare.seed": 3}
    params.override(path, [f"{key}={value}" for key, value in values.items()] + ["iterative_dpo.shards=2"])


def compared(root):
    return compare_policies(root, ROUNDS, RESAMPLING)


def test_the_report_lists_every_policy_with_the_agreed_keys_in_order(root, settings):
    compare.write_reports(root)
    rows = json.loads((root / "reports" / "comparison.json").read_text())
    assert [row["policy"] for row in rows] == ["reference", "dpo", "iterative_dpo", "ppo", "grpo"]
    assert all(list(row) == KEYS for row in rows)


def test_the_numbers_agree_with_hand_calculation(root, settings):
    """DPO wins 30 of 40: 0.75; mean score (30 - 10) / 40 = 0.5; judge (30 * .75 + 10 * .25) / 40 = 0.625.

    Lengths alternate 20 and 21; every fourth answer is cut off.
    """
    compare.write_reports(root)
    rows = {row["policy"]: row for row in json.loads((root / "reports" / "comparison.json").read_text())}
    dpo = rows["dpo"]
    assert dpo["win_rate"] == 0.75
    assert 0.5 < dpo["win_rate_low"] < 0.75 < dpo["win_rate_high"] < 1
    assert (dpo["score_mean"], dpo["gold_mean"], dpo["kl_reference"]) == (0.5, 0.625, 2.0)
    assert (dpo["response_length_mean"], dpo["truncated_fraction"]) == (20.5, 0.25)
    assert (dpo["train_seconds"], dpo["trained_tokens"], dpo["peak_memory_gib"]) == (90.0, 8000, 1.5)
    reference = rows["reference"]
    assert [reference[key] for key in KEYS[1:4]] == [0.5, 0.5, 0.5]
    assert reference["train_seconds"] == 60.0


def test_rounds_add_up_in_time_and_tokens_and_the_highest_memory_counts(root, settings):
    compare.write_reports(root)
    rows = {row["policy"]: row for row in json.loads((root / "reports" / "comparison.json").read_text())}
    iterative = rows["iterative_dpo"]
    assert [iterative[key] for key in KEYS[-3:]] == [90.5, 6500, 1.75]


def test_a_round_left_over_from_an_earlier_setting_is_not_counted(root):
    (root / "metrics" / "iterative_dpo/round-3.json").write_text("not even JSON")
    cost = compared(root).outcomes["iterative_dpo"].cost
    assert cost is not None
    assert cost.train_seconds == 90.5


def test_metrics_are_flat_numbers(root, settings):
    compare.write_reports(root)
    numbers = metrics(compared(root))
    assert numbers["win_rate/dpo"] == 0.75
    assert numbers["gold_win_rate/grpo"] == 0.1
    assert all(isinstance(number, float | int) for number in numbers.values())


def test_the_order_of_rows_in_a_file_changes_nothing(root):
    """PPO's file is written backwards; its 22 wins must meet the right reference answers."""
    assert compared(root).outcomes["ppo"].score.rate == 22 / 40


def test_an_answer_with_the_references_own_text_is_a_tie_whatever_rounding_did_to_its_score(root):
    rows = [row | {"score": row["score"] + 1e-6} for row in answers("reference")]
    write_answers(root, "dpo", rows)
    assert compared(root).outcomes["dpo"].score.ties == PROMPTS


def test_the_verdict_says_what_the_numbers_allow(root):
    """Both judges 30 of 40; score 32 but judge 20; 22 of 40 either way; score 36 but judge 4."""
    said = verdict(compared(root))
    standing = {finding.outcome.policy: finding.standing for finding in said.findings}
    assert standing == {
        "dpo": Standing.BETTER,
        "iterative_dpo": Standing.UNCONFIRMED,
        "ppo": Standing.UNSETTLED,
        "grpo": Standing.DISPUTED,
    }
    assert said.headline.startswith("DPO is better")
    assert "75\u00a0% of unseen prompts" in said.findings[0].sentence


def test_without_a_better_policy_the_verdict_says_so(root):
    for policy in ("dpo", "iterative_dpo", "ppo", "grpo"):
        write_answers(root, policy, answers("reference"))
    assert verdict(compared(root)).headline == "No policy is shown to be better than the reference."


def test_longer_and_truncated_answers_are_pointed_out(root):
    rows = [row | {"response_length": 60, "truncated": True} for row in answers("dpo")]
    write_answers(root, "dpo", rows)
    cautions = verdict(compared(root)).findings[0].cautions
    assert len(cautions) == 2
    assert "60 tokens against 20" in cautions[0]


class Page(HTMLParser):
    """Collects the tags, attributes and text that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return report.render(compared(build(tmp_path_factory.mktemp("rendered"))))


@pytest.fixture(scope="module")
def page(rendered):
    return Page(rendered)


def test_the_page_needs_no_other_file_and_no_network(rendered, page):
    addresses = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(address.startswith("#") for address in addresses)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    style = rendered.split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style


def test_text_of_a_model_is_shown_and_never_run(page):
    assert HOSTILE in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "49" not in re.findall(r"& (\S+)", page.text)


def test_the_page_shows_each_policy_side_by_side_for_a_few_prompts(root, page):
    samples = report.samples(compared(root))
    assert len(samples) == 5
    for sample in samples:
        assert list(sample.answers) == ["base", "reference", "dpo", "iterative_dpo", "ppo", "grpo"]
        assert all(answer.response in page.text for answer in sample.answers.values())


def test_the_best_and_the_worst_case_are_by_mean_gain_of_the_independent_judge(root):
    """Prompt 0 wins by all four (+0.25 each); prompts past 30 lose by all four (-0.25 each)."""
    samples = report.samples(compared(root))
    best, worst = samples[-2:]
    assert {answer.gold for policy, answer in best.answers.items() if policy in ("dpo", "grpo")} == {0.75}
    assert "gain" in best.reason
    assert "+0.25" in best.reason
    assert {answer.gold for policy, answer in worst.answers.items() if policy in ("dpo", "grpo")} == {0.25}
    assert "−0.25" in worst.reason


def test_charts_follow_the_pages_theme(rendered):
    """A fixed colour would vanish in one of the two themes."""
    drawings = re.findall(r"<svg.*?</svg>", rendered, flags=re.DOTALL)
    assert len(drawings) >= 1 + 2 + 5 + 3  # win rates, two against KL, a curve a method, three costs
    for drawing in drawings:
        assert not re.search(r"(?:fill|stroke|color)\s*[:=]\s*\"?#", drawing)
    used = set(re.findall(r"var\((--[\w-]+)\)", rendered))
    assert used <= set(re.findall(r"(--[\w-]+):", rendered))


def test_ids_of_charts_do_not_meet_on_the_page(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_same_inputs_give_the_same_page(root, rendered):
    assert report.render(compared(root)) == rendered


def test_the_page_stays_small_with_very_long_answers_and_curves(root):
    write_answers(root, "grpo", [row | {"response": "long " * 50_000} for row in answers("grpo")])
    rows = "\n".join(f"{i},{i % 7},{i % 5}" for i in range(20_000))
    (root / "plots" / "grpo.csv").write_text(f"step,loss,score/mean\n{rows}\n")
    assert len(report.render(compared(root)).encode()) < 1_000_000


def test_two_prompts_are_enough_for_a_page(root):
    for policy in ("base", "reference", "dpo", "iterative_dpo", "ppo", "grpo"):
        write_answers(root, policy, answers(policy)[:2])
    assert len(report.samples(compared(root))) == 2


def test_a_stage_without_steps_has_no_curve_and_no_error(root):
    (root / "plots" / "sft.csv").write_text("step,loss\n")
    assert "</html>" in report.render(compared(root))


def test_curves_of_rounds_follow_each_other(root):
    curve = compared(root).curves["iterative_dpo"]
    assert curve.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve.breaks == (3,)


@pytest.mark.parametrize(
    "path",
    [
        "evaluations/ppo/responses.jsonl",
        "evaluations/base/responses.jsonl",
        "metrics/sft.json",
        "metrics/iterative_dpo/round-2.json",
        "plots/grpo.csv",
    ],
)
def test_a_missing_file_is_named(root, settings, monkeypatch, path):
    (root / path).unlink()
    monkeypatch.chdir(root)
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=rf"^{re.escape(path)} is missing; `dvc repro "):
        compare.write_reports(Path())
    assert not (root / "reports").exists()


def broken(row: Mapping[str, object]) -> str:
    return f"{json.dumps(answers('dpo')[0])}\n{json.dumps(row)}\n"


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("evaluations/dpo/responses.jsonl", "", "holds no answer"),
        ("evaluations/dpo/responses.jsonl", "{\n", "line 1"),
        ("evaluations/dpo/responses.jsonl", broken({"prompt_id": "p01"}), "line 2: prompt: Field required"),
        ("evaluations/dpo/responses.jsonl", broken(answers("dpo")[1] | {"gold": 1.5}), "line 2: gold"),
        ("evaluations/dpo/responses.jsonl", broken(answers("dpo")[1] | {"score": float("nan")}), "line 2"),
        ("evaluations/dpo/responses.jsonl", broken(answers("dpo")[1]), "38 missing"),
        ("evaluations/dpo/responses.jsonl", broken(answers("dpo")[0]), "'p00' occurs more than once"),
        ("metrics/dpo.json", "[", "not JSON"),
        ("metrics/dpo.json", '{"train_seconds": 1, "trained_tokens": 1}', "peak_memory_gib"),
        ("plots/dpo.csv", "loss\n1\n", "step"),
        ("plots/dpo.csv", "step,loss\n1,much\n", "line 2"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(root, path, content, message):
    (root / path).write_text(content)
    with pytest.raises(InputError, match=re.escape(str(root / path))) as raised:
        compared(root)
    assert message in str(raised.value)


def test_a_missing_params_file_is_named(root):
    with pytest.raises(params.ParamsError, match=r"params\.yaml: not found"):
        compare.write_reports(root)


def test_evaluations_of_another_prompt_text_are_not_compared(root):
    rows = answers("dpo")
    rows[5]["prompt"] = "An older question?"
    write_answers(root, "dpo", rows)
    with pytest.raises(InputError, match="'p05' has another text"):
        compared(root)


def test_the_stage_prints_its_table_and_the_verdict(root, settings):
    env = {**os.environ, "ALIGNFLOW_HOME": str(root / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-m", "tasks.compare"], cwd=root, env=env, capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    assert json.loads((root / "metrics" / "compare.json").read_text())["win_rate/dpo"] == 0.75
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "Reference",
        "DPO",
        "Iterative DPO",
        "PPO",
        "GRPO",
    ]
    assert len({len(line) for line in lines[:6]}) == 1
