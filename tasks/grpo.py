"""Stage ``grpo``: no critic; the answers to one prompt are each other's baseline."""

from collections.abc import Mapping

from tasks.stage import Stage, run


def work(stage: Stage) -> Mapping[str, float]:
    """Train the policy on groups of its own answers."""
    from torch import Tensor

    from alignflow.algorithms import grpo
    from alignflow.loops.online import OnlineAlgorithm, train
    from alignflow.optim import MasterAdamW, OptimisationConfig
    from alignflow.types import Sequences
    from tasks import online, training

    section, sampling = stage.params.grpo, stage.params.sampling
    config = training.config_of(section, OptimisationConfig)
    keys = training.config_of(section, grpo.GRPOConfig)
    models = online.open_roles(stage.params)
    frozen = {role: models.fingerprint(role) for role in ("reference", "reward_model")}

    def prepare(sequences: Sequences, scores: Tensor) -> tuple[grpo.GRPOBatch, dict[str, Tensor]]:
        logprobs, ref_logprobs = online.logprobs(models, sequences, sampling.temperature, section.micro_batch_tokens)
        return grpo.prepare(sequences, scores.view(-1, section.group_size), logprobs, ref_logprobs, keys)

    stage.total_steps = section.steps
    train(
        OnlineAlgorithm(
            collect=online.collector(stage, models, section, samples=section.group_size),
            prepare=prepare,
            steps=[lambda batch: grpo.step(models, batch, keys, temperature=sampling.temperature)],
            count=lambda batch: grpo.count(batch, keys, max_response_length=sampling.max_response_length),
        ),
        MasterAdamW([(models.parameters("policy"), config.learning_rate)], config.weight_decay),
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
        "grpo",
        work,
        sections=["base", "lora", "sampling", "rewards", "grpo"],
        inputs=["artifacts/base", "artifacts/sft", "artifacts/reward_model", "data/prepared"],
        outs=["artifacts/grpo"],
    )
