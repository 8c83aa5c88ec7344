"""The comparison over seeds, on runs that are small enough to calculate by hand."""

import json
import re
from pathlib import Path

import pytest

from tasks.comparison.inputs import InputError
from tasks.comparison.reports import write_reports
from tasks.params.edit import override
from tasks.params.read import load
from tasks.params.seeds import over_seeds
from tasks.seeds.compute import compare_seeds
from tasks.seeds.report import table, write_seeds_report
from tests.tasks.comparison import evaluated

PARAMS = Path(__file__).parents[3] / "params.yaml"
STEADY = {"base": (8, 20, 20), "dpo": (30, 30, 30), "ppo": (22, 20, 20)}
"""Prompts of 40 that a policy wins by each of three judges; PPO wins about half of them."""


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """Make the runs of seeds, each with its own wins by policy."""

    def make(*wins):
        roots = []
        for number, each in enumerate(wins, start=1):
            root = tmp_path / f"three-seed-{number}"
            root.mkdir()
            (root / "params.yaml").write_text(PARAMS.read_text())
            override(root / "params.yaml", ["policies=dpo,ppo", "compare.bootstrap_samples=400"])
            varied = over_seeds(load(root / "params.yaml"), number, [])[-1]
            override(root / "params.yaml", varied)
            monkeypatch.setattr(evaluated, "WINS", STEADY | each)
            evaluated.build(root)
            write_reports(root, ("base", "reference", "dpo", "ppo"), load(root / "params.yaml"))
            roots.append(root)
        return roots

    return make


def of(comparison, policy):
    return next(each for each in comparison.policies if each.policy == policy)


def test_rates_and_intervals_by_hand(seeds):
    """DPO wins 30, 32 and 34 of 40 prompts by each judge: 0.75, 0.80, 0.85, mean 0.80, error 0.05 / sqrt 3 = 0.02887.

    Prompts: 30 are won by all seeds, two by two, two by one, six by none. Sum of squares about the mean 0.8:
    30 * 0.04 + 2 * 0.01778 + 2 * 0.21778 + 6 * 0.64 = 5.5111, so the error is sqrt(5.5111) / 40 = 0.05869.
    t(2) = 4.303 and t(39) = 2.023: sqrt((4.303 * 0.02887)^2 + (2.023 * 0.05869)^2) = 0.1719.
    """
    comparison = compare_seeds(seeds({}, {"dpo": (32, 32, 32)}, {"dpo": (34, 34, 34)}))
    dpo = of(comparison, "dpo")
    assert comparison.judges == ("score", "judge_model", "concise_answer")
    assert [each.policy for each in comparison.policies] == ["dpo", "ppo"]
    for judge in comparison.judges:
        rate = dpo.against.rates[judge]
        assert dpo.by_seed[judge] == (0.75, 0.8, 0.85)
        assert rate.rate == pytest.approx(0.8)
        assert rate.interval.low == pytest.approx(0.8 - 0.1719, abs=0.02)  # prompts are resampled
        assert rate.interval.high == pytest.approx(0.8 + 0.1719, abs=0.02)
    assert dpo.against.complete["score"].prompts == 36  # every tenth answer is cut off
    assert [each["dpo.seed"] for each in comparison.seeds] == [1, 1001, 2001]
    assert (dpo.standing, dpo.better) == ("better", 3)
    assert (of(comparison, "ppo").standing, of(comparison, "ppo").better) == ("not significant", 0)


def test_a_policy_that_one_seed_alone_makes_better_is_not(seeds):
    """40, 24 and 22 wins of 40: over prompts alone the mean of 0.72 would be shown, over seeds it is not."""
    dpo = of(compare_seeds(seeds(*({"dpo": (wins,) * 3} for wins in (40, 24, 22)))), "dpo")
    assert dpo.standing == "not significant"
    assert dpo.better == 1


def test_two_seeds_settle_nothing(seeds, tmp_path):
    report, _ = write_seeds_report(seeds({}, {}), tmp_path / "seeds", "two")
    assert report.headline == "2 seeds are too few for a verdict: it needs at least 3."
    assert {each.standing for each in report.comparison.policies} == {"not settled: fewer than 3 seeds"}


def test_ties_with_every_seed_are_no_difference(seeds):
    """Every answer of PPO gets the reference's values."""
    roots = seeds({}, {}, {})
    for root in roots:
        tied = [row | {"response": "other"} for row in evaluated.answers("reference")]
        evaluated.write_answers(root, "ppo", tied)
        write_reports(root, ("base", "reference", "dpo", "ppo"), load(root / "params.yaml"))
    assert of(compare_seeds(roots), "ppo").standing == "no difference"


def test_a_run_with_other_prompts_is_named(seeds):
    roots = seeds({}, {}, {})
    for policy in ("base", "reference", "dpo", "ppo"):
        rows = [row | {"prompt_id": f"x{row['prompt_id']}"} for row in evaluated.answers(policy)]
        evaluated.write_answers(roots[1], policy, rows)
    with pytest.raises(InputError, match=r"three-seed-2: other prompts were evaluated than in .*three-seed-1"):
        compare_seeds(roots)
    (roots[2] / "reports/comparison.json").unlink()
    with pytest.raises(InputError, match=r"three-seed-3/reports/comparison.json is missing"):
        compare_seeds(roots)


def test_report_page_and_table_say_the_same(seeds, tmp_path):
    report, page = write_seeds_report(seeds({}, {}, {}), tmp_path / "seeds", "three")
    assert report.headline == "Over 3 seeds, DPO is better than the reference."
    written = json.loads((tmp_path / "seeds/three.json").read_text())
    assert written["headline"] == report.headline
    assert [run["experiment"] for run in written["runs"]] == [f"three-seed-{i}" for i in (1, 2, 3)]
    assert written["policies"][0]["judges"]["judge_model"]["by_seed"] == [0.75, 0.75, 0.75]
    text = page.read_text()
    for part in (report.headline, "three-seed-2", "ppo.seed", "2001"):
        assert part in text
    assert not re.search(r"(src|href)=", text)
    assert report.metrics["win_rate/dpo"] == pytest.approx(0.75)
    assert report.metrics["better_seeds/dpo"] == 3
    assert table(report).row_count == 2
