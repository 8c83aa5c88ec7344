"""One run of reward modelling on pairs, as the stages ``reward_model`` and ``judge_model`` share it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from alignflow.algorithms import reward_model
from alignflow.data.collate import collate, collate_pairs
from alignflow.data.encoding import encode_prompt
from alignflow.evaluation import reliability
from alignflow.loops.by_rows import by_rows
from alignflow.loops.head import fit_head, last_states
from alignflow.loops.order import pair_batches
from alignflow.models.adapters import AdapterShape
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig
from alignflow.types import Example
from tasks.data.prepared import encode_pairs, read_prepared, read_prompts, whole_answers
from tasks.params.sections import RewardModel
from tasks.paths import SFT
from tasks.running.stage import Stage
from tasks.training import sampling
from tasks.training.ends import ended_as_in_data
from tasks.training.models import config_of, finish, open_models
from tasks.training.offline import train_offline
from tasks.training.sampling import settle

ROLE = "reward_model"  # whichever stage trains it: one process holds one
LEAST_SPREAD = 1e-6  # of raw scores; below it normalised scores would be rounding errors


def train_reward_model(
    stage: Stage,
    section: RewardModel,
    side: str,
    *,
    start: Path | None = SFT,
    shape: AdapterShape | None = None,
) -> Mapping[str, float]:
    """Train the Bradley-Terry scorer, report on held-out pairs, normalise on responses of the reference.

    Without pairs an untrained scorer is written, which gives 0 to everything: rewards by rules alone need no other.

    Args:
        stage: the running stage.
        section: settings.
        side: of the prepared data to learn from.
        start: adapter folder to start from; None: a fresh adapter on the base model.
        shape: of its adapter; None: that of the policies.
    """
    models = open_models(stage.params)
    models.add("reference", start=SFT)
    models.add(ROLE, start=start, trained=True, seed=section.seed, shape=shape)
    rows = _pairs(side)
    if not rows:
        return _untrained(stage, models, side)
    models.add_head(ROLE, seed=section.seed)
    frozen = {"reference": models.fingerprint("reference")}
    _train(stage, models, section, rows)
    settle(stage, models)
    report = stage.once("report", lambda: _held_out(stage, models, section))
    scale = stage.once("normalization", lambda: _normalization(stage, models, section))
    beside = {"normalization.json": scale, "report.json": report}
    metrics = finish(stage, models, ROLE, frozen=frozen, beside=beside)
    return {**metrics, **{f"validation/{key}": report[key] for key in FIGURES if report.get(key) is not None}}


def _pairs(side: str) -> list[dict[str, Any]]:
    """Return the prepared rows that have two whole responses; there may be none."""
    return [row for row in whole_answers(read_prepared(side)) if None not in (row["chosen"], row["rejected"])]


FIGURES = ("accuracy", "margin", "calibration_error", "length_correlation", "shorter_wins")


def _train(stage: Stage, models: SharedBase, section: RewardModel, rows: Sequence[Mapping[str, Any]]) -> None:
    config = config_of(section, OptimisationConfig)
    loss = config_of(section, reward_model.RewardModelConfig)
    pairs = reward_model.cut_rejected(
        encode_pairs(models.base.tokenizer, rows),
        limit=stage.params.sampling.max_response_length if section.cut_at == "limit" else None,
        fraction=section.cut_rejected_fraction,
        seed=section.seed,
    )
    margins = torch.tensor([pair.margin for pair in pairs], device=models.base.device)
    head = models.heads[ROLE]

    def head_first() -> dict[str, torch.Tensor]:
        stage.say(f"fits the head alone for {section.head_steps} steps")
        states = last_states(models, ROLE, pairs, stage.budget("passes", section.micro_batch_tokens))
        alone = replace(config, steps=section.head_steps, learning_rate=section.head_learning_rate)
        fit_head(head, states, margins, alone, loss)
        return {name: tensor.clone() for name, tensor in head.state_dict().items()}

    if section.head_steps:
        head.load_state_dict(stage.once("head", head_first))

    def batches(step: int, budget: int) -> list[reward_model.RewardBatch]:
        return [
            reward_model.RewardBatch(batch, margins[rows])
            for rows, batch in pair_batches(pairs, config, step, budget, models.base.device)
        ]

    train_offline(stage, models, ROLE, reward_model.build(models, loss), batches, config)


def _untrained(stage: Stage, models: SharedBase, side: str) -> Mapping[str, float]:
    """Write the adapter that training would start from, with a head of zeros."""
    stage.say(f"data/prepared/{side}.jsonl has no pairs of a chosen and a rejected response: stays untrained")
    models.add_head(ROLE, weight=torch.zeros(1, models.base.model.config.hidden_size))
    scale = {"mean": 0.0, "std": 1.0, "trained": False}
    return finish(
        stage, models, ROLE, frozen={}, beside={"normalization.json": scale, "report.json": _report([], [], [])}
    )


def _held_out(stage: Stage, models: SharedBase, section: RewardModel) -> dict[str, Any]:
    """Return the report on pairs of unseen prompts."""
    rows = _pairs("validation")
    if not rows:
        stage.say("no pairs of unseen prompts: accuracy unknown")
        return _report([], [], [])
    pairs = encode_pairs(models.base.tokenizer, rows)
    sequences = collate_pairs(pairs)
    budget = stage.budget("passes", section.micro_batch_tokens)
    scores = by_rows(lambda batch: models.scores(ROLE, batch), sequences, budget)
    report = _report(scores.tolist(), [len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs])
    stage.say(
        f"unseen prompts: accuracy {report['accuracy']:.3f} ({report['low']:.3f} to {report['high']:.3f}) on "
        f"{len(pairs)} pairs"
    )
    return report


def _report(scores: Sequence[float], chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, Any]:
    """Return the figures of a scorer on pairs; None where there is no pair to know them from.

    Args:
        scores: of all chosen responses, then of all rejected ones.
        chosen: lengths of the chosen responses, tokens.
        rejected: of the rejected ones.
    """
    pairs = len(chosen)
    margins = [a - b for a, b in zip(scores[:pairs], scores[pairs:], strict=True)]
    differences = [a - b for a, b in zip(chosen, rejected, strict=True)]
    accuracy = reliability.accuracy(margins) if pairs else None
    low, high = reliability.wilson(sum(margin > 0 for margin in margins), pairs) if pairs else (None, None)
    curve = reliability.calibration_curve(margins)
    sizes = [abs(margin) for margin in margins]
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "pairs": pairs,
        "margin": statistics.fmean(margins) if pairs else None,
        "margins": margins,
        "by_margin": [asdict(bucket) for bucket in reliability.buckets(sizes, margins)] if pairs else [],
        "by_length_difference": [asdict(b) for b in reliability.buckets(differences, margins)] if pairs else [],
        "calibration": [asdict(point) for point in curve],
        "calibration_error": reliability.calibration_error(curve) if pairs else None,
        "length_correlation": reliability.correlation(scores, [*chosen, *rejected]) if pairs else None,
        "shorter_wins": reliability.shorter_wins(chosen, rejected) if pairs else None,
    }


def _normalization(stage: Stage, models: SharedBase, section: RewardModel) -> dict[str, object]:
    """Return mean and deviation of the scores of the reference's own responses to training prompts."""
    rows = read_prompts("train")[: section.normalization_prompts]
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in rows]
    responses, texts = sampling.sample(models, "reference", prompts, stage.params, seed=section.seed)
    examples = [Example(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
    examples = ended_as_in_data(models, examples)
    budget = stage.budget("passes", section.micro_batch_tokens)
    raw = by_rows(lambda batch: models.scores(ROLE, batch), collate(examples), budget).tolist()
    mean, std = statistics.fmean(raw), statistics.stdev(raw)
    if not std > LEAST_SPREAD:
        raise NoSpread(
            f"the reward model gives all {len(raw)} responses of the reference the same score ({mean:.3g}); "
            f"train it longer ({stage.name}.steps, {stage.name}.learning_rate) or look at the data"
        )
    scored = [(value - mean) / std for value in raw]
    stage.record.table("reference responses", sampling.completions([r["prompt"] for r in rows], texts, scored))
    return {"mean": mean, "std": std, "trained": True}


class NoSpread(ValueError):
    """A reward model that tells no two responses apart cannot be normalised."""
