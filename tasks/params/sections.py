"""The sections of ``params.yaml``: one pydantic model each, no default for any value."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from alignflow.data.forms.presets import PRESETS
from alignflow.data.forms.table import FORMS, IGNORE, READ_BY_NAME
from alignflow.data.gate import REASONS
from alignflow.data.split import judged_until
from alignflow.rewards import numbers_of, rule_file, rule_names
from alignflow.step_rules import STEP_RULES
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


def _takes(annotation: object, kind: type) -> bool:
    """Return whether a type is, or may be, a kind."""
    return annotation is kind or any(_takes(part, kind) for part in get_args(annotation))


class Section(BaseModel):
    """A section of ``params.yaml``: frozen, complete, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and not _takes(kind, bool) and (_takes(kind, int) or _takes(kind, float)):
            raise ValueError(f"must be a number, not {str(value).lower()}")
        return value


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


class Rank(Section):
    """Rank of an adapter (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Count
    alpha: Positive
    """The adapter's product counts alpha / rank times."""


class Lora(Rank):
    """Shape of every adapter but the judge's, which has its own rank."""

    target_modules: Literal["all-linear"] | list[str]


class Memory(Section):
    """Ways to save memory in training."""

    gradient_checkpointing: bool
    """Keeps only the inputs of the decoder layers and computes the rest again for the gradient; changes memory and
    speed only. Usual: false; true where a single pair of full length does not fit."""
    share_base: bool
    """The processes of one machine (``ALIGNFLOW_PROCESSES``) share one frozen base in host memory. On GPUs, a linear
    layer's weight is copied to the device each time the layer computes. Each process still loads the whole base once
    and has its own plain layers (``sampling.merged``). Changes memory and speed only; no effect on one process. Usual:
    false; true where the copies of the base fill the memory."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
    """How AdamW stores its moments: in float32, or in 8 bits for tensors of at least 4,096 numbers, which changes
    results slightly. ``paged_`` lets a full GPU move those of large tensors to host memory; no effect on a CPU."""


class Checkpoint(Section):
    """How a stage that stopped or was killed continues; changes no result."""

    seconds: NonNegative
    """A killed stage loses at most this much work, or one step where that takes longer; 0 saves after every step.
    Usual: 60; more where a checkpoint takes seconds to write."""


def _known_roles(columns: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    for role in columns:
        if role not in (known := (*READ_BY_NAME, IGNORE)):
            raise ValueError(f"no role {role!r}{suggest(role, known)}; known: {', '.join(known)}")
    return columns


ColumnNames = Annotated[dict[str, str | list[str]], AfterValidator(_known_roles)]


class DataSource(Section):
    """One of several sources of data."""

    path: Annotated[str, Field(min_length=1)]
    """A file or folder below data.path, or ``owner/name`` of the Hugging Face Hub with a revision."""
    subset: str | None
    """Hub only: the configuration, where a data set has several."""
    revision: str | None
    """Hub only: a commit, so that later runs read the same data."""
    split: str | None
    """The split to read, where the data set of the Hub or the folder has several."""
    weight: Positive
    """The source with the greatest weight is read whole; of another, the share weight / greatest weight of prompts."""
    columns: ColumnNames | None
    """As data.columns, for this source; null takes those."""


class Data(Section):
    """The preferences, how they are split and how much of them may be unusable."""

    path: Annotated[str, Field(min_length=1)]
    """A file, or a folder of files; with sources, the folder of their files. DVC tracks it."""
    sources: list[DataSource]
    """Several sources that are mixed by weight; empty reads all of data.path."""
    preset: str | None
    """A well-known data set, by its name in alignflow/data/forms/presets.py: what its columns hold, and its licence for
    the report. data.path or data.sources say where it lies; data.columns, if any, come first."""
    format: str
    """``auto`` or a name in alignflow/data/forms/table.py."""
    columns: ColumnNames
    """What columns hold where their names do not tell it: a column, or a list of columns, by its role, e.g. {chosen:
    reply.best, ignore: [notes]}; dots lead into objects. Roles are listed in alignflow/data/forms/table.py."""
    pairs: Literal["all", "best_worst"]
    """Pairs from scored responses: all with different scores, or only the best with the worst."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the distinct prompts on which policies are compared; settings may be chosen by it."""
    judge_fraction: Fraction
    """Share of the prompts outside validation that only the second reward model learns from; 0 leaves it untrained."""
    test_fraction: Fraction
    """Share of the distinct prompts kept for the test at the end, taken from those to train on; 0 keeps none."""
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """A training prompt whose similarity to a validation or test prompt is at least this is dropped (Jaccard index of
    their 5-character sequences). Usual: 0.7 to 0.9; 1 drops only prompts with the same words."""
    max_prompt_length: Count
    """Tokens, chat template included; longer rows are dropped and counted."""
    max_response_length: Count
    """Tokens, end-of-sequence included; longer rows are dropped and counted."""
    max_dropped_fraction: Annotated[float, Field(ge=0, le=1)]
    """The stage stops when a larger share of the rows is dropped."""
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
        blank = {"subset": None, "revision": None, "split": None, "columns": None}
        return [{**blank, **source} if isinstance(source, dict) else source for source in sources]

    @model_validator(mode="after")
    def _some_prompts_are_left_to_train_on(self) -> Self:
        if judged_until(self.validation_fraction, self.judge_fraction) + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction, judge_fraction and test_fraction leave no prompt to train on; lower one of them"
            )
        return self

    @field_validator("preset", mode="after")
    @classmethod
    def _preset_is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            raise ValueError(f"no preset {name!r}{suggest(name, PRESETS)}; known: {', '.join(PRESETS)}")
        return name

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
                    f"sources: {source.path} does not lie in data.path ({self.path}), and DVC tracks only that; "
                    "move it there, or give a revision if it is a data set of the Hub"
                )
        return self


class Sampling(Section):
    """How responses are sampled in training."""

    max_response_length: Annotated[int, Field(ge=2)]
    temperature: Positive
    rows: Count
    """Responses sampled at once; changes memory, speed and, by rounding, some responses: few in float32, many in
    bfloat16."""
    importance_cap: Positive | None
    """PPO, GRPO and RLOO: the policy term of a token has the weight min(π_old / π_sampler, cap). This corrects for the
    different rounding of sampler and training; null: all weights are 1. Usual: 2 (Yao et al. 2025)."""
    merged: Literal["auto"] | bool
    """Sample through plain layers (dequantised, adapter added): several times faster, for 2 bytes per weight in
    bfloat16. ``auto`` does so if they fit in half of the free memory, and prints a line if they do not. The sums are
    rounded to base.dtype, so true and false give samples that differ by rounding."""
    engine: Literal["own", "vllm"]
    """The sampler: alignflow/sampling/own.py, or vLLM (`pip install 'alignflow[vllm]'`) on one CUDA device, which
    needs ``importance_cap`` and ignores ``merged``."""
    vllm_memory_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the device's memory for vLLM's copy of the base and its cache, beside the models that train; changes
    speed and, as ``rows`` does, some responses by rounding."""
    vllm_max_length: Annotated[int, Field(ge=2)]
    """vLLM: most tokens of a prompt with its response, at most the base's own limit. vLLM's cache must hold so many."""

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
    """By name of a rule in alignflow/rules or rewards: its ``weight`` and its own numbers. One number is a weight."""
    missing_eos_penalty: NonNegative
    """Subtracted from the reward of a response that was cut off."""
    within_group: Literal["score", "wins"]
    """What GRPO, RLOO and iterative DPO compare the responses to a prompt by: their reward (``score``), or the share of
    the others that each beats (``wins``; Swamy et al. 2024, arXiv:2401.04056), which lies between 0 and 1."""
    win_temperature: NonNegative
    """τ of ``wins``: a response beats another with probability σ(difference / τ). 0: the higher reward always wins.
    Usual: 0 to 1."""

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
            raise ValueError("no source has a weight; set rewards.reward_model or the weight of a rule above 0")
        return self


class Optimisation(Section):
    """Keys shared by every stage that trains."""

    steps: Annotated[int, Field(ge=0)]
    """Optimiser steps; for PPO, GRPO and RLOO rollout batches."""
    batch_size: Count
    """Examples, pairs or prompts per step."""
    learning_rate: Positive
    """Peak of the schedule: linear warm-up, then cosine to a tenth. Usual with LoRA: 1e-5 to 5e-4."""
    warmup_fraction: Fraction
    weight_decay: NonNegative
    max_grad_norm: Positive
    micro_batch_tokens: Annotated[int, Field(ge=16)]
    """Most tokens in a forward pass, a shared prompt counted once; halved when memory runs out. Changes memory and
    speed, not the gradient."""
    seed: Seed


class Sft(Optimisation):
    """Supervised fine-tuning on the chosen responses."""

    enabled: bool


class RewardModel(Optimisation):
    """Bradley-Terry reward model."""

    head_steps: Annotated[int, Field(ge=0)]
    """Optimiser steps that train only the head, on hidden states of the start adapter, before ``steps`` train both.
    With a few hundred pairs set ``steps: 0`` and three epochs here; 0 starts from a random head."""
    head_learning_rate: Positive
    """Peak learning rate of these steps; usual: 3e-3 to 3e-2."""
    center_coef: NonNegative
    margin_coef: NonNegative
    """Weight of the rows' own ``margin`` in the loss; no effect on rows without one."""
    cut_rejected_fraction: Annotated[float, Field(ge=0, le=1)]
    """Share of the rejected responses that training cuts off, so that answers without an end score low."""
    cut_at: Literal["limit", "anywhere"]
    """Where: ``limit`` cuts those longer than sampling.max_response_length there, as samples are; ``anywhere`` cuts a
    response of any length at a drawn place."""
    normalization_prompts: Annotated[int, Field(ge=2)]
    """Number of responses of the reference whose scores get mean 0 and standard deviation 1."""


class JudgeModel(RewardModel, Rank):
    """A second reward model, which only judges; the more it differs from the first, the more its agreement says."""

    start: Literal["base", "sft"]
    """The weights that it starts from: ``base`` (the model without adapter) or ``sft`` (as the first one)."""


class DpoLoss(Section):
    """Keys of the DPO loss."""

    beta: Positive
    """A larger beta keeps the policy closer to the reference. Usual: 0.01 to 0.5."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "simpo", "sppo"]
    """``simpo`` uses no reference and needs a larger beta: usual 2 to 10. ``sppo`` moves each log-ratio to
    (win rate − ½) / beta: usual 0.05 to 0.5 for short answers with LoRA, 0.001 for hundreds of tokens at full-weight
    rates. On stored pairs the win rates are 1 and 0."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    """Probability that a label is wrong; ``sigmoid`` with it is cDPO, ``robust`` the unbiased loss."""
    simpo_margin: NonNegative
    """γ of ``simpo``: target for beta times the log-prob difference. Usual: 0.3 to 1.6 at beta 2 to 2.5, 3 to 5 at
    beta 10."""
    nll_coef: NonNegative
    """Weight of the chosen response's negative log-likelihood per token, added to any loss. Usual: 0 or 1."""

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
    """Adapters saved at equal distances during training; the evaluation shows them as a trajectory."""


class StepDpo(DpoLoss, Optimisation):
    """Step-DPO: DPO on single steps of the policy's own answers."""

    prompts: Count
    """Training prompts to sample from, drawn with the seed."""
    samples_per_prompt: Annotated[int, Field(ge=2)]
    """Answers to each, in which errors are looked for."""
    errors_per_prompt: Count
    """Wrong answers that are used of a prompt."""
    continuations: Count
    """m: samples after a prefix, which is alive if one of them is right. At a rate q of right ones a living prefix
    looks dead with probability (1−q)^m, so usual: ln 0.05 / ln(1−q), e.g. 8 at 0.3."""
    corrections: Count
    """Pairs of each error, with different chosen steps."""
    locate: Literal["rollouts", "checker"]
    """How the first wrong step is found: by bisection over continuations, or by the rule ``checker``."""
    checker: str | None
    """A rule of alignflow/step_rules.py for single steps; with ``rollouts`` it only reports ``located_right``."""
    right_from: float
    """Least reward of a right answer, a missing end included."""
    wrong_to: float
    """Greatest reward of a wrong answer; answers between are left out."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)]
    """The character that ends a step."""
    snapshots: Natural
    """Adapters saved at equal distances during training; the evaluation shows them as a trajectory."""

    @model_validator(mode="after")
    def _errors_can_be_found(self) -> Self:
        if self.wrong_to >= self.right_from:
            raise ValueError(f"wrong_to: {self.wrong_to} must be below right_from: {self.right_from}")
        if self.checker is not None and self.checker not in STEP_RULES:
            known = ", ".join(STEP_RULES)
            raise ValueError(f"checker: no rule {self.checker!r}{suggest(self.checker, STEP_RULES)}; known: {known}")
        if self.locate == "checker" and self.checker is None:
            raise ValueError(f"locate: checker needs a checker, one of: {', '.join(STEP_RULES)}")
        return self


class MctsDpo(DpoLoss, Optimisation):
    """MCTS-DPO: DPO on pairs of sibling steps of search trees over the policy's own answers."""

    prompts: Count
    """Training prompts, one tree each, drawn with the seed."""
    simulations: Count
    """Of each tree: an expansion of a leaf, which samples, or another visit to a finished answer, which does not."""
    first_breadth: Annotated[int, Field(ge=2)]
    """Answers that the root is expanded with."""
    breadth: Count
    """Answers that another node is expanded with; those that it holds already count."""
    depth: Count
    """Steps below the root; a node there is not expanded."""
    c_puct: NonNegative
    """Weight of exploration in the selection. Usual: 1."""
    length_exponent: NonNegative
    """λ: the prior of a step is exp(Σ log π / tokens^λ). Usual: 1.25."""
    min_margin: NonNegative
    """Least difference of the mean rewards of two siblings."""
    min_visits: Count
    """Least visits of each."""
    pairs_from: Literal["walk", "all"]
    """Pairs of the nodes on the walk to the most visited child, or of all nodes, the widest first."""
    pairs_per_prompt: Count
    only_right: bool
    """Only trees whose walk ends at right_from or above."""
    right_from: float
    """Least reward of a right answer, a missing end included."""
    smoothing: Literal["visits", "none"]
    """``visits``: each pair has its own label smoothing, N_rejected / (N_chosen + N_rejected); ``none``:
    label_smoothing."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)]
    """The character that ends a step."""
    snapshots: Natural
    """Adapters saved at equal distances during training; the evaluation shows them as a trajectory."""

    @model_validator(mode="after")
    def _one_smoothing(self) -> Self:
        if self.smoothing == "visits" and self.label_smoothing:
            raise ValueError(
                f"label_smoothing: {self.label_smoothing} has no effect with smoothing: visits; set it to 0"
            )
        return self


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
    """Reward per token, subtracted from each answer's reward before best and worst are chosen."""
    win_temperature: NonNegative
    """τ of ``loss: sppo``: a response beats another with probability σ(difference of rewards / τ); the win rate is its
    mean over all responses to the prompt. 0: the higher reward always wins. Usual: 1."""
    reference: Literal["previous", "initial"]
    rounds: dict[str, Round]
    last: str

    @model_validator(mode="after")
    def _sppo_moves_from_the_policy_that_sampled(self) -> Self:
        if self.loss == "sppo" and self.reference != "previous":
            raise ValueError(
                "loss: sppo needs reference: previous; its win rates are against the policy that a round starts from"
            )
        return self

    @model_validator(mode="after")
    def _rounds_follow_shards(self) -> Self:
        if self.rounds:  # without them iterative DPO is not chosen
            check_rounds(self.shards, {name: r.model_dump() for name, r in self.rounds.items()}, self.last)
        return self


class OnPolicy(Optimisation):
    """Keys shared by PPO, GRPO and RLOO."""

    epochs: Count
    """Passes over each rollout batch."""
    minibatches: Count
    """Optimiser steps per pass."""
    target_kl: Positive | None
    """The updates on a rollout batch end when the KL to the policy that sampled it exceeds this, in nats per token.
    Usual: null or 0.01 to 0.1."""
    snapshots: Natural
    """Adapters saved at equal distances during training; the evaluation shows them as a trajectory."""


class Ppo(OnPolicy):
    """Proximal policy optimisation with a critic."""

    critic_learning_rate: Positive
    kl_coef: NonNegative
    """Weight of the per-token KL penalty in the reward."""
    kl_estimator: Literal["k1", "k3"]
    """Estimator of the KL: ``k1`` is unbiased and can be negative, ``k3`` is never negative."""
    kl_target: Positive | None
    """KL in nats per response; kl_coef is adapted to it after every rollout batch. null keeps kl_coef fixed."""
    kl_gain: Positive
    """How fast kl_coef is adapted; Ziegler et al. 2019 use 0.1."""
    reward_clip: Positive | None
    """Scores are clipped to plus or minus this, before missing_eos_penalty is subtracted; null clips none."""
    whiten_rewards: bool
    """Scales the token rewards of a rollout batch to standard deviation 1 and keeps their mean."""
    clip_range: Annotated[float, Field(gt=0, lt=1)]
    value_clip_range: Positive | None
    """How far a value may move from its value at sampling before its gradient is cut; null clips none."""
    value_coef: Positive
    entropy_coef: NonNegative
    """Weight of the entropy bonus. Usual: 0 or 1e-4 to 1e-2."""
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
    """Keys shared by GRPO and RLOO, which take the baseline from the responses to the same prompt."""

    group_size: Annotated[int, Field(ge=2)]
    """Responses per prompt."""

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
    """Above clip_range_low, unlikely tokens can gain more probability ("clip-higher"; DAPO uses 0.2 and 0.28)."""
    normalization: Literal["grpo", "dr_grpo", "dapo"]
    std_epsilon: Positive
    """Added to a group's standard deviation; a group whose deviation is below it counts as zero variance."""
    zero_variance: Literal["keep", "drop", "resample"]
    """What happens to groups with equal rewards: ``keep`` them (only the KL term has a gradient), ``drop`` them from
    loss and denominator, or ``resample`` from other prompts and drop those that are still equal."""
    resample_limit: Count
    """How many times to resample at most."""
    mask_truncated: bool
    """Leaves responses that were cut off out of the loss."""


class Rloo(Grouped):
    """REINFORCE with a leave-one-out baseline."""

    kl_coef: NonNegative
    """Weight of the KL penalty in the reward. Usual: 0.03 to 0.1."""
    kl_estimator: Literal["k1", "k3"]
    """Estimator of the KL: ``k1`` is unbiased and can be negative, ``k3`` is never negative."""
    clip_range: Annotated[float, Field(gt=0, lt=1)]
    level: Literal["sequence", "token"]
    """The action: the whole response, as in the paper, or each token."""
    mask_truncated: bool
    """Leaves responses that were cut off out of the loss."""


class Kto(Optimisation):
    """Kahneman-Tversky optimisation on single responses: each chosen one is desirable, each rejected one is not."""

    beta: Positive
    """A larger beta keeps the policy closer to the reference. Usual: 0.01 to 0.5."""
    desirable_weight: Positive
    """λ_D: weight of the desirable responses. If one kind is rarer, raise its weight until weight × number is about
    equal for both kinds."""
    undesirable_weight: Positive
    """λ_U: weight of the undesirable responses."""
    batch_size: Annotated[int, Field(ge=2)]
    """Responses per step, both kinds together; the reference point pairs each prompt with another row's response."""
    snapshots: Natural
    """Adapters saved at equal distances during training; the evaluation shows them as a trajectory."""


class SftMore(Optimisation):
    """More SFT on the chosen responses, from the SFT adapter: the control that the other methods have to beat.

    ``steps`` should be those of the method it is compared with; in params.yaml they are ``dpo.steps``.
    """

    snapshots: Natural
    """Adapters saved at equal distances during training; the evaluation shows them as a trajectory."""


class Evaluate(Section):
    """Evaluation of one policy on validation prompts."""

    prompts: Annotated[int, Field(ge=2)]
    trajectory_prompts: Count
    """How many of these prompts, from the first, the snapshots of a policy answer too."""
    samples_per_prompt: Count
    """Answers to each prompt; each is compared with each of another policy. More of them narrow the intervals."""
    max_response_length: Annotated[int, Field(ge=2)]
    """Tokens; no smaller than the longest response of the data, or the stage prepare stops."""
    temperature: NonNegative
    """Of the answers, and of the KL to the reference along them. 0 is greedy; the KL is then taken at temperature 1."""
    judges: list[str]
    """Names of rules that judge but are never trained on, beside the second reward model; they take no numbers."""
    language_probability: Fraction
    """The language of a text counts as known if its probability is at least this. Usual: 0.8 to 0.95."""
    capability_path: Annotated[str, Field(min_length=1)]
    """JSONL file of multiple-choice questions: ``question``, ``choices`` and the index of the right one, ``answer``."""
    capability_texts: Count
    """Number of chosen responses of the validation side whose perplexity is measured."""
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
    """Address without ``/chat/completions``, e.g. http://localhost:8000/v1; null: nothing is judged."""
    model: str | None
    prompts: Count
    """How many prompts of the evaluation, from the first; each gives two questions per policy."""
    temperature: NonNegative
    max_tokens: Count
    """Longest verdict; models that reason first need more."""
    reply: Literal["letter", "json"]
    """What is asked for: a letter, or a JSON object, which the endpoint enforces by a schema where it can."""
    extra_body: dict[str, Any]
    """Further keys of each request, e.g. of reasoning; a key with null is left out, so ``{max_tokens: null,
    max_completion_tokens: 512}`` suits endpoints that refuse ``max_tokens``."""
    parallel: Count
    """Questions sent at the same time."""
    retries: Natural
    """Retries of a question after a failed connection or when the server is busy or fails."""
    retry_seconds: NonNegative
    """Wait before the first retry; doubled for each further one."""
    timeout_seconds: Positive

    @field_validator("url", mode="after")
    @classmethod
    def _a_url_has_no_password(cls, url: str | None) -> str | None:
        if url and ("@" in url or "?" in url):
            raise ValueError("no user name, password or query here, for git keeps it; LLM_JUDGE_API_KEY holds the key")
        return url

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
    """Ridge penalty λ of the length-controlled win rate: keeps its two coefficients finite and is as strong as about
    4 λ prompts. Usual: 0.01 to 1."""
    kl_levels: Annotated[int, Field(ge=1, le=10)]
    """Number of levels of KL to the reference at which algorithms are compared."""
    seed: Seed


class Seeds(Section):
    """Of ``alignflow run --seeds N``."""

    step: Count
    """Distance between the seeds of a key: its own, its own plus step, and so on."""
    margin: Annotated[float, Field(gt=0, lt=0.5)]
    """Win rates that are shown to be closer than this to one half count as no difference. Usual: 0.03."""


class Params(Section):
    """The whole of ``params.yaml``."""

    policies: dict[str, str]
    """The policies to train, evaluate and compare, each with its stage's folder; always with base and reference."""
    trained: dict[str, list[str]]
    """Follows from policies: one item for each stage that trains a policy."""
    base: Base
    lora: Lora
    memory: Memory
    checkpoint: Checkpoint
    data: Data
    sampling: Sampling
    rewards: Rewards
    sft: Sft
    reward_model: RewardModel
    judge_model: JudgeModel
    dpo: Dpo
    iterative_dpo: IterativeDpo
    step_dpo: StepDpo
    mcts_dpo: MctsDpo
    ppo: Ppo
    grpo: Grpo
    rloo: Rloo
    kto: Kto
    sft_more: SftMore
    evaluate: Evaluate
    llm_judge: LlmJudge
    compare: Compare
    seeds: Seeds

    @model_validator(mode="after")
    def _everything_follows_from_the_policies(self) -> Self:
        check_choice(self.policies, self.trained, self.iterative_dpo.rounds)
        return self

    @model_validator(mode="after")
    def _shares_of_wins_need_a_group(self) -> Self:
        if self.rewards.within_group == "wins" and "ppo" in self.policies:
            raise ValueError(
                "rewards.within_group: wins compares the responses to one prompt, and ppo samples only one; "
                "set it to score, or take ppo out with `alignflow set policies=...`"
            )
        return self

    @model_validator(mode="after")
    def _judges_are_never_trained_on(self) -> Self:
        for judge in self.evaluate.judges:
            if judge in self.rewards.rules:
                raise ValueError(
                    f"evaluate.judges: {judge} is also a training reward; remove it here or in rewards.rules"
                )
        return self

    @model_validator(mode="after")
    def _the_judge_has_another_seed(self) -> Self:
        if self.judge_model.seed == self.reward_model.seed:
            raise ValueError(
                f"judge_model.seed: {self.judge_model.seed} is also reward_model.seed; set another for independence"
            )
        return self


def _numbers_of(rule: str, info: ValidationInfo) -> list[str]:
    """Return the numbers that a rule takes; the folder of the user's own rules lies beside ``params.yaml``."""
    own = (info.context or {}).get("folder", Path()) / RULES
    if rule not in rule_names(own):
        raise ValueError(f"no rule {rule!r} in alignflow/rules or {RULES}{suggest(rule, rule_names(own))}")
    return numbers_of(rule_file(rule, own))
