"""What a policy answers to prepared rows, and how far that is from the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignflow.data.collate import collate
from alignflow.data.encoding import encode_prompt
from alignflow.evaluation.answers import response_kl
from alignflow.loops.by_rows import by_rows
from alignflow.memory import Budget
from alignflow.models.load import softcap_of
from alignflow.models.roles import BASE, SharedBase
from alignflow.sampling.own import Response
from alignflow.types import Example
from tasks.data.prepared import read_prompts
from tasks.params.sections import Evaluate, Params
from tasks.training import sampling
from tasks.training.rewards import check_sources, judged_rows


@dataclass(frozen=True)
class PolicyAnswers:
    """What one policy answered to prepared rows."""

    rows: Sequence[Mapping[str, Any]]
    examples: list[Example]
    """Prompts with responses, as token ids."""
    responses: list[Response]
    texts: list[str]
    kl: list[float]
    """To the reference at ``kl_temperature``, nats a response."""


def rows_to_answer(params: Params) -> list[Mapping[str, Any]]:
    """Return the held-out rows that every policy answers, each as often as it is answered."""
    held_out = read_prompts("validation")
    check_sources(params, held_out)
    asked = judged_rows(params, held_out)[: params.evaluate.prompts]
    return [row for row in asked for _ in range(params.evaluate.samples_per_prompt)]


def add_policy(models: SharedBase, name: str, folder: Path | None) -> str:
    """Load an adapter and return its role; that of the base model where there is none."""
    if folder is None:
        return BASE
    role = name.replace(" ", "-")
    models.add(role, start=folder)
    return role


def answer(
    models: SharedBase,
    role: str,
    params: Params,
    rows: Sequence[Mapping[str, Any]],
    budget: Budget,
    *,
    at_reference: bool = False,
) -> PolicyAnswers:
    """Sample an answer to each row, the same random numbers for every role, and measure the KL to the reference."""
    section = params.evaluate
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in rows]
    responses, texts = sampling.answer(
        models,
        role,
        prompts,
        params,
        length=section.max_response_length,
        temperature=section.temperature,
        seed=section.seed,
    )
    examples = [Example(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
    kl = [0.0] * len(rows) if at_reference else _kl(models, role, examples, budget, kl_temperature(section))
    return PolicyAnswers(rows, examples, responses, texts, kl)


def kl_temperature(section: Evaluate) -> float:
    """Return the temperature at which the KL is taken: that of sampling; 1 for greedy answers.

    Greedy decoding gives one token all the probability, so that its own KL is 0 or infinite.
    """
    return section.temperature or 1.0


def _kl(models: SharedBase, role: str, examples: list[Example], budget: Budget, temperature: float) -> list[float]:
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
    )
    positive: list[float] = values.clamp(min=0).tolist()  # rounding may leave −1e-7
    return positive
