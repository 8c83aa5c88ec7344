"""What the on-policy stages share: the roles, and rollouts of the current policy with their rewards."""

from collections.abc import Callable

import torch
from torch import Tensor

from alignflow.data.collate import by_rows, collate
from alignflow.data.preferences import encode_prompt
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig
from alignflow.types import Example, Metrics, Sequences
from tasks import rewarding, sampling, training
from tasks.params import OnPolicy, Params
from tasks.stage import Stage


def open_roles(params: Params) -> SharedBase:
    """Load the base with policy, reference and reward model; the reference is where the policy starts."""
    models = training.open_models(params)
    models.add("policy", start=training.SFT, trained=True)
    models.add("reference", start=training.SFT)
    models.add("reward_model", start=training.REWARD_MODEL)
    return models


def token_rows(forward: Callable[[Sequences], Tensor], sequences: Sequences, budget: int) -> Tensor:
    """Run a forward that gives a number a token, in micro-batches without gradients. (B, S-1)"""
    return by_rows(forward, sequences, budget, columns=sequences.input_ids.shape[1] - 1)


def logprobs(models: SharedBase, sequences: Sequences, temperature: float, budget: int) -> tuple[Tensor, Tensor]:
    """Return the log-probs of policy and reference at the sampling temperature. (B, S-1) each"""
    mine, other = (
        token_rows(lambda batch, role=role: models.logprobs(role, batch, temperature)[0], sequences, budget)  # type: ignore[misc]
        for role in ("policy", "reference")
    )
    return mine, other


def collector(
    stage: Stage, models: SharedBase, section: OnPolicy, *, samples: int
) -> Callable[[int], tuple[Sequences, Tensor, Metrics]]:
    """Return the function that samples and scores the rollouts of a step.

    Args:
        stage: receives a table of completions now and then.
        models: with the roles of ``open_roles``.
        section: batch size, seed and micro-batch size.
        samples: responses a prompt, side by side.
    """
    rows = training.read_prompts("train")
    config = training.config_of(section, OptimisationConfig)

    def collect(step: int) -> tuple[Sequences, Tensor, Metrics]:
        chosen = [rows[i]["prompt"] for i in training.rows_of_step(len(rows), config, step) for _ in range(samples)]
        prompts = [encode_prompt(models.base.tokenizer, text) for text in chosen]
        seed = config.seed * 100_003 + step
        responses, texts = sampling.sample(models, "policy", prompts, stage.params, seed=seed)
        examples = [Example(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
        rewards = rewarding.reward(
            models, stage.params, chosen, examples, responses, texts, budget=config.micro_batch_tokens
        )
        if step in (0, config.steps - 1):
            stage.record.table(f"completions-{step + 1}", sampling.completions(chosen, texts, rewards))
        scores = torch.tensor(rewards, device=models.base.device)
        lengths = [len(r.tokens) for r in responses]
        metrics = {
            "score/mean": sum(rewards) / len(rewards),
            "response_length/mean": sum(lengths) / len(lengths),
            "truncated_fraction": sum(r.truncated for r in responses) / len(responses),
        }
        return collate(examples).to(models.base.device), scores, metrics

    return collect
