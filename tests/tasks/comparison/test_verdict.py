"""The verdict in words: each standing and each caution, from files whose numbers are known."""

from dataclasses import replace

import pytest

from tasks.comparison.verdict import Standing, Verdict, verdict
from tasks.policies import POLICIES as TABLE
from tests.tasks.comparison.evaluated import (
    POLICIES,
    PROMPTS,
    WINS,
    answers,
    build,
    compared,
    quality,
    trajectory,
    write,
    write_answers,
    write_judgements,
)


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


def said(root) -> Verdict:
    return verdict(compared(root))


def of_policy(root, policy: str):
    return next(each for each in said(root).policies if each.result.policy == policy)


def win(root, monkeypatch, policy: str, *wins: int) -> None:
    """Write answers that beat the reference so often by reward model, second reward model and rule."""
    monkeypatch.setitem(WINS, policy, wins)
    write_answers(root, policy, answers(policy))


def test_each_policy_stands_where_its_judges_put_it(root):
    """All judges 30 of 40; the rule 20; no judge above 22; the second reward model 4 of 40."""
    assert {each.result.policy: each.standing for each in said(root).policies} == {
        "dpo": Standing.BETTER,
        "iterative_dpo": Standing.UNCONFIRMED,
        "ppo": Standing.UNSETTLED,
        "grpo": Standing.DISPUTED,
    }


def test_a_control_is_never_the_policy_to_take_and_the_others_are_compared_with_it(root, monkeypatch):
    """As a control, DPO wins on the first 30 of 40 prompts by all judges, GRPO on 36, 4 and 30: 57.5, 17.5 and 50 %."""
    monkeypatch.setitem(TABLE, "dpo", replace(TABLE["dpo"], control=True))
    found = said(root)
    assert "DPO is better" not in found.headline
    assert {each.result.policy for each in found.policies} == {"dpo", "iterative_dpo", "ppo", "grpo"}
    assert len(found.control) == 3
    grpo = found.control[2]
    assert grpo.startswith("Against DPO: GRPO is preferred in 57\u00a0% (") or grpo.startswith(
        "Against DPO: GRPO is preferred in 58\u00a0% ("
    )
    assert "18\u00a0% (" in grpo
    assert grpo.endswith("; not every judge confirms it.")
    assert set(found.control) <= set(found.lines)


def test_better_names_what_every_judge_says(root):
    found = said(root)
    assert found.headline == "One seed: DPO is better than the reference, and both independent judges agree."
    assert found.detail == "No other policy is."
    sentence = found.policies[0].sentence
    assert sentence.startswith("is preferred over the reference in 75\u00a0% of comparisons on unseen prompts (")
    assert "second reward model (75\u00a0%" in sentence
    assert "rule concise_answer (75\u00a0%" in sentence
    assert sentence.endswith(") agree.")


def test_unconfirmed_names_the_judge_that_cannot_tell(root, monkeypatch):
    assert of_policy(root, "iterative_dpo").sentence.endswith(", p\u00a0=\u00a01) shows no significant difference.")
    assert "the second reward model (75" in of_policy(root, "iterative_dpo").sentence
    for policy in ("dpo", "grpo"):
        win(root, monkeypatch, policy, 20, 20, 20)
    assert said(root).headline == (
        "One seed: Iterative DPO leads by the training reward, but the rule concise_answer does not confirm it."
    )


def test_disputed_names_the_judge_that_prefers_the_reference(root, monkeypatch):
    assert "the second reward model (10\u00a0%" in of_policy(root, "grpo").sentence
    assert "prefers the reference; " not in of_policy(root, "dpo").sentence
    for policy in ("dpo", "iterative_dpo"):
        win(root, monkeypatch, policy, 20, 20, 20)
    found = said(root)
    assert (
        found.headline
        == "One seed: GRPO pleases the training reward, but the second reward model prefers the reference."
    )
    assert "stronger KL penalty" in found.detail


def test_worse_is_said_of_the_reward_model_whatever_the_judges_say(root, monkeypatch):
    win(root, monkeypatch, "dpo", 4, 36, 20)
    found = of_policy(root, "dpo")
    assert found.standing is Standing.WORSE
    assert found.sentence.startswith("is worse than the reference: the training reward prefers it in only 10")
    assert "the second reward model (90" in found.sentence
    assert "prefers it" in found.sentence


def test_an_open_question_stays_open_even_when_a_judge_is_against_it(root, monkeypatch):
    win(root, monkeypatch, "ppo", 22, 4, 36)
    found = of_policy(root, "ppo")
    assert found.standing is Standing.UNSETTLED
    assert "sign-flip test p\u00a0=" in found.sentence
    assert "the second reward model (10\u00a0%, " in found.sentence
    assert "prefers the reference" in found.sentence


def cut(root, policy: str, *, wins: range, complete: set[int]) -> None:
    """Let a policy win these prompts by every judge, and be cut off on none; the reference ends only ``complete``."""
    rows = answers(policy, truncated=False)
    for i, row in enumerate(rows):
        won = 1 if i in wins else -1
        row |= {"score": float(won), "judges": {"judge_model": 2.0 * won, "concise_answer": 0.5 + 0.25 * won}}
    write_answers(root, policy, rows)
    before = answers("reference")
    for i, row in enumerate(before):
        row["truncated"] = i not in complete
    write_answers(root, "reference", before)


def test_a_win_that_is_gone_where_neither_answer_is_cut_off_is_named_what_it_is(root, monkeypatch):
    """DPO wins 30 of 40; the reference ends prompts 20 to 39, of which DPO wins 10 of 20.

    Where the reference is cut off, DPO wins 20 of 20.
    """
    for policy in ("iterative_dpo", "ppo", "grpo"):
        win(root, monkeypatch, policy, 20, 20, 20)
    cut(root, "dpo", wins=range(30), complete=set(range(20, 40)))
    found = said(root)
    assert found.policies[0].standing is Standing.ENDS
    assert Standing.ENDS.value == "ends its answers; otherwise not shown better"
    assert found.headline == (
        "One seed: DPO ends its answers more often; where both answers end, the training reward, second reward model "
        "and rule concise_answer show no win."
    )
    assert "larger limit" in found.detail
    remains = found.policies[0].remains
    assert remains.startswith("Where neither answer is cut off (20 of 40 prompts): training reward 50\u00a0% (")
    assert "not significant" in remains
    assert "length predicts: training reward 7" in remains
    assert found.policies[0].sentence.startswith("is preferred over the reference in 75")
    (caution,) = found.policies[0].cautions
    assert caution.startswith(
        "0\u00a0% of its answers are cut off by the length limit, against 50\u00a0%: judges punish"
    )


def test_a_win_that_stands_where_neither_answer_is_cut_off_is_better(root):
    """Of the 30 prompts that the reference ends DPO wins 25."""
    cut(root, "dpo", wins=range(35), complete=set(range(10, 40)))
    assert of_policy(root, "dpo").standing is Standing.BETTER
    assert (
        said(root)
        .policies[0]
        .remains.startswith("Where neither answer is cut off (30 of 40 prompts): training reward 83")
    )


def test_too_few_complete_pairs_without_fewer_cut_offs_leave_it_unconfirmed(root, monkeypatch):
    """Both policies are cut off on the same 35 prompts: nothing says that ending answers made the win."""
    for policy in ("iterative_dpo", "ppo", "grpo"):
        win(root, monkeypatch, policy, 20, 20, 20)
    for policy in ("reference", "dpo"):
        rows = answers(policy)
        for i, row in enumerate(rows):
            row["truncated"] = i >= 5
        write_answers(root, policy, rows)
    found = said(root)
    assert found.policies[0].standing is Standing.UNCONFIRMED
    assert found.headline.startswith(
        "One seed: DPO leads, but where both answers end the training reward, second reward model and"
    )


def test_without_any_complete_pair_nothing_is_better(root):
    rows = [row | {"truncated": True} for row in answers("reference")]
    write_answers(root, "reference", rows)
    found = of_policy(root, "dpo")
    assert found.standing is Standing.ENDS
    assert found.remains.startswith("No pair of answers is complete")


def test_without_a_better_policy_the_verdict_says_so(root):
    for policy in ("dpo", "iterative_dpo", "ppo", "grpo"):
        write_answers(root, policy, answers("reference"))
    assert said(root).headline == "One seed: No policy is shown to be better than the reference."


def test_without_an_independent_judge_nothing_is_better(root):
    for policy in POLICIES:
        write_answers(root, policy, [row | {"judges": {}} for row in answers(policy)])
    found = said(root)
    assert {each.standing for each in found.policies} == {Standing.UNCONFIRMED, Standing.UNSETTLED}
    assert found.headline.endswith("leads by the training reward, but no independent judge was asked.")


def test_an_llm_is_a_judge_like_the_others(root):
    """It prefers the reference on 36 of 40 prompts, which both other judges do not."""
    rows = [{"prompt_id": f"p{i:02d}", "policy": "dpo", "outcome": float(i < 4)} for i in range(PROMPTS)]
    write_judgements(root, rows)
    found = of_policy(root, "dpo")
    assert found.standing is Standing.DISPUTED
    assert "the LLM judge (10\u00a0%" in found.sentence


def test_two_better_policies_are_compared_head_to_head(root, monkeypatch):
    """DPO wins 30 prompts by every judge, GRPO 38: GRPO is ahead on 8 prompts, level on 32, so 60 %, p = 0.008."""
    win(root, monkeypatch, "grpo", 38, 38, 38)
    found = said(root)
    assert found.headline == "One seed: GRPO is better than the reference, and both independent judges agree."
    assert found.detail.startswith("So is DPO; head to head GRPO is preferred over DPO in 60\u00a0% (")
    assert found.detail.endswith("but not every judge confirms the lead.")  # 0.008 times up to 15 pairs
    win(root, monkeypatch, "dpo", 30, 30, 30)
    win(root, monkeypatch, "grpo", 40, 40, 40)
    write_answers(root, "dpo", answers("dpo")[::-1])
    assert "head to head GRPO is preferred over DPO in 62" in said(root).detail


def test_a_policy_counts_as_much_as_the_judge_who_likes_it_least(root, monkeypatch):
    """GRPO wins 40 by the training reward but 29 by the rule; DPO 30 by all."""
    win(root, monkeypatch, "grpo", 40, 40, 29)
    assert said(root).headline.startswith("One seed: DPO is better")


def test_the_equal_kl_lead_is_said_by_every_judge(root):
    found = said(root)
    assert found.equal_kl.startswith(
        "At equal KL to the reference (4.00 nats a response), training reward: GRPO leads "
    )
    assert "Iterative DPO by +0.40 (+0.40 to +0.40)" in found.equal_kl
    assert "second reward model: DPO leads Iterative DPO by +0.20" in found.equal_kl
    assert found.lines[-1] == found.equal_kl
    write(root / "evaluations" / "dpo" / "trajectory.json", [])
    for policy in ("iterative_dpo", "ppo"):
        write(root / "evaluations" / policy / "trajectory.json", [])
    assert said(root).equal_kl == ""


def test_over_optimisation_is_pointed_out_with_the_snapshot(root):
    """GRPO: from its first snapshot on, score 1 to 2, second reward model 1 to -1."""
    caution = of_policy(root, "grpo").cautions[0]
    assert caution.startswith("Over-optimised: from half to the end of training its training reward rose by 1.00")
    assert "the second reward model fell by 2.00" in caution
    write(root / "evaluations" / "grpo" / "trajectory.json", trajectory(end=(4.0, 2.0, -1.0, 0.8)))
    assert of_policy(root, "grpo").cautions[0].startswith("Over-optimised: from the start to the end")


def test_a_policy_without_faults_has_no_caution(root):
    assert of_policy(root, "dpo").cautions == ()


@pytest.mark.parametrize(
    ("changed", "caution"),
    [
        ({"response_length": 60}, "Its answers are longer (60 tokens against 20)"),
        ({"truncated": True}, "100\u00a0% of its answers are cut off by the length limit, against 10\u00a0%."),
        ({"repetition": 0.4}, "40\u00a0% of its word trigrams are repetitions, against 10\u00a0%."),
        ({"language": "de"}, "100\u00a0% of its answers are in another language than their prompt, against 0\u00a0%."),
    ],
)
def test_a_trait_that_got_worse_is_pointed_out(root, changed, caution):
    write_answers(root, "dpo", answers("dpo", **changed))
    assert any(caution in each for each in of_policy(root, "dpo").cautions)


def test_an_unknown_language_is_no_drift(root):
    write_answers(root, "dpo", answers("dpo", language=None))
    assert of_policy(root, "dpo").cautions == ()


def test_a_lost_capability_is_pointed_out(root):
    changed = quality(**{"capability/perplexity": 21.0, "capability/multiple_choice": 0.25})
    write(root / "metrics" / "evaluate" / "dpo.json", changed)
    cautions = of_policy(root, "dpo").cautions
    assert "perplexity on held-out text is 21.0, the reference's 14.0" in cautions[0]
    assert "25\u00a0% of the multiple-choice questions, −25\u00a0points" in cautions[1]


def test_without_capability_figures_nothing_is_claimed(root):
    for policy in POLICIES:
        write(
            root / "metrics" / "evaluate" / f"{policy}.json",
            {"kl/temperature": 1.0, "distinct_1": 0.3, "distinct_2": 0.7},
        )
    assert of_policy(root, "dpo").cautions == ()


def lengths(root, longer: int) -> tuple[str, ...]:
    """Give DPO, which wins its first 30 prompts, that many longer answers, then shorter ones; return its cautions."""
    rows = answers("dpo")
    for i, row in enumerate(rows):
        row["response_length"] = 40 + i % 2 if i < longer else i % 2
    write_answers(root, "dpo", rows)
    return of_policy(root, "dpo").cautions


def test_a_win_that_length_explains_is_pointed_out(root):
    """Longer answers win 30 of 36, the four shorter ones none: at equal length, below one half."""
    assert Standing.LENGTH.value == "preferred for its length; not shown better at equal length"
    (said,) = [each for each in lengths(root, 36) if "equal length" in each]
    assert said.startswith("Its answers are longer: at equal length most of the win by the training reward (")
    assert said.endswith(", not 75\u00a0%) is gone.")
    assert "second reward model (" in said
    assert "and rule concise_answer (" in said
    assert of_policy(root, "dpo").standing is Standing.LENGTH


def test_a_headline_names_the_length_that_a_win_is_owed_to(root, monkeypatch):
    for policy in ("iterative_dpo", "ppo", "grpo"):
        win(root, monkeypatch, policy, 20, 20, 20)
    lengths(root, 36)
    assert said(root).headline.startswith(
        "One seed: DPO is preferred for its longer answers; at equal length the training reward, "
    )


def test_a_win_that_length_leaves_open_is_pointed_out(root):
    """All longer: nothing is known about equal length, and nothing speaks against the win either."""
    (said,) = [each for each in lengths(root, 40) if "equal length" in each]
    assert said.endswith("is not significant; lengths differ too much to tell.")
    assert of_policy(root, "dpo").standing is Standing.UNCONFIRMED


def outcomes(*counts: tuple[str, int]) -> list[str]:
    return [name for name, count in counts for _ in range(count)]


def test_rule_tasks_say_what_became_of_wrong_answers(root):
    """Of 40 questions 24 were wrong and 8 right; DPO abstains on 20 of the wrong ones."""
    before = outcomes(("right", 8), ("abstain", 8), ("wrong", 24))
    after = outcomes(("right", 8), ("abstain", 28), ("wrong", 4))
    for policy in POLICIES:
        known = after if policy == "dpo" else before
        write_answers(root, policy, [row | {"outcome": o} for row, o in zip(answers(policy), known, strict=True)])
    found = of_policy(root, "dpo").rule_outcomes
    assert found.startswith("On 40 questions with a known answer: wrong answers fall from 60\u00a0% to 10\u00a0% (−50")
    assert "abstentions rise from 20\u00a0% to 70\u00a0% (+50" in found
    assert found.endswith("no significant change in right answers (20\u00a0% to 20\u00a0%).")
    assert of_policy(root, "ppo").rule_outcomes.count("no significant change") == 1


def test_without_known_answers_nothing_is_said_of_rule_tasks(root):
    assert all(each.rule_outcomes == "" for each in said(root).policies)
