"""Stage ``ppo``: policy, reference, reward model and critic, all adapters over one base in memory."""

from collections.abc import Mapping
from functools import partial

from tasks.stage import Stage, run


def work(stage: Stage) -> Mapping[str, float]:
    """Train the policy and a critic that starts from the reward model."""
    from torch import Tensor

    from alignflow.algorithms import ppo
    from alignflow.loops.online import OnlineAlgorithm, train
    from alignflow.optim import MasterAdamW, OptimisationConfig
    from alignflow.types import Sequences
    from tasks import online, rewarding, training

    section, temperature = stage.params.ppo, stage.params.sampling.temperature
    config = training.config_of(section, OptimisationConfig)
    keys = training.config_of(section, ppo.PPOConfig)
    models = online.open_roles(stage.params)
    models.add("critic", start=training.REWARD_MODEL, trained=True)
    models.standardize_head("critic", *rewarding.normalization())
    frozen = {role: models.fingerprint(role) for role in ("reference", "reward_model")}

    def prepare(sequences: Sequences, scores: Tensor) -> tuple[ppo.PPOBatch, dict[str, Tensor]]:
        logprobs, ref_logprobs = online.logprobs(models, sequences, temperature, section.micro_batch_tokens)
        values = online.token_rows(partial(models.values, "critic"), sequences, section.micro_batch_tokens)
        return ppo.prepare(sequences, scores, logprobs, ref_logprobs, values, keys)

    stage.total_steps = section.steps
    train(
        OnlineAlgorithm(
            collect=online.collector(stage, models, section, samples=1),
            prepare=prepare,
            steps=[
                lambda batch: ppo.policy_step(models, batch, keys, temperature=temperature),
                lambda batch: ppo.critic_step(models, batch, keys),
            ],
            count=ppo.count,
        ),
        MasterAdamW(
            [
                (models.parameters("policy"), config.learning_rate),
                (models.parameters("critic"), section.critic_learning_rate),
            ],
            config.weight_decay,
        ),
        config,
        epochs=section.epochs,
        minibatches=section.minibatches,
        log=stage.log,
        keep=stage.keep,
        resume=stage.resume,
    )
    return training.finish(stage, models, "policy", frozen=frozen)


if __name__ == "__main__":
    run(
        "ppo",
        work,
        sections=["base", "lora", "sampling", "rewards", "ppo"],
        inputs=["artifacts/base", "artifacts/sft", "artifacts/reward_model", "data/prepared"],
        outs=["artifacts/ppo"],
    )
