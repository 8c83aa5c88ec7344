"""Stage ``evaluate@POLICY``: answer held-out prompts, judge the answers, and see what was forgotten on the way."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.params.sections import Params
from tasks.policies import POLICIES, REFERENCE
from tasks.running.stage import Stage

if TYPE_CHECKING:
    from alignflow.memory import Budget
    from alignflow.models.roles import SharedBase
    from alignflow.sampling.own import Response
    from alignflow.types import Example

JUDGE = "judge_model"


def adapter_of(policy: str, params: Params) -> Path | None:
    """Return the adapter folder of a policy; None for the base model itself.

    Raises:
        UnknownPolicy: there is no policy of that name.
    """
    if policy not in POLICIES:
        raise UnknownPolicy(f"no policy {policy!r}; there are: {', '.join(POLICIES)}")
    found = POLICIES[policy]
    if found.stage is None:
        return None
    folder = Path("artifacts") / found.stage
    return folder / params.iterative_dpo.last if found.in_rounds else folder


class UnknownPolicy(ValueError):
    """No policy has that name."""


@dataclass(frozen=True)
class Snapshot:
    """A policy at some point of its training."""

    step: int
    """Optimiser steps or rollout batches so far, over all rounds of iterative DPO."""
    label: str
    folder: Path


def trajectory_of(policy: str, params: Params) -> list[Snapshot]:
    """Return the kept policies of a training in order, the final one last; none of a policy that was not trained here.

    The rounds of iterative DPO are its snapshots; other methods keep some along the way.
    """
    final = adapter_of(policy, params)
    if final is None or policy == REFERENCE:
        return []
    if POLICIES[policy].in_rounds:
        folders = {name: final.parent / name for name in params.iterative_dpo.rounds}
        steps = [_steps(folder) for folder in folders.values()]
        return [Snapshot(sum(steps[: i + 1]), *item) for i, item in enumerate(folders.items())]
    kept = {int(folder.name.removeprefix("step-")): folder for folder in (final / "snapshots").glob("step-*")}
    every = {**dict(sorted(kept.items())), _steps(final): final}
    return [Snapshot(step, f"step {step}", folder) for step, folder in every.items()]


def _steps(folder: Path) -> int:
    steps: int = json.loads((folder / "training.json").read_text())["steps"]
    return steps


@dataclass(frozen=True)
class Answers:
    """What one policy answered to prepared rows."""

    rows: Sequence[Mapping[str, Any]]
    examples: "list[Example]"
    """Prompts with responses, as token ids."""
    responses: "list[Response]"
    texts: list[str]
    kl: list[float]
    """To the reference, nats a response."""


@dataclass(frozen=True)
class Judged:
    """What these answers are worth, one value a row."""

    scores: list[float]
    """What training maximised: the weighted sum of reward sources, without the missing end."""
    judges: dict[str, list[float]]
    """By independent judge."""


def work(stage: Stage) -> Mapping[str, float]:
    """Sample from the policy and its snapshots, judge all answers in one pass, and measure what it still knows."""
    from alignflow import distributed
    from alignflow.memory import Budget
    from tasks.data.prepared import read_prompts
    from tasks.running.hardware import peak_memory_gib
    from tasks.training.rewards import check_sources, judged_rows

    policy, params = stage.name.partition("@")[2], stage.params
    every = read_prompts("eval")
    check_sources(params, every)
    samples = params.evaluate.samples_per_prompt
    asked = judged_rows(params, every)[: params.evaluate.prompts]
    rows = [row for row in asked for _ in range(samples)]
    first = rows[: samples * params.evaluate.trajectory_prompts]
    models, trajectory = _open(params), trajectory_of(policy, params)
    budget = Budget(params.reward_model.micro_batch_tokens, stage.announce)
    stage.say(f"answers {len(asked)} unseen prompts, {samples} times each")
    role = _add(models, "policy", adapter_of(policy, params))
    answers = [_answer(stage, models, role, rows, budget, at_reference=policy == REFERENCE)]
    for snapshot in trajectory[:-1]:
        stage.say(f"answers {len(first)} of them after {snapshot.label}")
        answers.append(_answer(stage, models, _add(models, snapshot.label, snapshot.folder), first, budget))
    judged = _judge(stage, models, answers, budget)
    table = _table(stage, answers[0], judged[0])
    in_order = zip([*answers[1:], answers[0]], [*judged[1:], judged[0]], strict=True)  # the policy is the last one
    points = [_point(*point, len(first), samples) for point in zip(trajectory, in_order, strict=False)]
    if distributed.is_main():
        _write(Path("evaluations") / policy, table, points)
    flat = [{**row, **{f"judge/{name}": value for name, value in row["judges"].items()}} for row in table]
    stage.record.table("answers", [{key: value for key, value in row.items() if key != "judges"} for row in flat])
    return {**_figures(table), **_capability(stage, models, role, budget), "peak_memory_gib": peak_memory_gib()}


def _write(folder: Path, table: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
    (folder / "responses.jsonl").write_text(lines, encoding="utf-8")
    (folder / "trajectory.json").write_text(json.dumps(points, indent=2) + "\n")


def _open(params: Params) -> "SharedBase":
    """Load the base with the reference and the scorers that judge."""
    from tasks.training.models import (
        JUDGE_MODEL,
        REWARD_MODEL,
        SFT,
        open_models,
    )
    from tasks.training.rewards import is_trained

    models = open_models(params)
    models.add("reference", start=SFT)
    if params.rewards.reward_model:
        models.add("reward_model", start=REWARD_MODEL)
    if is_trained(JUDGE_MODEL):
        models.add(JUDGE, start=JUDGE_MODEL)
    return models


def _add(models: "SharedBase", name: str, folder: Path | None) -> str:
    """Load an adapter and return its role; that of the base model where there is none."""
    from alignflow.models.roles import BASE

    if folder is None:
        return BASE
    role = name.replace(" ", "-")
    models.add(role, start=folder)
    return role


def _answer(
    stage: Stage,
    models: "SharedBase",
    role: str,
    rows: Sequence[Mapping[str, Any]],
    budget: "Budget",
    *,
    at_reference: bool = False,
) -> Answers:
    """Sample an answer to each row, the same random numbers for every role, and measure the KL to the reference."""
    from alignflow.data.encoding import encode_prompt
    from alignflow.types import Example
    from tasks.training import sampling

    section = stage.params.evaluate
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in rows]
    responses, texts = sampling.answer(
        models,
        role,
        prompts,
        stage.params,
        length=section.max_response_length,
        temperature=section.temperature,
        seed=section.seed,
    )
    examples = [Example(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
    kl = [0.0] * len(rows) if at_reference else _kl(models, role, examples, budget)
    return Answers(rows, examples, responses, texts, kl)


def _kl(models: "SharedBase", role: str, examples: "list[Example]", budget: "Budget") -> list[float]:
    """Return each response's KL to the reference, nats."""
    from alignflow.data.collate import collate
    from alignflow.evaluation.answers import response_kl
    from alignflow.loops.by_rows import by_rows
    from alignflow.models.load import softcap_of

    head = models.base.model.get_output_embeddings()
    values = by_rows(
        lambda batch: response_kl(
            models.hidden(role, batch),
            models.hidden("reference", batch),
            head.weight,
            batch.to(models.base.device),
            bias=head.bias,
            softcap=softcap_of(models.base.model),
        ),
        collate(examples),
        budget,
    )
    positive: list[float] = values.clamp(min=0).tolist()  # rounding may leave −1e-7
    return positive


def _judge(stage: Stage, models: "SharedBase", answers: Sequence[Answers], budget: "Budget") -> list[Judged]:
    """Return what all answers are worth: one pass of each scorer over all of them."""
    from tasks.training import rewards
    from tasks.training.models import (
        JUDGE_MODEL,
    )

    params = stage.params
    rows = [row for one in answers for row in one.rows]
    texts = [text for one in answers for text in one.texts]
    examples = [example for one in answers for example in one.examples]
    sources = rewards.sources(models, params, rows, examples, texts, budget=budget)
    scores = [_score(params, row, mine) for row, mine in zip(rows, sources, strict=True)]
    judges: dict[str, list[float]] = {}
    if JUDGE in models.heads:
        judges[JUDGE] = rewards.learned_scores(models, JUDGE, JUDGE_MODEL, examples, budget)
    for rule in stage.params.evaluate.judges:
        judges[rule] = [_rule(rule, row, text) for row, text in zip(rows, texts, strict=True)]
    result, start = [], 0
    for one in answers:
        mine = slice(start, start := start + len(one.rows))
        result.append(Judged(scores[mine], {name: values[mine] for name, values in judges.items()}))
    return result


def _score(params: Params, row: Mapping[str, Any], sources: Mapping[str, float | None]) -> float:
    from tasks.training.rewards import weighted_sum

    score = weighted_sum(params, sources)
    if score is None:
        raise NoJudgement(
            f"no rule of rewards.rules applies to an answer to {row['prompt']!r}, although one did before"
        )
    return score


def _rule(rule: str, row: Mapping[str, Any], text: str) -> float:
    """Return what a rule gives an answer as a judge.

    Raises:
        NoJudgement: it does not apply to the row.
    """
    from tasks.training.rewards import rule_value

    value = rule_value(rule, row, text, {})
    if value is None:
        raise NoJudgement(
            f"evaluate.judges: {rule} does not apply to {row['prompt']!r}; take a rule that judges every row"
        )
    return value


class NoJudgement(ValueError):
    """A judge leaves a row out."""


def _table(stage: Stage, answers: Answers, judged: Judged) -> list[dict[str, Any]]:
    """Return the answers with all that is known of them, a row an answer."""
    from alignflow.evaluation.answers import repetition
    from alignflow.evaluation.language import languages
    from alignflow.rules.shared.outcome import outcome

    least = stage.params.evaluate.language_probability
    spoken = languages(answers.texts, least=least)
    asked = languages([row["prompt"] for row in answers.rows], least=least)
    return [
        {
            "prompt_id": row["prompt_id"],
            "sample": i % stage.params.evaluate.samples_per_prompt,
            "prompt": row["prompt"],
            "response": answers.texts[i],
            "score": judged.scores[i],
            "judges": {name: values[i] for name, values in judged.judges.items()},
            "kl": answers.kl[i],
            "response_length": len(answers.responses[i].tokens),
            "truncated": answers.responses[i].truncated,
            "repetition": repetition(answers.texts[i]),
            "language": spoken[i],
            "prompt_language": asked[i],
            "outcome": None if row["answer"] is None else outcome(answers.texts[i], row["answer"]),
        }
        for i, row in enumerate(answers.rows)
    ]


def _point(snapshot: Snapshot, point: tuple[Answers, Judged], answers: int, samples: int) -> dict[str, Any]:
    """Return one point of the trajectory: what the first answers are worth, each prompt's mean."""
    from statistics import fmean

    answered, judged = point

    def by_prompt(values: Sequence[float]) -> list[float]:
        return [fmean(values[start : start + samples]) for start in range(0, answers, samples)]

    return {
        "step": snapshot.step,
        "label": snapshot.label,
        "kl": by_prompt(answered.kl),
        "score": by_prompt(judged.scores),
        "judges": {name: by_prompt(values) for name, values in judged.judges.items()},
        "response_length": by_prompt([len(response.tokens) for response in answered.responses]),
    }


def _figures(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means over all answers, and what is a figure of all of them together."""
    from statistics import fmean

    from alignflow.evaluation.answers import distinct, language_drift

    texts = [row["response"] for row in table]
    outcomes = [row["outcome"] for row in table if row["outcome"] is not None]
    return {
        "score/mean": fmean(row["score"] for row in table),
        **{f"judge/{name}/mean": fmean(row["judges"][name] for row in table) for name in table[0]["judges"]},
        "kl/reference": fmean(row["kl"] for row in table),
        "response_length/mean": fmean(row["response_length"] for row in table),
        "truncated_fraction": fmean(row["truncated"] for row in table),
        "repetition/mean": fmean(row["repetition"] for row in table),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "language_drift": language_drift([row["language"] for row in table], [row["prompt_language"] for row in table]),
        **{
            f"{name}_fraction": outcomes.count(name) / len(outcomes)
            for name in ("right", "abstain", "wrong")
            if outcomes
        },
    }


def _capability(stage: Stage, models: "SharedBase", role: str, budget: "Budget") -> dict[str, float]:
    """Return the accuracy on the fixed questions and the perplexity of unseen chosen responses, in one pass."""
    from alignflow.data.collate import collate
    from alignflow.data.encoding import encode_prompt, encode_response
    from alignflow.evaluation.capability import choice_accuracy, encode_choices, perplexity, read_question
    from alignflow.loops.by_rows import by_rows
    from alignflow.types import Example
    from tasks.data.prepared import read_lines, read_prepared

    section, tokenizer = stage.params.evaluate, models.base.tokenizer
    path = Path(section.capability_path)
    lines = enumerate(read_lines(path), start=1)
    questions = [read_question(line, f"{path}, line {number}") for number, line in lines]
    choices = [choice for question in questions for choice in encode_choices(tokenizer, question)]
    good = [
        Example(encode_prompt(tokenizer, row["messages"]), encode_response(tokenizer, row["chosen"]))
        for row in read_prepared("eval")
        if row["chosen"] is not None
    ][: section.capability_texts]
    logps = by_rows(
        lambda batch: models.logprobs(role, batch)[0].sum(1),
        collate([*choices, *good]),
        budget,
    ).tolist()
    end, lengths = len(choices), [len(example.response) for example in (*choices, *good)]
    accuracy = {"capability/multiple_choice": choice_accuracy(logps[:end], lengths[:end], questions)}
    return {**accuracy, "capability/perplexity": perplexity(logps[end:], lengths[end:])} if good else accuracy
