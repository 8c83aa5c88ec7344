"""Stage ``ppo``: policy, reference, reward model and critic, all adapters over one base in memory."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from tasks.params.sections import Params
from tasks.running.stage import Stage, run

if TYPE_CHECKING:
    from alignflow.models.roles import SharedBase


def work(stage: Stage) -> Mapping[str, float]:
    """Train the policy and its critic."""
    from torch import Tensor

    from alignflow.algorithms import ppo
    from alignflow.loops.online import Carry, OnlineAlgorithm, train
    from alignflow.memory import Budget
    from alignflow.optim import MasterAdamW, OptimisationConfig
    from alignflow.types import Rollouts
    from tasks.training.models import config_of, finish, keep_snapshots
    from tasks.training.rollouts import both_logprobs, collector, open_roles, token_rows

    section, temperature = stage.params.ppo, stage.params.sampling.temperature
    cap = stage.params.sampling.importance_cap
    config = config_of(section, OptimisationConfig)
    keys = config_of(section, ppo.PPOConfig)
    models = open_roles(stage.params)
    add_critic(models, stage.params)
    budget = Budget(section.micro_batch_tokens, stage.announce)
    frozen = {role: models.fingerprint(role) for role in ("reference", "reward_model")}

    def prepare(rollouts: Rollouts, carry: Carry, _: bool) -> tuple[ppo.PPOBatch, dict[str, Tensor], Carry]:
        logprobs, ref_logprobs = both_logprobs(models, rollouts.sequences, temperature, budget)
        values = token_rows(partial(models.values, "critic"), rollouts.sequences, budget)
        batch, metrics, kl_coef = ppo.prepare(
            rollouts, logprobs, ref_logprobs, values, keys, kl_coef=carry["kl_coef"], importance_cap=cap
        )
        return batch, metrics, {"kl_coef": kl_coef}

    stage.total_steps = section.steps
    train(
        OnlineAlgorithm(
            collect=collector(stage, models, section, budget, samples=1),
            prepare=prepare,
            steps=[
                lambda batch: ppo.policy_step(models, batch, keys, temperature=temperature),
                lambda batch: ppo.critic_step(models, batch, keys),
            ],
            count=ppo.count,
            start={"kl_coef": keys.kl_coef},
        ),
        MasterAdamW(
            [
                (models.parameters("policy"), config.learning_rate),
                (models.parameters("critic"), section.critic_learning_rate),
            ],
            config.weight_decay,
            kind=stage.params.memory.optimizer,
        ),
        config,
        epochs=section.epochs,
        minibatches=section.minibatches,
        target_kl=section.target_kl,
        log=stage.log,
        announce=stage.announce,
        keep=keep_snapshots(stage, models, section.snapshots),
        resume=stage.resume,
    )
    return finish(stage, models, "policy", frozen=frozen)


def add_critic(models: "SharedBase", params: Params) -> None:
    """Add the critic: it starts at the reward model's score, or at 0 everywhere where rules alone give the reward."""
    import torch

    from tasks.training.models import REWARD_MODEL, SFT
    from tasks.training.rewards import normalization

    if params.rewards.reward_model:
        models.add("critic", start=REWARD_MODEL, trained=True)
        models.standardize_head("critic", *normalization(REWARD_MODEL))
    else:
        models.add("critic", start=SFT, trained=True)
        models.add_head("critic", weight=torch.zeros(1, models.base.model.config.hidden_size), bias=0.0)


if __name__ == "__main__":
    run(
        "ppo",
        work,
        sections=["base", "lora", "memory", "sampling", "rewards", "ppo"],
        inputs=["artifacts/base", "artifacts/sft", "artifacts/reward_model", "data/prepared"],
        outs=["artifacts/ppo"],
        shared=True,
    )
