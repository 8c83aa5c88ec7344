"""What the on-policy stages share: the roles, and rollouts of the current policy with their rewards."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignflow.data.collate import by_rows, collate
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig
from alignflow.types import Metrics, Rollouts, Sequences
from tasks.params.sections import OnPolicy, Params
from tasks.running.stage import Stage
from tasks.training import sampling
from tasks.training.models import REWARD_MODEL, SFT, config_of, open_models, read_prompts, rows_of_step
from tasks.training.rewards import Sample, check_sources, means, sample


def open_roles(params: Params) -> SharedBase:
    """Load the base with policy, reference and reward model; the reference is where the policy starts."""
    models = open_models(params)
    models.add("policy", start=SFT, trained=True)
    models.add("reference", start=SFT)
    models.add("reward_model", start=REWARD_MODEL)
    return models


def token_rows(forward: Callable[[Sequences], Tensor], sequences: Sequences, budget: Budget) -> Tensor:
    """Run a forward that gives a number a token, in micro-batches without gradients. (B, S-1)"""
    return by_rows(forward, sequences, budget, columns=sequences.input_ids.shape[1] - 1)


def logprobs(models: SharedBase, role: str, sequences: Sequences, temperature: float, budget: Budget) -> Tensor:
    """Return the log-probs of a role at the sampling temperature. (B, S-1)"""
    return token_rows(lambda batch: models.logprobs(role, batch, temperature)[0], sequences, budget)


def both_logprobs(
    models: SharedBase, sequences: Sequences, temperature: float, budget: Budget
) -> tuple[Tensor, Tensor]:
    """Return the log-probs of policy and reference at the sampling temperature. (B, S-1) each

    Equal weights, as at the start of training, are asked once.
    """
    mine = logprobs(models, "policy", sequences, temperature, budget)
    if models.fingerprint("policy") == models.fingerprint("reference"):
        return mine, mine
    return mine, logprobs(models, "reference", sequences, temperature, budget)


def rollouts(samples: Sequence[Sample], device: torch.device) -> Rollouts:
    """Return samples as a record of tensors."""
    totals = [s.reward.total for s in samples]
    sequences = collate([s.example for s in samples]).to(device)
    mask = sequences.response_mask[:, 1:]
    sampled = torch.tensor([value for s in samples for value in s.response.logprobs], device=device)
    return Rollouts(
        sequences=sequences,
        scores=torch.tensor([0.0 if total is None else total for total in totals], device=device),
        scored=torch.tensor([total is not None for total in totals], device=device),
        truncated=torch.tensor([s.response.truncated for s in samples], device=device),
        sampled_logprobs=torch.zeros(mask.shape, device=device).masked_scatter(mask, sampled),
    )


Resample = Callable[[Rollouts], Tensor]


def collector(
    stage: Stage,
    models: SharedBase,
    section: OnPolicy,
    budget: Budget,
    *,
    samples: int,
    again: Resample | None = None,
    limit: int = 0,
) -> Callable[[int], tuple[Rollouts, Metrics]]:
    """Return the function that samples and scores the rollouts of a step.

    Args:
        stage: receives a table of completions now and then.
        models: with the roles of ``open_roles``.
        section: batch size and seed.
        budget: of the passes that score.
        samples: responses a prompt, side by side.
        again: says which groups to sample again, from other prompts. (P,) bool
        limit: how often at most.
    """
    rows = read_prompts("train")
    check_sources(stage.params, rows)
    config = config_of(section, OptimisationConfig)

    def collect(step: int) -> tuple[Rollouts, Metrics]:
        def draw(prompts: Sequence[int], attempt: int) -> list[Sample]:
            seed = config.seed * 100_003 + step + attempt * 1_000_000_007
            chosen = [rows[i] for i in prompts]
            return sample(models, stage.params, chosen, samples, seed=seed, budget=budget)

        used = rows_of_step(len(rows), config, step)
        drawn, resampled = draw(used, 0), 0
        for attempt in range(1, limit + 1):
            groups = again(rollouts(drawn, models.base.device)).nonzero()[:, 0].tolist() if again else []
            unused = sorted(set(range(len(rows))) - set(used))
            fresh = random.Random(f"{config.seed}-{step}-{attempt}").sample(unused, min(len(groups), len(unused)))
            if not fresh:
                break
            more = draw(fresh, attempt)
            for place, group in enumerate(groups[: len(fresh)]):
                drawn[group * samples : (group + 1) * samples] = more[place * samples : (place + 1) * samples]
            used, resampled = [*used, *fresh], resampled + len(fresh)
        if step in (0, config.steps - 1):
            prompts, texts, totals = zip(*((s.row["prompt"], s.text, s.reward.total) for s in drawn), strict=True)
            stage.record.table(f"completions-{step + 1}", sampling.completions(prompts, texts, totals))
        lengths = [len(s.response.tokens) for s in drawn]
        metrics = {
            **means([s.reward for s in drawn]),
            "response_length/mean": sum(lengths) / len(lengths),
            "truncated_fraction": sum(s.response.truncated for s in drawn) / len(drawn),
        }
        if limit:
            metrics["resampled_groups"] = float(resampled)
        return rollouts(drawn, models.base.device), metrics

    return collect
