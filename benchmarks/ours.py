"""Our side of the benchmarks: the loops, steps and sampler of the stages, on the benchmark's data."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignflow.algorithms import dpo as dpo_algorithm
from alignflow.algorithms import grpo as grpo_algorithm
from alignflow.algorithms import iterative_dpo
from alignflow.algorithms import ppo as ppo_algorithm
from alignflow.algorithms import reward_model as reward_algorithm
from alignflow.algorithms import sft as sft_algorithm
from alignflow.data.collate import collate, collate_pairs
from alignflow.loops import offline, online
from alignflow.loops.by_rows import RowPasses, by_rows
from alignflow.loops.order import example_batches, pair_batches
from alignflow.memory import Budget
from alignflow.models.adapters import AdapterShape
from alignflow.models.base import identify
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.optim import MasterAdamW, OptimisationConfig, adamw
from alignflow.sampling.own import generate
from alignflow.types import (
    Example,
    Metrics,
    OfflineAlgorithm,
    Pair,
    Rollouts,
    SamplingConfig,
    Sequences,
)
from benchmarks.setting import Setting, even_share, read_pairs, read_prompts
from tasks.paths import CONVERTED
from tasks.training.sampling import answering

ROOT = Path(__file__).parents[1]
START_SCALE = 0.005  # standard deviation of the start adapter's B: large enough to have an effect on every loss
Batch = TypeVar("Batch")


class Watch:
    """Measures the steps of a loop: from the end of one to the end of the next, including everything."""

    def __init__(self, each: Callable[[int], None] | None = None) -> None:
        """Start the clock.

        Args:
            each: called with the number of every finished step; its time is not counted.
        """
        self.result: dict[str, Any] = {"seconds": [], "tokens": [], "losses": [], "before_seconds": 0.0}
        self._each = each
        self._last = time.monotonic()

    def begin(self) -> None:
        """Time before the first step, which is reported separately."""
        self.result["before_seconds"] = time.monotonic() - self._last
        self._last = time.monotonic()

    def log(self, step: int, metrics: Metrics) -> None:
        """Record a step of one of our loops."""
        now = time.monotonic()
        self.result["seconds"].append(now - self._last)
        self.result["tokens"].append(metrics["tokens"])
        self.result["losses"].append(metrics["loss"])
        if self._each is not None:
            self._each(step)
        self._last = time.monotonic()


def open_models(setting: Setting) -> SharedBase:
    """Load the base model of the setting, ready for roles."""
    identity = identify(setting.model, None, converted=ROOT / CONVERTED)
    base = load_base(identity, quantization=setting.quantization, dtype=setting.dtype)
    return SharedBase(base, AdapterShape(setting.rank, setting.alpha, "all-linear"))


def write_start(setting: Setting) -> dict[str, Any]:
    """Write the adapters from which all sides start. They are random, so that equal losses mean equal work."""
    models = open_models(setting)
    models.add("policy", seed=1)
    models.add("reward_model", seed=2)
    models.add_head("reward_model", seed=3)
    generator = torch.Generator().manual_seed(setting.seed)
    with torch.no_grad():
        for role in ("policy", "reward_model"):
            for parameter in models.parameters(role, heads=False):
                if not parameter.any():  # B, which is 0 in a new adapter
                    parameter.copy_(START_SCALE * torch.randn(parameter.shape, generator=generator))
            models.save(role, Path(setting.start, role))
    return {}


def budget_of(setting: Setting) -> Budget:
    """Return the budget of a pass."""
    return Budget(setting.micro_batch_tokens, print)


def optimisation(setting: Setting, batch_size: int) -> OptimisationConfig:
    """Return the settings of the optimiser; TRL gets the same."""
    return OptimisationConfig(
        steps=setting.steps,
        batch_size=batch_size,
        learning_rate=setting.learning_rate,
        warmup_fraction=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        micro_batch_tokens=setting.micro_batch_tokens,
        seed=setting.seed,
    )


# -- stored data ---------------------------------------------------------------------------------------------------


def dpo(setting: Setting, each: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Measure DPO with the base model as the reference."""
    models = open_models(setting)
    models.add("reference")
    models.add("policy", start=Path(setting.start, "policy"), trained=True)
    pairs = read_pairs(setting, models.base.tokenizer, setting.pairs * setting.steps)
    return _dpo(models, pairs, setting, Watch(each))


def _dpo(models: SharedBase, pairs: Sequence[Pair], setting: Setting, watch: Watch) -> dict[str, Any]:
    config = optimisation(setting, setting.pairs)
    keys = dpo_algorithm.DPOConfig(beta=setting.beta, loss="sigmoid", label_smoothing=0.0, simpo_margin=0.0, nll_coef=0)

    def logps(batch: Sequences) -> Tensor:
        return masked_sum(models.logprobs("reference", batch)[0], batch.to(models.base.device).response_mask[:, 1:])

    ref_logps = by_rows(logps, collate_pairs(pairs), budget_of(setting)).to(models.base.device).view(2, -1)
    return _train(
        lambda k, budget: [
            dpo_algorithm.PairBatch(batch, torch.cat([ref_logps[0, rows], ref_logps[1, rows]]))
            for rows, batch in pair_batches(pairs, config, k, budget, models.base.device)
        ],
        dpo_algorithm.build(models, keys),
        models,
        "policy",
        config,
        watch,
    )


def reward_model(setting: Setting) -> dict[str, Any]:
    """Measure the Bradley-Terry reward model."""
    models = open_models(setting)
    models.add("reward_model", start=Path(setting.start, "reward_model"), trained=True)
    pairs = read_pairs(setting, models.base.tokenizer, setting.pairs * setting.steps)
    config = optimisation(setting, setting.pairs)
    keys = reward_algorithm.RewardModelConfig(center_coef=0.0, margin_coef=0.0)
    margins = torch.zeros(len(pairs), device=models.base.device)
    return _train(
        lambda k, budget: [
            reward_algorithm.RewardBatch(batch, margins[rows])
            for rows, batch in pair_batches(pairs, config, k, budget, models.base.device)
        ],
        reward_algorithm.build(models, keys),
        models,
        "reward_model",
        config,
        Watch(),
    )


def sft(setting: Setting) -> dict[str, Any]:
    """Supervised fine-tuning on chosen responses, with as many rows per step as a PPO update."""
    models = open_models(setting)
    models.add("policy", start=Path(setting.start, "policy"), trained=True)
    examples = sft_examples(setting, models.base.tokenizer)
    config = optimisation(setting, setting.prompts * setting.group)

    def batches(step: int, budget: int) -> list[Sequences]:
        return example_batches(examples, config, step, budget, models.base.device)

    return _train(
        batches,
        sft_algorithm.build(models),
        models,
        "policy",
        config,
        Watch(),
    )


def sft_examples(setting: Setting, tokenizer: Any) -> list[Example]:
    """Return one batch of rows as long as those of the rollouts."""
    prompts = read_prompts(setting, tokenizer, setting.prompts * setting.group)
    filler = tuple(read_pairs(setting, tokenizer, 1)[0].chosen)
    response = (filler * (setting.response // len(filler) + 1))[: setting.response]
    return [Example(prompt, response) for prompt in prompts]


def _train(
    batches: Callable[[int, int], Sequence[Batch]],
    algorithm: OfflineAlgorithm[Batch],
    models: SharedBase,
    role: str,
    config: OptimisationConfig,
    watch: Watch,
) -> dict[str, Any]:
    watch.begin()
    optimizer = _optimizer(models, (role,), config)
    budget = Budget(config.micro_batch_tokens, print)
    offline.train(batches, algorithm, optimizer, config, budget=budget, log=watch.log, keep=_keep_nothing)
    return watch.result


def _optimizer(models: SharedBase, roles: Sequence[str], config: OptimisationConfig) -> MasterAdamW:
    rates = dict.fromkeys(roles, config.learning_rate)
    return adamw(models, rates, weight_decay=config.weight_decay, kind="adamw")


def _keep_nothing(*_: object) -> None:
    """Writes no checkpoint."""


# -- rollouts ------------------------------------------------------------------------------------------------------


def sample(models: SharedBase, setting: Setting, prompts: Sequence[tuple[int, ...]], seed: int) -> list[Example]:
    """Sample as the stages do, from merged weights if they fit; all responses have the same length."""
    with answering(models, "policy", "auto") as model:
        responses = generate(
            model,
            prompts,
            eos_ids=[],
            max_response_length=setting.response,
            temperature=1.0,
            seed=seed,
            rows=max(setting.rows),
        )
    return [Example(tuple(p), r.tokens) for p, r in zip(prompts, responses, strict=True)]


def rollouts_of(examples: Sequence[Example], device: torch.device) -> Rollouts:
    """Return samples with their rewards as a record of tensors."""
    return Rollouts(
        sequences=collate(examples).to(device),
        scores=torch.tensor([even_share(e.response) for e in examples], device=device),
        scored=torch.ones(len(examples), dtype=torch.bool, device=device),
        truncated=torch.ones(len(examples), dtype=torch.bool, device=device),
    )


def collector(models: SharedBase, setting: Setting, samples: int) -> Callable[[int], tuple[Rollouts, Metrics]]:
    """Return the function that makes the rollouts of a step."""
    per_step = setting.prompts * setting.group // samples
    prompts = read_prompts(setting, models.base.tokenizer, per_step * setting.steps)

    def collect(step: int) -> tuple[Rollouts, Metrics]:
        chosen = [p for p in prompts[step * per_step : (step + 1) * per_step] for _ in range(samples)]
        return rollouts_of(sample(models, setting, chosen, seed=step), models.base.device), {}

    return collect


def grpo_keys(setting: Setting) -> grpo_algorithm.GRPOConfig:
    """Return GRPO with TRL's defaults."""
    return grpo_algorithm.GRPOConfig(
        beta=setting.kl,
        clip_range_low=0.2,
        clip_range_high=0.2,
        group_size=setting.group,
        normalization="dapo",
        std_epsilon=1e-4,
        zero_variance="keep",
        resample_limit=1,
        mask_truncated=False,
    )


def grpo(setting: Setting, each: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Measure GRPO: sampling, scoring, log-probs of policy and reference, one update."""
    models = open_models(setting)
    models.add("policy", start=Path(setting.start, "policy"), trained=True)
    models.add("reference", start=Path(setting.start, "policy"))  # the loop checks that both start with equal weights
    algorithm = grpo_algorithm.build(models, passes_of(models, setting), grpo_keys(setting), sampled(setting))
    collect = collector(models, setting, setting.group)
    return _online(algorithm, collect, models, ("policy",), setting, setting.prompts, Watch(each))


def passes_of(models: SharedBase, setting: Setting) -> RowPasses:
    """Return the forward passes of an online algorithm."""
    return RowPasses(models, 1.0, budget_of(setting))


def sampled(setting: Setting) -> SamplingConfig:
    """Return how responses are sampled."""
    return SamplingConfig(temperature=1.0, importance_cap=None, max_response_length=setting.response)


def grpo_evidence(setting: Setting) -> dict[str, Any]:
    """Compute our loss on TRL's first rollouts, with the base model as the reference, as in TRL."""
    models = open_models(setting)
    models.add("policy", start=Path(setting.start, "policy"), trained=True)
    models.add("reference")
    keys = grpo_keys(setting)
    saved = json.loads(Path(setting.rollouts).read_text())
    examples = [Example(tuple(prompt), tuple(response)) for prompt, response in saved]
    found = rollouts_of(examples, models.base.device)
    with torch.no_grad():
        mine, other = passes_of(models, setting).policy_and_reference(found.sequences)
        batch, _ = grpo_algorithm.prepare(found, mine, other, keys)
        output = grpo_algorithm.step(models, batch, keys, temperature=1.0, importance_cap=None)
        count = grpo_algorithm.count(batch, keys, max_response_length=setting.response)
        return {"loss": float(torch.where(output.mask, output.losses, 0.0).sum() / count)}


def ppo(setting: Setting) -> dict[str, Any]:
    """Measure PPO with four roles: as many responses as GRPO, one per prompt, one update."""
    models = open_models(setting)
    models.add("policy", start=Path(setting.start, "policy"), trained=True)
    models.add("reference", start=Path(setting.start, "policy"))
    models.add("reward_model", start=Path(setting.start, "reward_model"))
    models.add("critic", start=Path(setting.start, "reward_model"), trained=True)
    models.standardize_head("critic", 0.0, 1.0)
    keys = ppo_algorithm.PPOConfig(
        kl_coef=0.05,
        kl_estimator="k1",
        kl_target=None,
        kl_gain=0.1,
        reward_clip=None,
        whiten_rewards=False,
        clip_range=0.2,
        value_clip_range=0.2,
        value_coef=0.5,
        entropy_coef=0.0,
        gamma=1.0,
        gae_lambda=0.95,
    )
    unscored, budget = collector(models, setting, 1), budget_of(setting)

    def collect(step: int) -> tuple[Rollouts, Metrics]:
        found, metrics = unscored(step)
        return replace(
            found, scores=by_rows(lambda b: models.scores("reward_model", b), found.sequences, budget)
        ), metrics

    algorithm = ppo_algorithm.build(models, RowPasses(models, 1.0, budget), keys, sampled(setting))
    roles, batch_size = ("policy", "critic"), setting.prompts * setting.group
    return _online(algorithm, collect, models, roles, setting, batch_size, Watch())


def _online(
    algorithm: Any,
    collect: online.Collect,
    models: SharedBase,
    roles: Sequence[str],
    setting: Setting,
    batch_size: int,
    watch: Watch,
) -> dict[str, Any]:
    config = optimisation(setting, batch_size)
    watch.begin()
    online.train(
        algorithm,
        collect,
        _optimizer(models, roles, config),
        config,
        epochs=1,
        minibatches=1,
        target_kl=None,
        budget=budget_of(setting),
        log=watch.log,
        keep=_keep_nothing,
    )
    return watch.result


def round_of_a_shard(setting: Setting) -> dict[str, Any]:
    """Measure one round of iterative DPO on one of ``number`` shards, including model loading: a whole process."""
    began = time.monotonic()
    models = open_models(setting)
    models.add("policy", start=Path(setting.start, "policy"), trained=True)
    models.add("reference")
    loaded = time.monotonic()
    every = read_prompts(setting, models.base.tokenizer, setting.prompts)
    shard = iterative_dpo.shard_of(len(every), shard=1, of=setting.number, seed=setting.seed)
    answers = sample(models, setting, [every[i] for i in shard for _ in range(setting.group)], seed=setting.seed)
    pairs = []
    for at in range(0, len(answers), setting.group):
        group = answers[at : at + setting.group]
        chosen = iterative_dpo.choose_pair(
            [even_share(e.response) for e in group],
            [str(e.response) for e in group],
            [len(e.response) for e in group],
            min_margin=0.0,
            length_penalty=0.0,
        )
        if chosen.dropped is None:
            pairs.append(Pair(group[0].prompt, group[chosen.best].response, group[chosen.worst].response))
    steps = max(1, setting.steps // setting.number)
    _dpo(models, pairs, replace(setting, steps=steps), Watch())
    return {"seconds": time.monotonic() - began, "load_seconds": loaded - began, "pairs": len(pairs), "steps": steps}


# -- sampling alone ------------------------------------------------------------------------------------------------


def sampling(setting: Setting) -> dict[str, Any]:
    """Measure the sampler's tokens per second at several numbers of rows, and separately the merging of weights."""
    models = open_models(setting)
    models.add("policy", start=Path(setting.start, "policy"))
    result: dict[str, Any] = {}
    began = time.monotonic()
    with answering(models, "policy", "auto") as model:
        result["merge_seconds"] = time.monotonic() - began
        for rows in setting.rows:
            prompts = sampling_prompts(setting, models.base.tokenizer, rows)

            def draw(length: int, prompts: Sequence[tuple[int, ...]] = prompts, rows: int = rows) -> None:
                generate(model, prompts, eos_ids=[], max_response_length=length, temperature=1.0, seed=1, rows=rows)

            result[str(rows)] = timed_sampling(draw, rows, setting)
    return result


def sampling_prompts(setting: Setting, tokenizer: Any, rows: int) -> list[tuple[int, ...]]:
    """Return prompts as in a rollout batch: each repeated by the group size."""
    group = min(setting.group, rows)
    return [p for p in read_prompts(setting, tokenizer, rows // group) for _ in range(group)]


def timed_sampling(draw: Callable[[int], None], rows: int, setting: Setting) -> dict[str, float]:
    """Return the time of the first token including the prompt, and of all tokens, after a short warm-up."""
    draw(2)
    times = []
    for length in (1, setting.response):
        began = time.monotonic()
        draw(length)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return {
        "seconds": times[1],
        "prompt_seconds": times[0],
        "tokens_per_second": rows * setting.response / times[1],
        "step_seconds": (times[1] - times[0]) / max(1, setting.response - 1),
    }
