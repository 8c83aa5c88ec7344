"""What the training stages share: models from params, stored pairs as batches, rewards, and the last look."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from alignflow.algorithms import dpo
from alignflow.data.collate import by_rows, collate, collate_pairs, micro_batches, sequence_lengths
from alignflow.data.preferences import encode_prompt, encode_response
from alignflow.generate import Response, generate
from alignflow.loops.offline import train
from alignflow.models.adapters import AdapterShape
from alignflow.models.base import load_identity, verify
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.optim import MasterAdamW, OptimisationConfig
from alignflow.rewards import rule
from alignflow.types import Example, Pair, Sequences
from tasks.base import CONVERTED, IDENTITY
from tasks.params import Dpo, IterativeDpo, Params
from tasks.prepare import PREPARED
from tasks.stage import Stage

Config = TypeVar("Config")
SFT = Path("artifacts/sft")
REWARD_MODEL = Path("artifacts/reward_model")


def config_of(section: object, record: type[Config]) -> Config:
    """Return the core's config record filled from a params section."""
    return record(**{f.name: getattr(section, f.name) for f in fields(record)})  # type: ignore[arg-type]


def open_models(params: Params) -> SharedBase:
    """Load the base that this pipeline started from, ready for roles."""
    identity = load_identity(IDENTITY)
    verify(identity, converted=CONVERTED)
    base = load_base(identity, quantization=params.base.quantization, dtype=params.base.dtype)
    targets = params.lora.target_modules
    shape = AdapterShape(params.lora.rank, params.lora.alpha, targets if isinstance(targets, str) else tuple(targets))
    return SharedBase(base, shape)


def read_prepared(side: str) -> list[dict[str, str]]:
    """Return the prepared rows of ``train`` or ``eval``."""
    lines = (PREPARED / f"{side}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def encode_pairs(tokenizer: Any, rows: Sequence[Mapping[str, str]]) -> list[Pair]:
    """Return rows of texts as rows of token ids."""
    return [
        Pair(
            encode_prompt(tokenizer, row["prompt"]),
            encode_response(tokenizer, row["chosen"]),
            encode_response(tokenizer, row["rejected"]),
        )
        for row in rows
    ]


def rows_of_step(total: int, config: OptimisationConfig, step: int) -> list[int]:
    """Return the rows of an optimiser step: epoch after epoch, each in its own order.

    A pure function of seed and step, so that an interrupted run continues with the same data.
    """
    rows: list[int] = []
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, total)
        rows.append(_order(total, config.seed, epoch)[place])
    return rows


@lru_cache(maxsize=2)
def _order(total: int, seed: int, epoch: int) -> list[int]:
    order = list(range(total))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


def pair_batches(pairs: Sequence[Pair], config: OptimisationConfig, step: int) -> list[tuple[list[int], Sequences]]:
    """Return the micro-batches of an optimiser step, each with the indices of its pairs."""
    lengths = [2 * (len(p.prompt) + max(len(p.chosen), len(p.rejected))) for p in pairs]
    groups = micro_batches(lengths, rows_of_step(len(pairs), config, step), config.micro_batch_tokens)
    return [(rows, collate_pairs([pairs[i] for i in rows])) for rows in groups]


def train_dpo(stage: Stage, models: SharedBase, pairs: Sequence[Pair], section: Dpo | IterativeDpo) -> dict[str, float]:
    """Train the policy on pairs against the reference, both already in place; save and return metrics."""
    config = config_of(section, OptimisationConfig)
    loss = config_of(section, dpo.DPOConfig)
    frozen = {"reference": models.fingerprint("reference")}
    # a run shorter than an epoch sees only some of the pairs: the reference need not look at the others
    used = {i for step in range(config.steps) for i in rows_of_step(len(pairs), config, step)}
    pairs = [pair for i, pair in enumerate(pairs) if i in used]
    ref_logps = _reference_logps(models, pairs, config.micro_batch_tokens)

    def batches(step: int) -> list[dpo.PairBatch]:
        return [
            dpo.PairBatch(batch, torch.cat([ref_logps[0, rows], ref_logps[1, rows]]))
            for rows, batch in pair_batches(pairs, config, step)
        ]

    stage.total_steps = section.steps
    train(
        batches,
        lambda batch: dpo.step(models, batch, loss),
        dpo.count,
        lambda batch: tokens_of(batch.sequences),
        MasterAdamW([(models.parameters("policy"), config.learning_rate)], config.weight_decay),
        config,
        log=stage.log,
        keep=stage.keep,
        resume=stage.resume,
    )
    return finish(stage, models, "policy", frozen=frozen)


def _reference_logps(models: SharedBase, pairs: Sequence[Pair], budget: int) -> torch.Tensor:
    """Return the reference's summed response log-probs, computed once for all steps. (2, pairs)"""
    sequences = collate_pairs(pairs)

    def logps(batch: Sequences) -> torch.Tensor:
        return masked_sum(models.logprobs("reference", batch)[0], batch.response_mask[:, 1:].to(models.base.device))

    return by_rows(logps, sequences, budget).to(models.base.device).view(2, len(pairs))


def tokens_of(batch: Sequences) -> int:
    """Return the real tokens of a batch."""
    return sum(sequence_lengths(batch))


def sample(
    models: SharedBase, role: str, prompts: Sequence[tuple[int, ...]], params: Params, *, seed: int
) -> tuple[list[Response], list[str]]:
    """Sample one response to each prompt as a role; return tokens and texts."""
    with models.merged(role) as model:
        responses = generate(
            model,
            prompts,
            eos_ids=eos_ids(models),
            max_response_length=params.sampling.max_response_length,
            temperature=params.sampling.temperature,
            seed=seed,
            rows=params.sampling.rows,
        )
    return responses, decode(models, responses)


def eos_ids(models: SharedBase) -> list[int]:
    """Return every token that ends a response: the tokenizer's, and those of the model's generation settings."""
    configured = models.base.model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return sorted({models.base.tokenizer.eos_token_id, *(i for i in more if i is not None)})


def decode(models: SharedBase, responses: Sequence[Response]) -> list[str]:
    """Return the texts of responses, without special tokens."""
    texts: list[str] = models.base.tokenizer.batch_decode([list(r.tokens) for r in responses], skip_special_tokens=True)
    return [text.strip() for text in texts]


def normalization() -> tuple[float, float]:
    """Return mean and deviation of the reward model's scores on responses of the reference."""
    content = json.loads((REWARD_MODEL / "normalization.json").read_text())
    return content["mean"], content["std"]


def learned_scores(models: SharedBase, examples: Sequence[Example], budget: int) -> list[float]:
    """Return the reward model's normalised score of each example."""
    mean, std = normalization()
    raw = by_rows(lambda batch: models.scores("reward_model", batch), collate(examples), budget)
    return [(value - mean) / std for value in raw.tolist()]


def reward(
    models: SharedBase,
    params: Params,
    prompts: Sequence[str],
    examples: Sequence[Example],
    responses: Sequence[Response],
    texts: Sequence[str],
    *,
    budget: int,
) -> list[float]:
    """Return what PPO, GRPO and iterative DPO maximise: the weighted sum of sources, less the missing end.

    Raises:
        ValueError: a source gives a number that is not finite.
    """
    weights = params.rewards
    total = [0.0] * len(examples)
    if weights.reward_model:
        total = [weights.reward_model * s for s in learned_scores(models, examples, budget)]
    for name, weight in weights.rules.items():
        function = rule(name)
        total = [t + weight * function(p, text) for t, p, text in zip(total, prompts, texts, strict=True)]
    total = [t - weights.missing_eos_penalty * r.truncated for t, r in zip(total, responses, strict=True)]
    for value, prompt in zip(total, prompts, strict=True):
        if not math.isfinite(value):
            raise RewardError(f"the reward of a response to {prompt!r} is {value}; look at the rules in params.yaml")
    return total


class RewardError(ValueError):
    """A reward is not a finite number."""


def completions(
    prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float], most: int = 16
) -> list[dict[str, object]]:
    """Return the first few samples as rows of a table."""
    rows = zip(prompts[:most], texts[:most], scores[:most], strict=True)
    return [{"prompt": p, "response": t, "reward": round(s, 3)} for p, t, s in rows]


def finish(
    stage: Stage,
    models: SharedBase,
    role: str,
    *,
    frozen: Mapping[str, str],
    beside: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Save the trained role, check that frozen roles are as they were, write the curve, track the adapter.

    Args:
        stage: the running stage.
        models: all roles.
        role: the trained one.
        frozen: fingerprints of the frozen roles, taken before training.
        beside: more files for the adapter's folder: JSON content by name.

    Raises:
        ReferenceChanged: a frozen role has other weights than before.
    """
    for name, before in frozen.items():
        if models.fingerprint(name) != before:
            raise ReferenceChanged(f"the weights of {name} changed during training; nothing was saved")
    folder = Path("artifacts") / stage.name.replace("@", "/")
    models.save(role, folder)
    for name, content in (beside or {}).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    stage.write_curve()
    stage.record.adapter(folder, name=f"alignflow-{stage.name.partition('@')[0]}")
    return stage.training_metrics()


class ReferenceChanged(ValueError):
    """A frozen model was trained: a defect, never a setting."""
