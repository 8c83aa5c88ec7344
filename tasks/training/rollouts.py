"""Training on own samples as all on-policy stages do it: roles, rollouts and rewards."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from alignflow.data.collate import collate
from alignflow.loops import online
from alignflow.loops.by_rows import RowPasses
from alignflow.loops.online import Batch
from alignflow.loops.order import rows_of_step
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig, adamw
from alignflow.types import Metrics, OnlineAlgorithm, Rollouts, SamplingConfig
from tasks.data.prepared import read_prompts
from tasks.params.sections import OnPolicy, Params
from tasks.paths import REWARD_MODEL, SFT
from tasks.running.stage import Stage
from tasks.training import sampling
from tasks.training.models import config_of, finish, keep_snapshots, open_models
from tasks.training.rewards import check_sources, means, within_groups
from tasks.training.samples import Sample, sample
from tasks.training.sampling import settle

Config = TypeVar("Config")


def open_roles(params: Params) -> SharedBase:
    """Load the base with policy, reference and reward model; the reference is where the policy starts."""
    models = open_models(params)
    models.add("policy", start=SFT, trained=True)
    models.add("reference", start=SFT)
    models.add("reward_model", start=REWARD_MODEL)
    return models


def rollouts(samples: Sequence[Sample], totals: Sequence[float | None], device: torch.device) -> Rollouts:
    """Return samples and what each counts for, None where that is nothing, as a record of tensors."""
    sequences = collate([s.example for s in samples]).to(device)
    mask = sequences.response_mask[:, 1:]
    sampled = torch.tensor([value for s in samples for value in s.response.logprobs], device=device)
    return Rollouts(
        sequences=sequences,
        scores=torch.tensor([0.0 if total is None else total for total in totals], device=device),
        scored=torch.tensor([total is not None for total in totals], device=device),
        truncated=torch.tensor([s.response.truncated for s in samples], device=device),
        penalties=torch.tensor([s.reward.penalty for s in samples], device=device),
        sampled_logprobs=torch.zeros(mask.shape, device=device).masked_scatter(mask, sampled),
    )


def train_online(
    stage: Stage,
    models: SharedBase,
    section: OnPolicy,
    keys: type[Config],
    build: Callable[[SharedBase, RowPasses, Config, SamplingConfig], OnlineAlgorithm[Batch]],
    rates: Mapping[str, float],
) -> dict[str, float]:
    """Train on the policy's own samples, from the stage's checkpoint if there is one; save and return metrics.

    Args:
        stage: the running stage.
        models: with the roles of ``open_roles``, and those that the algorithm adds.
        section: settings.
        keys: the algorithm's config record.
        build: the algorithm's ``build``.
        rates: peak learning rate of each trained role.
    """
    config = config_of(section, OptimisationConfig)
    sampled = config_of(stage.params.sampling, SamplingConfig)
    settle(stage, models)
    budget = stage.budget("passes", section.micro_batch_tokens)
    frozen = {role: models.fingerprint(role) for role in ("reference", "reward_model")}
    passes = RowPasses(models, sampled.temperature, budget)
    algorithm = build(models, passes, config_of(section, keys), sampled)
    stage.total_steps = section.steps
    online.train(
        algorithm,
        collector(stage, models, section, algorithm, budget),
        adamw(models, rates, weight_decay=config.weight_decay, kind=stage.params.memory.optimizer),
        config,
        epochs=section.epochs,
        minibatches=section.minibatches,
        target_kl=section.target_kl,
        log=stage.log,
        budget=stage.budget("updates", config.micro_batch_tokens),
        keep=keep_snapshots(stage, models, section.snapshots),
        resume=stage.resume,
    )
    return finish(stage, models, "policy", frozen=frozen)


def collector(
    stage: Stage, models: SharedBase, section: OnPolicy, algorithm: OnlineAlgorithm[Any], budget: Budget
) -> online.Collect:
    """Return the function that samples and scores the rollouts of a step.

    Args:
        stage: receives a table of completions now and then.
        models: with the roles of ``open_roles``.
        section: batch size and seed.
        algorithm: says how many responses a prompt gets, and which to replace.
        budget: of the passes that score.
    """
    rows = read_prompts("train")
    check_sources(stage.params, rows)
    config, samples, again = config_of(section, OptimisationConfig), algorithm.samples, algorithm.again

    def collect(step: int) -> tuple[Rollouts, Metrics]:
        def record(drawn: Sequence[Sample]) -> Rollouts:
            totals = within_groups(stage.params, [s.reward.total for s in drawn], samples)
            return rollouts(drawn, totals, models.base.device)

        def draw(prompts: Sequence[int], attempt: int) -> list[Sample]:
            seed = config.seed * 100_003 + step + attempt * 1_000_000_007
            chosen = [rows[i] for i in prompts]
            return sample(models, stage.params, chosen, samples, seed=seed, budget=budget)

        used = rows_of_step(len(rows), config, step)
        drawn, resampled = draw(used, 0), 0
        for attempt in range(1, algorithm.limit + 1):
            groups = again(record(drawn)).nonzero()[:, 0].tolist() if again else []
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
        if algorithm.limit:
            metrics["resampled_groups"] = float(resampled)
        return record(drawn), metrics

    return collect
