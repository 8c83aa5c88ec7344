"""Stage ``grpo``: no critic; the answers to one prompt are each other's baseline."""

from collections.abc import Mapping

from tasks.running.stage import Stage, run


def work(stage: Stage) -> Mapping[str, float]:
    """Train the policy on groups of its own answers."""
    from torch import Tensor

    from alignflow.algorithms import grpo
    from alignflow.loops.online import Carry, OnlineAlgorithm, train
    from alignflow.memory import Budget
    from alignflow.optim import MasterAdamW, OptimisationConfig
    from alignflow.types import Rollouts
    from tasks.training.models import config_of, finish, keep_snapshots
    from tasks.training.rollouts import both_logprobs, collector, open_roles
    from tasks.training.rollouts import logprobs as role_logprobs

    section, sampling = stage.params.grpo, stage.params.sampling
    temperature, cap = sampling.temperature, sampling.importance_cap
    config = config_of(section, OptimisationConfig)
    keys = config_of(section, grpo.GRPOConfig)
    models = open_roles(stage.params)
    budget = Budget(section.micro_batch_tokens, stage.announce)
    frozen = {role: models.fingerprint(role) for role in ("reference", "reward_model")}

    def prepare(rollouts: Rollouts, carry: Carry, both: bool) -> tuple[grpo.GRPOBatch, dict[str, Tensor], Carry]:
        sequences = rollouts.sequences
        if both:
            logprobs, ref_logprobs = both_logprobs(models, sequences, temperature, budget)
            return (*grpo.prepare(rollouts, logprobs, ref_logprobs, keys), carry)
        ref_logprobs = role_logprobs(models, "reference", sequences, temperature, budget)
        return (*grpo.prepare(rollouts, None, ref_logprobs, keys), carry)

    stage.total_steps = section.steps
    train(
        OnlineAlgorithm(
            collect=collector(
                stage,
                models,
                section,
                budget,
                samples=section.group_size,
                again=lambda rollouts: grpo.zero_variance(rollouts, keys),
                limit=section.resample_limit if section.zero_variance == "resample" else 0,
            ),
            prepare=prepare,
            steps=[lambda batch: grpo.step(models, batch, keys, temperature=temperature, importance_cap=cap)],
            count=lambda batch: grpo.count(batch, keys, max_response_length=sampling.max_response_length),
            start={},
        ),
        MasterAdamW(
            [(models.parameters("policy"), config.learning_rate)],
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


if __name__ == "__main__":
    run(
        "grpo",
        work,
        sections=["base", "lora", "memory", "sampling", "rewards", "grpo"],
        inputs=["artifacts/base", "artifacts/sft", "artifacts/reward_model", "data/prepared"],
        outs=["artifacts/grpo"],
        shared=True,
    )
