"""What a policy answers to prepared rows, and how far that is from the reference."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow import distributed
from alignflow.data.collate import collate
from alignflow.data.encoding import encode_prompt
from alignflow.evaluation.answers import response_kl
from alignflow.loops.by_rows import by_rows
from alignflow.memory import Budget
from alignflow.models.load import softcap_of
from alignflow.models.roles import BASE, SharedBase
from alignflow.sampling.own import by_length, cut
from alignflow.types import Example
from tasks.data.prepared import read_prompts
from tasks.evaluation.answer_files import PolicyAnswers
from tasks.evaluation.capability import capability
from tasks.evaluation.kept import Kept
from tasks.evaluation.trajectory import trajectory_of
from tasks.params.sections import Evaluate, Params
from tasks.paths import SFT
from tasks.policies import REFERENCE, adapter_of
from tasks.running.stage import Stage
from tasks.training.models import open_models
from tasks.training.sampling import decode, sampler, settle


def open_reference(params: Params) -> SharedBase:
    """Load the base with the reference, from which the KL of all policies is taken."""
    models = open_models(params)
    models.add("reference", start=SFT)
    return models


def rows_to_answer(params: Params, side: str) -> list[Mapping[str, Any]]:
    """Return the rows of a side that every policy answers, each as often as it is answered."""
    asked = read_prompts(side)[: params.evaluate.prompts]
    return [row for row in asked for _ in range(params.evaluate.samples_per_prompt)]


def answer_as(
    stage: Stage, kept: Kept, models: SharedBase, policy: str, side: str
) -> tuple[list[PolicyAnswers], dict[str, float]]:
    """Answer the rows of a side as a policy and as its snapshots; return the answers, and figures of the policy.

    Args:
        stage: the running stage.
        kept: results of the stage so far; sampling goes on after them, block by block.
        models: with the role ``reference``.
        policy: its name.
        side: of the prepared data.

    Returns:
        The answers of the final policy, then those of each earlier snapshot in order.
    """
    params, section = stage.params, stage.params.evaluate
    budget = stage.budget("passes", params.reward_model.micro_batch_tokens)
    asked = rows_to_answer(params, side)
    first = asked[: section.samples_per_prompt * section.trajectory_prompts]
    trajectory = trajectory_of(policy, params)
    found = []
    final = add_policy(models, policy, adapter_of(policy, params))
    places = [(policy, final, asked)]
    places += [
        (f"{policy}, {one.label}", add_policy(models, f"{policy}-{one.label}", one.folder), first)
        for one in trajectory[:-1]
    ]
    for title, role, rows in places:
        found.append(answer(stage, kept, models, title, role, rows, budget, at_reference=policy == REFERENCE))
    known = kept.once(
        f"{policy}: capability",
        lambda: capability(
            models, final, section, budget, stage.progress("questions and texts of the capability check")
        ),
    )
    return found, {"kl/temperature": kl_temperature(section), **known}


def add_policy(models: SharedBase, name: str, folder: Path | None) -> str:
    """Load an adapter and return its role; that of the base model where there is none."""
    if folder is None:
        return BASE
    role = f"policy-{name.replace(' ', '-')}"
    models.add(role, start=folder)
    return role


def answer(
    stage: Stage,
    kept: Kept,
    models: SharedBase,
    title: str,
    role: str,
    rows: Sequence[Mapping[str, Any]],
    budget: Budget,
    *,
    at_reference: bool = False,
) -> PolicyAnswers:
    """Sample an answer to each row, the same random numbers for every role, and measure the KL to the reference."""
    settle(stage, models)
    params, section = stage.params, stage.params.evaluate
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in rows]
    blocks = cut(by_length(prompts), params.sampling.rows * distributed.world())
    stage.say(f"{title}: answers {len(rows)} rows")
    tell = stage.progress(f"{title}: answers")
    responses: dict[int, tuple[list[int], bool, str]] = {}
    with sampler(
        models,
        role,
        params,
        length=section.max_response_length,
        temperature=section.temperature,
        seed=section.seed,
    ) as draw:
        for number, block in enumerate(blocks):

            def sample(block: Sequence[int] = block, number: int = number) -> list[tuple[list[int], bool, str]]:
                drawn = draw([prompts[i] for i in block], block, lambda share: tell((number + share) / len(blocks)))
                return [(list(r.tokens), r.truncated, t) for r, t in zip(drawn, decode(models, drawn), strict=True)]

            done = kept.once(f"{title}: answers {block[0]} to {block[-1]}, {len(block)} of {len(rows)}", sample)
            responses.update(zip(block, done, strict=True))
    tokens, truncated, texts = zip(*(responses[i] for i in range(len(rows))), strict=True)
    examples = [Example(p, tuple(t)) for p, t in zip(prompts, tokens, strict=True)]
    kl = [0.0] * len(rows)
    if not at_reference:
        kl = kept.once(
            f"{title}: KL",
            lambda: _kl(
                models, role, examples, budget, kl_temperature(section), stage.progress(f"{title}: KL to the reference")
            ),
        )
    return PolicyAnswers(rows, [e.response for e in examples], list(truncated), list(texts), kl)


def kl_temperature(section: Evaluate) -> float:
    """Return the temperature at which the KL is taken: that of sampling; 1 for greedy answers.

    Greedy decoding gives one token all the probability, so that its own KL is 0 or infinite.
    """
    return section.temperature or 1.0


def _kl(
    models: SharedBase,
    role: str,
    examples: list[Example],
    budget: Budget,
    temperature: float,
    tell: Callable[[float], None],
) -> list[float]:
    """Return each response's KL to the reference, nats."""
    head = models.base.model.get_output_embeddings()
    values = by_rows(
        lambda batch: response_kl(
            models.hidden(role, batch),
            models.hidden("reference", batch),
            head.weight,
            batch.to(models.base.device),
            temperature=temperature,
            bias=head.bias,
            softcap=softcap_of(models.base.model),
        ),
        collate(examples),
        budget,
        tell=tell,
    )
    positive: list[float] = values.clamp(min=0).tolist()  # rounding may leave −1e-7
    return positive
