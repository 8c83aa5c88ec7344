"""The sections of ``params.yaml``: one pydantic model each, no default for any value."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from alignflow.data.formats import FORMS
from alignflow.data.gate import REASONS
from alignflow.rewards import numbers_of, rule_file, rule_names
from tasks.params.choice import check_choice
from tasks.params.names import suggest
from tasks.params.rounds import check_rounds
from tasks.paths import RULES

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A section of ``params.yaml``: frozen, complete, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Base(Section):
    """The model that everything starts from."""

    model: Annotated[str, Field(min_length=1)]
    """A Hub id, a folder, or ``package:MODULE`` for a GGUF file inside an installed Python package."""
    revision: str | None
    """Hub ids only: branch, tag or commit."""
    chat_template: Annotated[str, Field(min_length=1)] | None
    """A name in alignflow/chat_templates or a .jinja file; null takes the model's own."""
    quantization: Literal["nf4", "none"]
    dtype: Literal["bfloat16", "float32"]
    """Of activations, adapters and unquantised weights."""


class Lora(Section):
    """Shape of every adapter (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Count
    alpha: Positive
    target_modules: Literal["all-linear"] | list[str]


class Memory(Section):
    """What saves memory while training."""

    gradient_checkpointing: bool
    """Keeps the inputs of the decoder layers alone and computes the rest again for the gradient; changes memory and
    speed only. Usual: false; true where a single pair of full length does not fit."""
    share_base: bool
    """Lets several processes of one machine (``ALIGNFLOW_PROCESSES``) hold the frozen base once: on CPUs in memory that
    all map; on GPUs there as well, from where a linear layer comes over each time it computes. Loading still takes the
    whole base in each. The plain layers of ``sampling.merged`` remain each process's own. Changes memory and speed
    only; one process ignores it. Usual: false; true where bases fill the memory."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
    """How AdamW keeps its moments: in float32, or in 8 bits for tensors from 4,096 numbers on, which changes results a
    little. ``paged_`` lets those of large tensors leave a full GPU; on a CPU it changes nothing."""


class DataSource(Section):
    """One of several sources of data."""

    path: Annotated[str, Field(min_length=1)]
    """A file or folder below data.path, or ``owner/name`` of the Hugging Face Hub with a revision."""
    subset: str | None
    """Hub only: the configuration, where a data set has several."""
    revision: str | None
    """Hub only: a commit, so that the same data is read next year."""
    split: str | None
    """Of the Hub or a folder, where there are several."""
    weight: Positive
    """The source of the greatest weight is read whole; another's share of its prompts is its weight over that one."""


class Data(Section):
    """The preferences, how they are split and how much of them may be unusable."""

    path: Annotated[str, Field(min_length=1)]
    """A file, or a folder of files; with sources, the folder that their files lie in. DVC watches it."""
    sources: list[DataSource]
    """Several sources that are mixed by weight; empty reads all of data.path."""
    format: str
    """``auto`` or a name in alignflow/data/formats.py."""
    pairs: Literal["all", "best_worst"]
    """Of scored responses: every pair that does not tie, or the best with the worst alone."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the distinct prompts kept for evaluation."""
    judge_fraction: Fraction
    """Share of the other prompts that only the second reward model learns from; 0 leaves it untrained."""
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """Similarity (Jaccard, of runs of five characters) from which a training prompt counts as one of the evaluation
    side and is dropped. Usual: 0.7 to 0.9; 1 drops equal words alone."""
    max_prompt_length: Count
    """Tokens, chat template included; longer rows are dropped and counted."""
    max_response_length: Count
    """Tokens, end-of-sequence included; longer rows are dropped and counted."""
    max_dropped_fraction: Annotated[float, Field(ge=0, le=1)]
    """Above this share of dropped rows the stage stops."""
    max_fraction: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """The same for single reasons, by the names in alignflow/data/gate.py."""
    workers: Count
    """Processes that measure the rows; changes speed only."""
    seed: Seed

    @field_validator("sources", mode="before")
    @classmethod
    def _what_is_not_named_is_null(cls, sources: Any) -> Any:
        if not isinstance(sources, list):
            return sources
        blank = {"subset": None, "revision": None, "split": None}
        return [{**blank, **source} if isinstance(source, dict) else source for source in sources]

    @field_validator("format", mode="after")
    @classmethod
    def _format_is_known(cls, name: str) -> str:
        if name not in ("auto", *FORMS):
            raise ValueError(f"no format {name!r}{suggest(name, FORMS)}; known: auto, {', '.join(FORMS)}")
        return name

    @field_validator("max_fraction", mode="after")
    @classmethod
    def _reasons_are_known(cls, fractions: dict[str, float]) -> dict[str, float]:
        for name in fractions:
            if name not in REASONS:
                raise ValueError(f"no reason {name!r}{suggest(name, REASONS)}; known: {', '.join(REASONS)}")
        return fractions

    @model_validator(mode="after")
    def _files_are_watched(self) -> Self:
        for source in self.sources:
            if source.revision is None and not Path(source.path).is_relative_to(self.path):
                raise ValueError(
                    f"sources: {source.path} does not lie in data.path ({self.path}), which is all that DVC watches; "
                    "move it there, or give a revision if it is a data set of the Hub"
                )
        return self


class Sampling(Section):
    """How responses are sampled while training."""

    max_response_length: Annotated[int, Field(ge=2)]
    temperature: Positive
    rows: Count
    """Responses sampled at once; changes memory and speed only."""
    importance_cap: Positive | None
    """PPO and GRPO: the policy term of a token counts by min(π_old / π_sampler, this), which corrects for a sampler
    that rounds otherwise than training does; null counts all by 1. Usual: 2 (Yao et al. 2025)."""
    merged: Literal["auto"] | bool
    """Sample through plain layers, adapter added and dequantised: several times faster, for 2 bytes a weight in
    bfloat16. ``auto`` does where they take up to half of the free memory, and says so where they do not. The sums are
    rounded to base.dtype, so that the samples of true and false differ as those of two roundings do."""
    engine: Literal["own", "vllm"]
    """What samples: alignflow/sampling/own.py, or vLLM (`pip install 'alignflow[vllm]'`) on one CUDA device, which
    needs ``importance_cap`` and leaves ``merged`` aside."""
    vllm_memory_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the device's memory for vLLM's copy of the base and its cache, beside the models that train; changes
    speed only."""
    vllm_max_length: Annotated[int, Field(ge=2)]
    """Most tokens of a prompt with its response under vLLM, up to what the base takes; its cache must hold one such."""

    @model_validator(mode="after")
    def _another_engine_is_corrected_for(self) -> Self:
        if self.engine == "vllm" and self.importance_cap is None:
            raise ValueError(
                "importance_cap must be a number, e.g. 2, with engine: vllm, whose log-probs differ from training's"
            )
        return self


class Rewards(Section):
    """What the on-policy methods maximise: a weighted sum of sources."""

    reward_model: NonNegative
    """Weight of the learned score."""
    rules: dict[str, dict[str, float]]
    """By name of a rule, of alignflow/rules or rewards: its ``weight`` and its own numbers. A bare number: weight."""
    missing_eos_penalty: NonNegative
    """Subtracted from the reward of a response that was cut off."""

    @field_validator("rules", mode="before")
    @classmethod
    def _bare_number_is_a_weight(cls, rules: Any) -> Any:
        if not isinstance(rules, dict):
            return rules
        return {name: keys if isinstance(keys, dict) else {"weight": keys} for name, keys in rules.items()}

    @field_validator("rules", mode="after")
    @classmethod
    def _rules_have_their_numbers(
        cls, rules: dict[str, dict[str, float]], info: ValidationInfo
    ) -> dict[str, dict[str, float]]:
        for name, keys in rules.items():
            wanted = ["weight", *_numbers_of(name, info)]
            if sorted(keys) != sorted(wanted):
                raise ValueError(f"{name} takes {', '.join(wanted)}, not {', '.join(keys) or 'nothing'}")
        return rules

    @model_validator(mode="after")
    def _something_to_maximise(self) -> Self:
        if not self.reward_model and not any(rule["weight"] for rule in self.rules.values()):
            raise ValueError("no source has a weight; set rewards.reward_model or a rule above 0")
        return self


class Optimisation(Section):
    """Keys shared by every stage that trains."""

    steps: Annotated[int, Field(ge=0)]
    """Optimiser steps; for PPO and GRPO rollout batches."""
    batch_size: Count
    """Examples, pairs or prompts a step."""
    learning_rate: Positive
    """Peak of the schedule: linear warm-up, then cosine to a tenth. Usual with LoRA: 1e-5 to 5e-4."""
    warmup_fraction: Fraction
    weight_decay: NonNegative
    max_grad_norm: Positive
    micro_batch_tokens: Annotated[int, Field(ge=16)]
    """Tokens that a forward pass computes at most, shared prompts once; halved when memory runs out. Changes memory and
    speed, not the gradient."""
    seed: Seed


class Sft(Optimisation):
    """Supervised fine-tuning on the chosen responses."""

    enabled: bool


class RewardModel(Optimisation):
    """Bradley-Terry reward model."""

    head_steps: Annotated[int, Field(ge=0)]
    """Optimiser steps of the head alone, on states of the start adapter, before ``steps`` train both. With some hundred
    pairs take ``steps: 0`` and three epochs here; 0 starts from a random head."""
    head_learning_rate: Positive
    """Peak rate of the head alone; usual: 3e-3 to 3e-2."""
    center_coef: NonNegative
    margin_coef: NonNegative
    """Of the rows' own ``margin`` inside the loss; without effect on rows that have none."""
    cut_rejected_fraction: Annotated[float, Field(ge=0, le=1)]
    """Share of the long rejected responses that training cuts at sampling.max_response_length, as samples are."""
    normalization_prompts: Annotated[int, Field(ge=2)]
    """Responses of the reference whose scores get mean 0 and deviation 1."""


class DpoLoss(Section):
    """Keys of the DPO loss."""

    beta: Positive
    """Strength of the pull to the reference. Usual: 0.01 to 0.5."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "simpo"]
    """``simpo`` takes no reference and a larger beta: usual 2 to 10."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    """Probability that a label is wrong; with ``sigmoid`` it makes cDPO, with ``robust`` the unbiased loss."""
    simpo_margin: NonNegative
    """γ of ``simpo``, in units of its h. Usual: 0.3 to 1.6."""
    nll_coef: NonNegative
    """Of the chosen response's negative log-likelihood per token, added to any loss. Usual: 0 or 1."""

    @model_validator(mode="after")
    def _margin_belongs_to_simpo(self) -> Self:
        if self.simpo_margin and self.loss != "simpo":
            raise ValueError(f"simpo_margin: {self.simpo_margin} has no effect with loss: {self.loss}; set it to 0")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("loss: robust needs label_smoothing above 0; without wrong labels it is sigmoid")
        return self


class Dpo(DpoLoss, Optimisation):
    """Direct preference optimisation."""

    snapshots: Natural
    """Policies kept at equal distances along the training, for the trajectory of the evaluation."""


class Round(Section):
    """One round of iterative DPO: where it starts and which shard it samples from."""

    previous: str
    shard: Count
    of: Count


class IterativeDpo(DpoLoss, Optimisation):
    """Iterative DPO over shards of the training prompts."""

    shards: Count
    prompts_per_shard: Count
    samples_per_prompt: Annotated[int, Field(ge=2)]
    min_margin: NonNegative
    length_penalty: NonNegative
    """Reward units a token, subtracted from each answer's reward before best and worst are chosen."""
    reference: Literal["previous", "initial"]
    rounds: dict[str, Round]
    last: str

    @model_validator(mode="after")
    def _rounds_follow_shards(self) -> Self:
        if self.rounds:  # without them iterative DPO is not chosen
            check_rounds(self.shards, {name: r.model_dump() for name, r in self.rounds.items()}, self.last)
        return self


class OnPolicy(Optimisation):
    """Keys shared by PPO and GRPO."""

    epochs: Count
    """Passes over each rollout batch."""
    minibatches: Count
    """Optimiser steps a pass."""
    target_kl: Positive | None
    """Leaves a rollout batch when the policy is further than this from the one that sampled it, nats a token.
    Usual: null or 0.01 to 0.1."""
    snapshots: Natural
    """Policies kept at equal distances along the training, for the trajectory of the evaluation."""


class Ppo(OnPolicy):
    """Proximal policy optimisation with a critic."""

    critic_learning_rate: Positive
    kl_coef: NonNegative
    """Of the per-token KL penalty in the reward."""
    kl_estimator: Literal["k1", "k3"]
    """Of the penalty: ``k1`` is unbiased and of either sign, ``k3`` never negative."""
    kl_target: Positive | None
    """Nats a response; moves kl_coef after every rollout batch to hold it. null keeps kl_coef fixed."""
    kl_gain: Positive
    """How fast kl_coef follows; Ziegler et al. 2019 take 0.1."""
    reward_clip: Positive | None
    """Scores are cut to ± this, missing-end penalty included; null cuts none."""
    whiten_rewards: bool
    """Scales the token rewards of a rollout batch to deviation 1 around their mean."""
    clip_range: Annotated[float, Field(gt=0, lt=1)]
    value_clip_range: Positive | None
    """How far a value may move from the sampling one before its loss stops falling; null clips none."""
    value_coef: Positive
    entropy_coef: NonNegative
    """Of the entropy bonus. Usual: 0 or 1e-4 to 1e-2."""
    gamma: Annotated[float, Field(gt=0, le=1)]
    gae_lambda: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.minibatches > self.batch_size:
            raise ValueError(f"minibatches: {self.minibatches} exceeds batch_size: {self.batch_size}")
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError("kl_target: a coefficient of 0 stays 0; set kl_coef above 0")
        return self


class Grouped(OnPolicy):
    """Keys shared by the methods whose responses to one prompt are each other's baseline."""

    group_size: Annotated[int, Field(ge=2)]
    """Responses a prompt."""

    @model_validator(mode="after")
    def _minibatches_fit(self) -> Self:
        if self.minibatches > self.batch_size * self.group_size:
            raise ValueError(f"minibatches: {self.minibatches} exceeds batch_size × group_size")
        return self


class Grpo(Grouped):
    """Group-relative policy optimisation."""

    beta: NonNegative
    clip_range_low: Annotated[float, Field(gt=0, lt=1)]
    clip_range_high: Positive
    """Above clip_range_low it lets unlikely tokens grow ("clip-higher"; DAPO takes 0.2 and 0.28)."""
    normalization: Literal["grpo", "dr_grpo", "dapo"]
    std_epsilon: Positive
    """Added to a group's deviation; groups below it count as of zero variance."""
    zero_variance: Literal["keep", "drop", "resample"]
    """Groups whose rewards are alike: kept (the KL alone moves them), dropped from loss and denominator, or sampled
    again from other prompts, then dropped."""
    resample_limit: Count
    """How often at most."""
    mask_truncated: bool
    """Responses that were cut off count for nothing in the loss."""


class Rloo(Grouped):
    """REINFORCE with a leave-one-out baseline."""

    kl_coef: NonNegative
    """Of the KL penalty in the reward. Usual: 0.03 to 0.1."""
    kl_estimator: Literal["k1", "k3"]
    """Of the penalty: ``k1`` is unbiased and of either sign, ``k3`` never negative."""
    clip_range: Annotated[float, Field(gt=0, lt=1)]
    level: Literal["sequence", "token"]
    """What an action is: the whole response, as in the paper, or each token."""
    mask_truncated: bool
    """Responses that were cut off count for nothing in the loss."""


class Kto(Optimisation):
    """Kahneman-Tversky optimisation on single responses: each chosen one is desirable, each rejected one is not."""

    beta: Positive
    """Strength of the pull to the reference. Usual: 0.01 to 0.5."""
    desirable_weight: Positive
    """λ_D, of responses with a thumb up. Where one kind is rarer, raise its weight until weight times number of one
    kind is about that of the other."""
    undesirable_weight: Positive
    """λ_U, of responses with a thumb down."""
    batch_size: Annotated[int, Field(ge=2)]
    """Responses a step, of both kinds together; the reference point pairs each prompt with another row's response."""
    snapshots: Natural
    """Policies kept at equal distances along the training, for the trajectory of the evaluation."""


class Evaluate(Section):
    """Evaluation of one policy on held-out prompts."""

    prompts: Annotated[int, Field(ge=2)]
    trajectory_prompts: Count
    """The first of these prompts, which the snapshots of a policy answer, too."""
    samples_per_prompt: Count
    """Answers to each prompt; each meets each of another policy's. More of them narrow the intervals, as do prompts."""
    max_response_length: Annotated[int, Field(ge=2)]
    temperature: NonNegative
    """0 is greedy."""
    judges: list[str]
    """Names of rules that judge but are never trained on, beside the second reward model; they take no numbers."""
    language_probability: Fraction
    """A text's language counts as known from this probability on. Usual: 0.8 to 0.95."""
    capability_path: Annotated[str, Field(min_length=1)]
    """JSONL file of multiple-choice questions: ``question``, ``choices`` and the index of the right one, ``answer``."""
    capability_texts: Count
    """Held-out chosen responses whose perplexity is measured."""
    seed: Seed

    @field_validator("judges", mode="after")
    @classmethod
    def _judges_take_no_numbers(cls, judges: list[str], info: ValidationInfo) -> list[str]:
        for judge in judges:
            if numbers := _numbers_of(judge, info):
                raise ValueError(f"{judge} takes numbers ({', '.join(numbers)}); take another rule")
        return judges


class LlmJudge(Section):
    """A language model behind an OpenAI-compatible endpoint that compares each policy with the reference."""

    url: Annotated[str, Field(pattern="^https?://")] | None
    """Up to and without ``/chat/completions``, e.g. http://localhost:8000/v1; null judges nothing."""
    model: str | None
    prompts: Count
    """The first prompts of the evaluation, two questions each a policy."""
    temperature: NonNegative
    max_tokens: Count
    """Of a verdict; models that think first need more."""
    parallel: Count
    """Questions under way at once."""
    retries: Natural
    """Of a question, after a failed connection or a server that is busy or broken."""
    retry_seconds: NonNegative
    """Before the first retry; doubled for each further one."""
    timeout_seconds: Positive

    @model_validator(mode="after")
    def _a_url_has_a_model(self) -> Self:
        if self.url is not None and not self.model:
            raise ValueError("url needs a model: the name under which the endpoint serves it")
        return self


class Compare(Section):
    """Statistics of the comparison."""

    bootstrap_samples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    length_ridge: Positive
    """Of the length-controlled win rate: keeps its two coefficients finite, as strong as about four times as many
    prompts. Usual: 0.01 to 1."""
    kl_levels: Annotated[int, Field(ge=1, le=10)]
    """At how many levels of KL to the reference algorithms are compared."""
    seed: Seed


class Params(Section):
    """The whole of ``params.yaml``."""

    policies: dict[str, str]
    """What is trained, evaluated and compared, with the folder that its stage makes; base and reference always are."""
    trained: dict[str, list[str]]
    """Follows from policies: one item for each stage that is to train a policy."""
    base: Base
    lora: Lora
    memory: Memory
    data: Data
    sampling: Sampling
    rewards: Rewards
    sft: Sft
    reward_model: RewardModel
    judge_model: RewardModel
    dpo: Dpo
    iterative_dpo: IterativeDpo
    ppo: Ppo
    grpo: Grpo
    rloo: Rloo
    kto: Kto
    evaluate: Evaluate
    llm_judge: LlmJudge
    compare: Compare

    @model_validator(mode="after")
    def _everything_follows_from_the_policies(self) -> Self:
        check_choice(self.policies, self.trained, self.iterative_dpo.rounds)
        return self

    @model_validator(mode="after")
    def _judges_are_never_trained_on(self) -> Self:
        for judge in self.evaluate.judges:
            if judge in self.rewards.rules:
                raise ValueError(f"evaluate.judges: {judge} is also a training reward (rewards.rules)")
        return self

    @model_validator(mode="after")
    def _the_judge_has_another_seed(self) -> Self:
        if self.judge_model.seed == self.reward_model.seed:
            raise ValueError(
                f"judge_model.seed: {self.judge_model.seed} is reward_model.seed, too; an independent judge has its own"
            )
        return self


def _numbers_of(rule: str, info: ValidationInfo) -> list[str]:
    """Return the numbers that a rule takes; the folder of the user's own rules lies beside ``params.yaml``."""
    own = (info.context or {}).get("folder", Path()) / RULES
    if rule not in rule_names(own):
        raise ValueError(f"no rule {rule!r} in alignflow/rules or {RULES}{suggest(rule, rule_names(own))}")
    return numbers_of(rule_file(rule, own))
