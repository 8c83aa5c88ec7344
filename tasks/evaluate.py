"""Stage ``evaluate@POLICY``: answer held-out prompts and judge the answers."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.params import Params, load
from tasks.stage import Stage, run

if TYPE_CHECKING:
    from alignflow.models.roles import SharedBase
    from alignflow.types import Example

POLICIES = ("base", "reference", "dpo", "iterative_dpo", "ppo", "grpo")


def adapter_of(policy: str, params: Params) -> Path | None:
    """Return the adapter folder of a policy; None for the base model itself.

    Raises:
        UnknownPolicy: there is no policy of that name.
    """
    if policy not in POLICIES:
        raise UnknownPolicy(f"no policy {policy!r}; there are: {', '.join(POLICIES)}")
    if policy == "base":
        return None
    if policy == "reference":
        return Path("artifacts/sft")
    if policy == "iterative_dpo":
        return Path("artifacts/iterative_dpo") / params.iterative_dpo.last
    return Path("artifacts") / policy


class UnknownPolicy(ValueError):
    """No policy has that name."""


def work(stage: Stage) -> Mapping[str, float]:
    """Sample, score by reward model and gold rule, measure the KL to the reference."""
    from alignflow.data.encoding import encode_prompt
    from alignflow.generate import generate
    from alignflow.types import Example
    from tasks import rewarding, sampling, training
    from tasks.hardware import peak_memory_gib

    policy, section = stage.name.partition("@")[2], stage.params.evaluate
    folder = adapter_of(policy, stage.params)
    models = training.open_models(stage.params)
    models.add("reference", start=training.SFT)
    models.add("reward_model", start=training.REWARD_MODEL)
    role = "base" if folder is None else "policy"
    if folder is not None:
        models.add("policy", start=folder)
    rows = training.read_prompts("eval")[: section.prompts]
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in rows]
    stage.say(f"answers {len(rows)} unseen prompts")
    with models.merged(role) as model:
        responses = generate(
            model,
            prompts,
            eos_ids=sampling.eos_ids(models),
            max_response_length=section.max_response_length,
            temperature=section.temperature,
            seed=section.seed,
            rows=stage.params.sampling.rows,
        )
    texts = sampling.decode(models, responses)
    examples = [Example(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
    budget = stage.params.reward_model.micro_batch_tokens
    scores = rewarding.learned_scores(models, examples, budget)
    kl = _kl(models, role, examples, budget) if policy != "reference" else [0.0] * len(rows)
    answers = [
        {
            "prompt_id": row["prompt_id"],
            "prompt": row["prompt"],
            "response": text,
            "score": score,
            "gold": _judge(section.gold, row, text),
            "kl": divergence,
            "response_length": len(response.tokens),
            "truncated": response.truncated,
        }
        for row, text, score, divergence, response in zip(rows, texts, scores, kl, responses, strict=True)
    ]
    path = Path("evaluations") / policy / "responses.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
    stage.record.table("answers", answers)

    def mean(key: str) -> float:
        return sum(
            float(str(answer[key])) if key != "truncated" else float(bool(answer[key])) for answer in answers
        ) / len(answers)

    return {
        "score/mean": mean("score"),
        "gold/mean": mean("gold"),
        "kl/reference": mean("kl"),
        "response_length/mean": mean("response_length"),
        "truncated_fraction": mean("truncated"),
        "peak_memory_gib": peak_memory_gib(),
    }


def _judge(rule: str, row: Mapping[str, Any], text: str) -> float:
    """Return what the rule judge gives an answer.

    Raises:
        NoJudgement: it does not apply to the row.
    """
    from alignflow.rewards import apply_rule

    value = apply_rule(rule, row["prompt"], text, row["answer"], {})
    if value is None:
        raise NoJudgement(
            f"evaluate.gold: {rule} does not apply to {row['prompt']!r}; take a rule that judges every row"
        )
    return value


class NoJudgement(ValueError):
    """The rule judge leaves a row out."""


def _kl(models: "SharedBase", role: str, examples: "list[Example]", budget: int) -> list[float]:
    """Return each response's KL to the reference, nats."""
    from alignflow.data.collate import by_rows, collate
    from alignflow.evaluation import response_kl
    from alignflow.models.load import softcap_of

    head = models.base.model.get_output_embeddings()
    values: list[float] = by_rows(
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
    ).tolist()
    return values


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in POLICIES:
        sys.exit(f"usage: python -m tasks.evaluate POLICY, one of: {', '.join(POLICIES)}")
    adapter = adapter_of(name, load(Path("params.yaml")))
    run(
        f"evaluate@{name}",
        work,
        sections=["base", "lora", "evaluate"],
        inputs=[
            "artifacts/base",
            "artifacts/sft",
            "artifacts/reward_model",
            "data/prepared",
            *([str(adapter)] if adapter and name != "reference" else []),
        ],
        outs=[f"evaluations/{name}"],
    )
