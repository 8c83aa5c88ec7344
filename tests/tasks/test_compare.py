"""Stage ``compare`` on real files: numbers by hand, and every broken file named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.comparison import page, svg
from tasks.comparison.export import metrics, of_policy, rows
from tasks.comparison.inputs import InputError
from tasks.comparison.reports import write_reports
from tasks.comparison.table import scalars
from tasks.comparison.verdict import verdict
from tasks.params.edit import override
from tasks.params.read import load
from tasks.policies import in_order, training_stages
from tests.pipeline import read_yaml
from tests.tasks.comparison.evaluated import (
    POLICIES,
    PROMPTS,
    SHORT,
    answers,
    build,
    compared,
    quality,
    write,
    write_answers,
    write_judgements,
)

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


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


@pytest.fixture
def settings(root):
    """The project's own params.yaml, set to what the files above were made for."""
    path = root / "params.yaml"
    path.write_text((Path(__file__).parents[2] / "params.yaml").read_text())
    values = {"bootstrap_samples": 500, "confidence": 0.95, "seed": 3, "length_ridge": 0.1, "kl_levels": 2}
    assignments = [f"compare.{key}={value}" for key, value in values.items()]
    override(path, [*assignments, "iterative_dpo.shards=2"])


def report(root, policies=tuple(POLICIES)):
    return write_reports(root, policies, load(root / "params.yaml"))


def written(root):
    report(root)
    return {row["policy"]: row for row in json.loads((root / "reports" / "comparison.json").read_text())}


def test_the_report_lists_every_policy_with_the_agreed_keys_in_order(root, settings):
    rows = written(root)
    assert list(rows) == ["reference", "dpo", "iterative_dpo", "ppo", "grpo"]
    assert all(list(row)[: len(KEYS)] == KEYS for row in rows.values())
    assert len({tuple(row) for row in rows.values()}) == 1


def test_the_numbers_agree_with_hand_calculation(root, settings):
    """DPO wins 30 of 40: 0.75; mean score (30 - 10) / 40 = 0.5; rule (30 * .75 + 10 * .25) / 40 = 0.625.

    Lengths alternate 20 and 21; every tenth answer is cut off. The second reward model gives +2 or -2.
    """
    rows = written(root)
    dpo = rows["dpo"]
    assert dpo["win_rate"] == 0.75
    assert 0.5 < dpo["win_rate_low"] < 0.75 < dpo["win_rate_high"] < 1
    assert (dpo["score_mean"], dpo["gold_mean"], dpo["kl_reference"]) == (0.5, 0.625, 2.0)
    assert (dpo["response_length_mean"], dpo["truncated_fraction"]) == (20.5, 0.1)
    assert (dpo["train_seconds"], dpo["trained_tokens"], dpo["peak_memory_gib"]) == (90.0, 8000, 1.5)
    assert dpo["judges"]["judge_model"]["mean"]["value"] == 1.0
    assert list(dpo["judges"]) == ["score", "judge_model", "concise_answer"]
    reference = rows["reference"]
    assert [reference[key] for key in KEYS[1:4]] == [0.5, 0.5, 0.5]
    assert (reference["train_seconds"], reference["standing"]) == (60.0, "reference")


def test_every_judge_has_its_own_counts_and_equal_lengths_leave_the_rate(root, settings):
    """Answers to a prompt are equally long, so at equal length the rate is that of complete pairs, but for the ridge.

    Iterative DPO wins prompts 0 to 31 of 40, and 0, 10, 20 and 30 are cut off: 28 of 36.
    """
    iterative = written(root)["iterative_dpo"]["judges"]
    assert {judge: found["win_rate"] for judge, found in iterative.items()} == {
        "score": 0.8,
        "judge_model": 0.75,
        "concise_answer": 0.5,
    }
    assert (iterative["score"]["wins"], iterative["score"]["ties"], iterative["score"]["losses"]) == (32, 0, 8)
    complete = iterative["score"]["complete"]
    assert (complete["wins"], complete["losses"], complete["prompts"]) == (28, 8, 36)
    assert iterative["score"]["length_controlled"]["value"] == pytest.approx(28 / 36, abs=0.01)


def test_only_the_chosen_policies_are_compared_and_shown(root, settings):
    """PPO's and GRPO's files lie there from before: they must not be read, shown or counted.

    Holm's family is the two policies that are left: by the rule, DPO's 30 of 40 counts two times, not four.
    """
    for policy in ("ppo", "grpo"):
        (root / "evaluations" / policy / "responses.jsonl").write_text("left over")
        (root / "plots" / f"{policy}.csv").unlink()
    comparison, said = report(root, ("base", "reference", "dpo", "iterative_dpo"))
    entries = json.loads((root / "reports" / "comparison.json").read_text())
    assert [entry["policy"] for entry in entries] == ["reference", "dpo", "iterative_dpo"]
    assert list(entries[1]["round_robin"]["score"]) == ["base", "reference", "iterative_dpo"]
    assert [one.result.policy for one in said.policies] == ["dpo", "iterative_dpo"]
    rate = comparison.results["dpo"].rates["concise_answer"]
    assert rate.adjusted_p == pytest.approx(2 * rate.p_value)
    assert len(comparison.round_robin["score"]) == 4 * 3
    shown_page = (root / "reports" / "comparison.html").read_text()
    for shown, policies in ((True, ("base", "reference", "dpo", "iterative_dpo")), (False, ("ppo", "grpo"))):
        for policy in policies:
            assert (f"policy-{policy}" in shown_page) == shown
    assert not re.search(r"\b(PPO|GRPO)\b", shown_page)
    assert not {policy for key in metrics(comparison) for policy in ("ppo", "grpo") if policy in key}


def test_a_policy_keeps_its_colour_whatever_it_is_compared_with(root):
    """The colour of GRPO is the eighth of the palette, as it is the eighth of the table."""
    assert svg.theme(("reference", "grpo")) == {"reference": svg.PALETTE[1], "grpo": svg.PALETTE[7]}
    few = compared(root, ("reference", "grpo"))
    assert "--policy-grpo: #c2334d;" in page.render(few, verdict(few))


def test_a_choice_is_brought_into_the_order_of_the_table():
    assert in_order(["grpo", "reference", "dpo", "base"]) == ("base", "reference", "dpo", "grpo")


def test_without_a_trained_policy_there_is_a_page_all_the_same(root, settings):
    _, said = report(root, ("base", "reference"))
    assert said.headline == "One seed: No policy is shown to be better than the reference."
    assert "</html>" in (root / "reports" / "comparison.html").read_text()


def test_the_tests_of_trained_policies_are_corrected_judge_by_judge(root):
    """By the rule: DPO and GRPO 30 of 40, the others 20 of 40; the smallest of four counts four times."""
    outcomes = compared(root).results
    dpo = outcomes["dpo"].rates["concise_answer"]
    assert dpo.adjusted_p == pytest.approx(4 * dpo.p_value)
    assert outcomes["ppo"].rates["concise_answer"].adjusted_p == 1
    assert outcomes["base"].score.adjusted_p == outcomes["base"].score.p_value


def test_the_round_robin_meets_every_pair_in_both_directions(root, settings):
    """Score, DPO against PPO: DPO wins prompts 22 to 29, all others are equal: (8 + 32 / 2) / 40 = 0.6."""
    rows = written(root)
    direct = rows["dpo"]["round_robin"]["score"]["ppo"]
    assert (direct["wins"], direct["ties"], direct["losses"], direct["win_rate"]) == (8, 32, 0, 0.6)
    assert rows["ppo"]["round_robin"]["score"]["dpo"]["win_rate"] == 0.4
    assert list(rows["dpo"]["round_robin"]["judge_model"]) == ["base", "reference", "iterative_dpo", "ppo", "grpo"]
    assert direct["adjusted_p"] >= direct["p_value"]


def test_algorithms_are_compared_at_the_smallest_final_kl(root, settings):
    """It is 4, so the two levels are 1 and 4. PPO reaches 0.2 at its first snapshot (KL 4) and half of it at KL 1.

    The reference scores 0, so gains are the snapshots' scores.
    """
    rows = written(root)
    gains = {p: [each["gain"]["value"] for each in rows[p]["equal_kl"]["score"]] for p in list(rows)[1:]}
    assert {p: pytest.approx(each) for p, each in gains.items()} == {
        "dpo": [0.5, 1.0],
        "iterative_dpo": [0.8, 1.6],
        "ppo": [0.1, 0.2],
        "grpo": [1.0, 2.0],
    }
    assert [each["kl"] for each in rows["dpo"]["equal_kl"]["score"]] == [1.0, 4.0]
    leads = json.loads((root / "reports" / "verdict.json").read_text())["equal_kl_leads"]["judge_model"]
    assert [(lead["first"], lead["second"]) for lead in leads] == [("grpo", "dpo"), ("dpo", "iterative_dpo")]


def test_judges_agree_as_often_as_they_order_alike(root, settings):
    """Score and second reward model: DPO on all 40, iterative DPO on 38, PPO on 38, GRPO on 40 - 32 = 8; 124 of 160."""
    report(root)
    found = json.loads((root / "reports" / "verdict.json").read_text())["agreements"]
    first = next(each for each in found if each["judges"] == ["score", "judge_model"])
    assert (first["share"], first["pairs"]) == (124 / 160, 160)


def test_rounds_add_up_in_time_and_tokens_and_the_highest_memory_counts(root, settings):
    iterative = written(root)["iterative_dpo"]
    assert [iterative[key] for key in KEYS[-3:]] == [90.5, 6500, 1.75]


def test_a_round_left_over_from_an_earlier_setting_is_not_counted(root):
    (root / "metrics/training/iterative_dpo/round-3.json").write_text("not even JSON")
    cost = compared(root).results["iterative_dpo"].cost
    assert cost is not None
    assert cost.train_seconds == 90.5


def test_metrics_are_flat_numbers(root):
    numbers = metrics(compared(root))
    assert numbers["win_rate/dpo"] == 0.75
    assert numbers["judge_win_rate/judge_model/grpo"] == 0.1
    assert numbers["judge_win_rate_low/judge_model/grpo"] < 0.1 < numbers["judge_win_rate_high/judge_model/grpo"]
    assert numbers["length_controlled_win_rate/dpo"] == pytest.approx(0.75, abs=0.01)
    assert numbers["equal_kl_gain/grpo"] == pytest.approx(2.0)
    assert numbers["judge_equal_kl_gain/judge_model/grpo"] == pytest.approx(-1.0)
    assert all(isinstance(number, float | int) for number in numbers.values())


def test_every_policy_has_the_same_keys_so_that_they_line_up(root):
    keys = {tuple(of_policy(outcome)) for outcome in compared(root).results.values()}
    assert len(keys) == 1


def test_every_metric_is_documented(root):
    outcomes = [row | {"outcome": "right"} for row in answers("reference")]
    for policy in POLICIES:
        write_answers(root, policy, outcomes)
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    found = compared(root)
    for key in metrics(found):
        name = re.sub("_(low|high|p_value)$", "", key.partition("/")[0])
        assert f"`{name}/" in text, name
    for key in json.loads(json.dumps(rows(found, verdict(found))[0])):
        assert f"`{key}`" in text, key


def test_the_order_of_rows_in_a_file_changes_nothing(root):
    """PPO's file is written backwards; its 22 wins must meet the right reference answers."""
    assert compared(root).results["ppo"].score.rate == 22 / 40


def test_an_answer_with_the_references_own_text_is_a_tie_whatever_rounding_did_to_its_score(root):
    write_answers(root, "dpo", [row | {"score": 1e-6} for row in answers("reference")])
    assert compared(root).results["dpo"].score.ties == PROMPTS


def test_an_llm_judges_on_the_prompts_it_was_asked_about(root):
    """Three wins and a tie of four prompts: 0.875."""
    rows = [
        {"prompt_id": f"p0{i}", "policy": "dpo", "outcome": o, "orders": [1, 1]} for i, o in enumerate([1, 1, 1, 0.5])
    ]
    write_judgements(root, rows)
    outcomes = compared(root).results
    assert (outcomes["dpo"].rates["llm"].rate, outcomes["dpo"].rates["llm"].prompts) == (0.875, 4)
    assert "llm" not in outcomes["ppo"].rates


def test_an_llm_s_wins_at_equal_length_are_read_off_the_answers_that_it_saw(root):
    """It prefers DPO's first answer wherever that is longer, on 30 of 40; DPO's second answers even the lengths out."""
    for policy in POLICIES:
        rows = [row | {"sample": i, "response_length": 20} for row in answers(policy) for i in range(2)]
        if policy == "dpo":
            for n, row in enumerate(rows):
                row["response_length"] += 5 if (n < 60) == (n % 2 == 0) else -5
        write_answers(root, policy, rows)
    write_judgements(root, [{"prompt_id": f"p{i:02d}", "policy": "dpo", "outcome": float(i < 30)} for i in range(40)])
    dpo = compared(root).results["dpo"]
    assert dpo.rates["llm"].rate == 0.75
    assert (
        dpo.against.equal_length["llm"].rate < 0.65
    )  # length separates wins from losses, so little but the ridge remains
    assert dpo.against.equal_length["score"].rate == pytest.approx(dpo.score.rate, abs=0.01)


def test_a_prompt_without_an_llm_s_verdict_is_left_out(root):
    outcomes = [1, None, 0, 1]
    write_judgements(root, [{"prompt_id": f"p{i:02d}", "policy": "dpo", "outcome": o} for i, o in enumerate(outcomes)])
    rate = compared(root).results["dpo"].rates["llm"]
    assert (rate.rate, rate.prompts) == (pytest.approx(2 / 3), 3)


def test_a_project_without_the_stage_of_the_llm_judge_has_none(root):
    (root / "judgements" / "llm.jsonl").unlink()
    assert all("llm" not in outcome.rates for outcome in compared(root).results.values())


def test_without_a_second_reward_model_its_report_is_not_asked_for(root):
    for policy in POLICIES:
        rows = [row | {"judges": {"concise_answer": row["judges"]["concise_answer"]}} for row in answers(policy)]
        write_answers(root, policy, rows)
    (root / "artifacts" / "judge_model" / "report.json").unlink()
    assert list(compared(root).reward_models) == ["score"]


def test_policies_are_those_that_dvc_evaluates_and_their_stages_exist():
    dvc = read_yaml("dvc.yaml")["stages"]
    assert dvc["evaluate"]["foreach"] == "${policies}"
    for stages in training_stages(list(POLICIES), ["round-1"]).values():
        assert all(stage.partition("@")[0] in dvc for stage in stages)


def test_curves_of_rounds_follow_each_other(root):
    curve = compared(root).curves["iterative_dpo"]
    assert curve.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve.breaks == (3,)


@pytest.mark.parametrize(
    "path",
    [
        "evaluations/ppo/responses.jsonl",
        "evaluations/base/responses.jsonl",
        "evaluations/grpo/trajectory.json",
        "metrics/evaluate/reference.json",
        "artifacts/reward_model/report.json",
        "artifacts/judge_model/report.json",
        "metrics/training/sft.json",
        "metrics/training/iterative_dpo/round-2.json",
        "plots/grpo.csv",
    ],
)
def test_a_missing_file_is_named(root, settings, monkeypatch, path):
    (root / path).unlink()
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=rf"^{re.escape(path)} is missing; `dvc repro "):
        report(Path())
    assert not (root / "reports").exists()


def broken(row: dict[str, object]) -> str:
    return f"{json.dumps(answers('dpo')[0])}\n{json.dumps(row)}\n"


ROW = answers("dpo")[1]
SNAPSHOT = {
    "step": 1,
    "label": "end",
    "kl": [1.0] * SHORT,
    "score": [0.0] * SHORT,
    "judges": {"judge_model": [0.0] * SHORT, "concise_answer": [0.0] * SHORT},
    "response_length": [20] * SHORT,
}


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("evaluations/dpo/responses.jsonl", "", "holds no answer"),
        ("evaluations/dpo/responses.jsonl", "{\n", "line 1"),
        ("evaluations/dpo/responses.jsonl", broken({"prompt_id": "p01"}), "line 2: sample: Field required"),
        ("evaluations/dpo/responses.jsonl", broken(ROW | {"repetition": 1.5}), "line 2: repetition"),
        ("evaluations/dpo/responses.jsonl", broken(ROW | {"outcome": "maybe"}), "line 2: outcome"),
        ("evaluations/dpo/responses.jsonl", broken(ROW | {"judges": {"a": "good"}}), "line 2: judges.a"),
        ("evaluations/dpo/responses.jsonl", broken(ROW | {"score": float("nan")}), "line 2"),
        ("evaluations/dpo/responses.jsonl", broken(ROW), "38 missing"),
        ("evaluations/dpo/responses.jsonl", broken(answers("dpo")[0]), "'p00' has the answers [0, 0], not [0]"),
        ("evaluations/dpo/responses.jsonl", broken(ROW | {"sample": 1}), "'p00' has the answers [0], not [0, 1]"),
        ("evaluations/dpo/trajectory.json", "[{", "not JSON"),
        ("evaluations/dpo/trajectory.json", '{"step": 1}', "valid array"),
        ("evaluations/dpo/trajectory.json", json.dumps([SNAPSHOT | {"score": [0.0]}]), "0: Value error, score has 1"),
        ("evaluations/dpo/trajectory.json", json.dumps([{"step": 1}]), "0.label: Field required"),
        ("evaluations/dpo/trajectory.json", json.dumps([SNAPSHOT | {"judges": {}}]), "0.judges lacks concise_answer"),
        ("metrics/evaluate/dpo.json", json.dumps(quality(distinct_1=2)), "distinct_1"),
        ("metrics/evaluate/dpo.json", "{}", "kl/temperature: Field required"),
        ("artifacts/judge_model/report.json", '{"accuracy": 0.8}', "pairs: Field required"),
        ("judgements/llm.jsonl", '{"prompt_id": "p00", "policy": "kto", "outcome": 1}', "row 1: policy: 'kto'"),
        ("judgements/llm.jsonl", '{"prompt_id": "q", "policy": "dpo", "outcome": 1}', "row 1: prompt_id: 'q'"),
        ("judgements/llm.jsonl", 2 * '{"prompt_id": "p00", "policy": "dpo", "outcome": 1}\n', "judged before"),
        ("judgements/llm.jsonl", '{"prompt_id": "p00", "policy": "dpo", "outcome": 2}', "line 1: outcome"),
        ("judgements/llm.jsonl", '{"prompt_id": "p00", "policy": "dpo", "outcome": 0.7}', "multiple of 0.5"),
        ("metrics/training/dpo.json", "[", "not JSON"),
        ("metrics/training/dpo.json", '{"train_seconds": 1, "trained_tokens": 1}', "peak_memory_gib"),
        ("plots/dpo.csv", "loss\n1\n", "step"),
        ("plots/dpo.csv", "step,loss\n1,much\n", "line 2"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(root, path, content, message):
    (root / path).write_text(content)
    with pytest.raises(InputError, match=re.escape(str(root / path))) as raised:
        compared(root)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["truncated", "response_length"])
def test_answers_from_before_a_key_was_written_are_evaluated_again(root, key):
    rows = [{name: value for name, value in row.items() if name != key} for row in answers("dpo")]
    write_answers(root, "dpo", rows)
    with pytest.raises(
        InputError, match=rf"line 1: {key}: Field required; `dvc repro -f evaluate@dpo` makes it again$"
    ):
        compared(root)


def test_the_report_has_complete_pairs_and_what_cut_off_and_length_predict(root, settings):
    """The reference is cut off on prompts 0 to 19 and DPO on none: it wins 20 of 20 there and 10 of 20 elsewhere.

    All lengths are equal in pairs, so the prediction is 1/2 where both end, and near 1 where the reference does not;
    the other policies are cut off with the reference.
    """
    for policy in POLICIES:
        rows = answers(policy)
        for i, row in enumerate(rows):
            row["truncated"] = i < 20 and policy != "dpo"
        write_answers(root, policy, rows)
    dpo = written(root)["dpo"]
    judged = dpo["judges"]["score"]
    assert (judged["complete"]["win_rate"], judged["complete"]["prompts"]) == (0.5, 20)
    assert judged["length_controlled"]["value"] == pytest.approx(0.5, abs=0.01)
    assert judged["length_controlled"]["adjusted_p"] > 0.9
    assert judged["predicted"] == pytest.approx(0.75, abs=0.02)
    assert dpo["standing"] == "ends its answers; otherwise not shown better"
    summary = json.loads((root / "reports" / "verdict.json").read_text())
    assert summary["cut_or_length"]["score"]["cut"] < -3
    assert summary["common_errors"][0]["judges"] == ["score", "judge_model"]
    numbers = metrics(compared(root))
    assert numbers["complete_win_rate/dpo"] == 0.5
    assert numbers["judge_predicted_win_rate/judge_model/dpo"] == pytest.approx(0.75, abs=0.02)


def test_evaluations_of_another_prompt_text_are_not_compared(root):
    rows = answers("dpo")
    rows[5]["prompt"] = "An older question?"
    write_answers(root, "dpo", rows)
    with pytest.raises(InputError, match="'p05' has another text"):
        compared(root)


def test_evaluations_with_another_number_of_answers_are_not_compared(root):
    write_answers(root, "dpo", [row | {"sample": i} for row in answers("dpo") for i in range(2)])
    with pytest.raises(InputError, match=r"dpo.*'p00' was answered 2 times, not 1 as in .*reference"):
        compared(root)


def test_several_answers_a_prompt_count_as_one_prompt_each(root, settings):
    """Every policy gives its answer twice, DPO's second one as the reference's: 30 wins and 10 losses, each half tied.

    So (30 * 3/4 + 10 * 1/4) / 40 = 0.625.
    """
    for policy in POLICIES:
        second = "reference" if policy == "dpo" else policy
        both = zip(answers(policy), answers(second), strict=True)
        rows = [row | {"sample": i} for each in both for i, row in enumerate(each)]
        write_answers(root, policy, rows[::-1] if policy == "ppo" else rows)
    found = compared(root)
    rate = found.results["dpo"].score
    assert (rate.rate, rate.wins, rate.losses, rate.prompts) == (0.625, 30, 10, PROMPTS)
    assert found.results["dpo"].means["score"].value == pytest.approx(0.25)
    assert found.reference.score.rate == 0.5
    assert found.agreements["score", "judge_model"].pairs == 4 * 4 * PROMPTS
    assert found.results["ppo"].score.rate == 22 / 40
    report(root)
    assert (
        "40 unseen prompts of the validation side, 2 answers each" in (root / "reports" / "comparison.html").read_text()
    )


def test_evaluations_by_other_judges_are_not_compared(root):
    rows = answers("dpo")
    rows[3]["judges"] = {"judge_model": 1.0}
    write_answers(root, "dpo", rows)
    with pytest.raises(InputError, match=r"dpo.*'p03' are \['judge_model'\].*`dvc repro evaluate@dpo`"):
        compared(root)


def test_snapshots_on_other_numbers_of_prompts_are_not_compared(root):
    longer = {key: value + value[:1] if isinstance(value, list) else value for key, value in SNAPSHOT.items()}
    longer["judges"] = {name: [0.0] * (SHORT + 1) for name in ("judge_model", "concise_answer")}
    write(root / "evaluations" / "ppo" / "trajectory.json", [longer])
    with pytest.raises(InputError, match=r"ppo/trajectory\.json: 0\.kl has 11 values, that of dpo has 10"):
        compared(root)


def test_the_stage_prints_its_table_and_the_verdict_and_records_a_run_a_policy(root, settings):
    env = {**os.environ, "ALIGNFLOW_HOME": str(root / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-m", "tasks", "compare"], cwd=root, env=env, capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    assert json.loads((root / "metrics" / "compare.json").read_text())["win_rate/dpo"] == 0.75
    table = [line.split()[0] for line in lines if line.split()]
    first = table.index("policy") + 1
    assert table[first : first + 5] == ["reference", "dpo", "iterative_dpo", "ppo", "grpo"]
    assert any(line.startswith("GRPO: disputed. It is preferred over the reference in 90") for line in lines)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'home' / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "alignflow"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"compare", *(f"compare/{policy}" for policy in POLICIES)}
    parent = runs["compare"].info.run_id
    assert {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "compare"} == {parent}
    assert runs["compare/dpo"].data.metrics["win_rate"] == 0.75
    assert runs["compare/grpo"].data.metrics["judge_win_rate/judge_model"] == 0.1
    assert runs["compare"].data.metrics["final/win_rate/dpo"] == 0.75
    names = {item.path for item in client.list_artifacts(parent)}
    assert {"reports", "comparison.json", "round_robin.json"} <= names


def test_tables_hold_texts_and_numbers_only(root):
    found = compared(root)
    row = rows(found, verdict(found))[1]
    assert set(KEYS) <= set(scalars(row))
    assert "judges" not in scalars(row)


def test_the_test_side_is_named_and_its_openings_are_on_the_page(root, settings):
    """Evaluations in a folder of their own; trainings, costs and judges are those of the project."""
    for name in ("evaluations", "judgements", "metrics/evaluate"):
        (root / "final" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).rename(root / "final" / name)
    comparison, said = write_reports(
        root,
        tuple(POLICIES),
        load(root / "params.yaml"),
        evaluated=root / "final",
        opened="The test side was opened 3 times.",
    )
    assert not (root / "reports").exists()
    page = (root / "final/reports/comparison.html").read_text()
    assert "<title>alignflow: which policy is better, test side</title>" in page
    assert "The test side was opened 3 times." in page
    assert "unseen prompts of the test side" in page
    assert "Over-optimisation" not in page
    stored = json.loads((root / "final/reports/verdict.json").read_text())
    assert stored["headline"].startswith("Test side, one seed: ")
    assert "opened 3 times" in said.lines[0]
    assert comparison.results["dpo"].cost is not None


def test_the_validation_side_is_named_and_says_nothing_of_openings(root, settings):
    report(root)
    page = (root / "reports/comparison.html").read_text()
    assert "which policy is better, validation side</title>" in page
    assert "unseen prompts of the validation side" in page
    assert "test side" not in page.lower()
    assert "Over-optimisation" in page
