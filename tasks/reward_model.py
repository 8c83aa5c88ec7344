"""Stage ``reward_model``: train the Bradley-Terry scorer, test it on unseen prompts, and fix its scale."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.stage import Stage, run

if TYPE_CHECKING:
    from alignflow.models.roles import SharedBase


LEAST_SPREAD = 1e-6  # of raw scores; below it normalised scores would be rounding errors


def work(stage: Stage) -> Mapping[str, float]:
    """Train, evaluate on held-out pairs, normalise on responses of the reference."""
    import torch

    from alignflow.algorithms import reward_model
    from alignflow.loops.offline import train
    from alignflow.optim import MasterAdamW, OptimisationConfig
    from tasks import training
    from tasks.head_first import fit_head, last_states

    section = stage.params.reward_model
    config = training.config_of(section, OptimisationConfig)
    loss = training.config_of(section, reward_model.RewardModelConfig)
    models = training.open_models(stage.params)
    models.add("reference", start=training.SFT)
    models.add("reward_model", start=training.SFT, trained=True)
    models.add_head("reward_model", seed=section.seed)
    frozen = {"reference": models.fingerprint("reference")}
    pairs = reward_model.cut_rejected(
        training.encode_pairs(models.base.tokenizer, training.read_pairs("train")),
        limit=stage.params.sampling.max_response_length,
        fraction=section.cut_rejected_fraction,
        seed=section.seed,
    )

    margins = torch.tensor([pair.margin for pair in pairs], device=models.base.device)

    if stage.resume is None and section.head_steps:
        stage.say(f"fits the head alone for {section.head_steps} steps")
        states = last_states(models, "reward_model", pairs, section.micro_batch_tokens)
        alone = replace(config, steps=section.head_steps, learning_rate=section.head_learning_rate)
        fit_head(models.heads["reward_model"], states, margins, alone, loss)

    def batches(step: int) -> list[reward_model.RewardBatch]:
        return [
            reward_model.RewardBatch(batch, margins[rows])
            for rows, batch in training.pair_batches(pairs, config, step, models.base.device)
        ]

    stage.total_steps = section.steps
    train(
        batches,
        lambda batch: reward_model.step(models, batch, loss),
        reward_model.count,
        lambda batch: training.tokens_of(batch.sequences),
        MasterAdamW([(models.parameters("reward_model"), config.learning_rate)], config.weight_decay),
        config,
        log=stage.log,
        keep=stage.keep,
        resume=stage.resume,
    )
    held_out = _held_out(stage, models)
    scale = {"normalization.json": _normalization(stage, models)}
    return {**training.finish(stage, models, "reward_model", frozen=frozen, beside=scale), **held_out}


def _held_out(stage: Stage, models: "SharedBase") -> dict[str, float]:
    """Return accuracy, calibration and the pull of length on pairs of unseen prompts."""
    import torch

    from alignflow.data.collate import by_rows, collate_pairs
    from alignflow.evaluation import calibration_error
    from tasks import training

    pairs = training.encode_pairs(models.base.tokenizer, training.read_pairs("eval"))
    sequences = collate_pairs(pairs)
    budget = stage.params.reward_model.micro_batch_tokens
    scores = by_rows(lambda batch: models.scores("reward_model", batch), sequences, budget)
    chosen, rejected = scores.chunk(2)
    lengths = sequences.response_mask.sum(1).float()
    metrics = {
        "eval/accuracy": float((chosen > rejected).float().mean()),
        "eval/margin": float((chosen - rejected).mean()),
        "eval/calibration_error": calibration_error((chosen - rejected).tolist()),
        "eval/length_correlation": float(torch.corrcoef(torch.stack([scores, lengths]))[0, 1]),
    }
    stage.say(f"unseen prompts: accuracy {metrics['eval/accuracy']:.3f} on {len(pairs)} pairs")
    return metrics


def _normalization(stage: Stage, models: "SharedBase") -> dict[str, float]:
    """Return mean and deviation of the scores of the reference's own responses to training prompts."""
    import statistics

    from alignflow.data.collate import by_rows, collate
    from alignflow.data.encoding import encode_prompt
    from alignflow.types import Example
    from tasks import sampling, training

    section = stage.params.reward_model
    rows = training.read_prompts("train")[: section.normalization_prompts]
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in rows]
    responses, texts = sampling.sample(models, "reference", prompts, stage.params, seed=section.seed)
    examples = [Example(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
    raw = by_rows(
        lambda batch: models.scores("reward_model", batch), collate(examples), section.micro_batch_tokens
    ).tolist()
    mean, std = statistics.fmean(raw), statistics.stdev(raw)
    if not std > LEAST_SPREAD:
        raise NoSpread(
            f"the reward model gives all {len(raw)} responses of the reference the same score ({mean:.3g}); "
            "train it longer (reward_model.steps, reward_model.learning_rate) or look at the data"
        )
    scored = [(value - mean) / std for value in raw]
    stage.record.table("reference responses", sampling.completions([r["prompt"] for r in rows], texts, scored))
    return {"mean": mean, "std": std}


class NoSpread(ValueError):
    """A reward model that tells no two responses apart cannot be normalised."""


if __name__ == "__main__":
    run(
        "reward_model",
        work,
        sections=["base", "lora", "sampling", "reward_model"],
        inputs=["artifacts/base", "artifacts/sft", "data/prepared"],
        outs=["artifacts/reward_model"],
    )
