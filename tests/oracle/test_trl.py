"""Every loss against TRL 1.16's own trainers: same tiny model, adapters and rows; values and gradients of the adapter.

TRL's code computes each expected number: a real trainer collates the batch (for GRPO: takes our responses through its
rollout hook), runs its model and its loss. Our side goes through ``update_that_fits``, one or two rows a micro-batch.

Differences by design, each asserted below but for the last, of a metric:

| in TRL                                         | here                             | why
|------------------------------------------------|----------------------------------|------------------------------
| DPO sigmoid ignores label_smoothing            | cDPO, as TRL's aot on one pair   | no key does nothing
| DPO sft, CPO's NLL: mean over all tokens       | mean per response, then per pair | a pair's loss is its own
| dr_grpo divides by the deviation unless told   | only centres                     | as in its paper
| ε of GRPO's advantages is 1e-4                 | std_epsilon                      | near-ties of a reward model
| masked and unscored rows stay in denominators  | they leave                       | a mean is over what counts
| the KL of unscored rows stays                  | it leaves                        | no score, no training
| log-ratios are free                            | clamped to ±20                   | one token could overflow
| the KL has an importance weight by default     | it has none                      | Eq. 4 of GRPO's paper
| clip ratios count clips that cut a gradient    | clip_fraction counts all outside | it measures distance
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.advantages import group_relative
from alignflow.algorithms import dpo, grpo, ppo, reward_model, sft
from alignflow.data.collate import collate, collate_pairs, take_rows
from alignflow.ops import masked_sum, token_logprobs
from alignflow.types import Example, Pair, Rollouts
from tests.close import EXACT, close
from tests.oracle.sides import QUIET, Result, agree, ids, open_ours, our_result, their_result, trainer_of

pytest.importorskip("trl", reason="the oracle extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, of deprecated names


# -- pairs: reward model, DPO, SimPO, SFT --------------------------------------------------------------------------


def pair(number: int, prompt: int, chosen: int, rejected: int, margin: float) -> Pair:
    responses = ((*ids(n - 1, s), 97) for n, s in ((chosen, number + 10), (rejected, number + 20)))
    return Pair(ids(prompt, number), *responses, margin)


PAIRS = [pair(0, 3, 4, 6, 0.7), pair(1, 6, 2, 1, 0.0), pair(2, 2, 9, 3, 2.0)]


def rows_of(pairs: Sequence[Pair], margin_coef: float = 0.0, whole: bool = False) -> list[dict[str, Any]]:
    """Return pairs as TRL's collators take them: prompt and responses apart, or joined for the reward model."""
    rows: list[dict[str, Any]] = []
    for p in pairs:
        if whole:
            row = {"chosen_ids": [*p.prompt, *p.chosen], "rejected_ids": [*p.prompt, *p.rejected]}
            rows.append(row | ({"margin": margin_coef * p.margin} if margin_coef else {}))
        else:
            rows.append({"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)})
    return rows


def our_dpo(folder: Path, loss: str, **keys: float) -> Result:
    """Run our DPO on all pairs, one a micro-batch."""
    models = open_ours(folder)
    base = dpo.DPOConfig(beta=0.3, loss=loss, label_smoothing=0.0, simpo_margin=0.0, nll_coef=0.0)
    config = replace(base, **keys)
    parts = []
    for p in PAIRS:
        sequences = collate_pairs([p])
        with torch.no_grad():
            ref, _ = models.logprobs("reference", sequences)
        certain = torch.tensor(p.wins)
        parts.append(dpo.PairBatch(sequences, masked_sum(ref, sequences.response_mask[:, 1:]), certain))
    return our_result(models, parts, lambda batch: dpo.step(models, batch, config), dpo.count)


def their_dpo(folder: Path, loss: Sequence[str], *, singly: bool = False, **config: Any) -> Result:
    trainer = trainer_of("DPO", folder, {"beta": 0.3, "loss_type": list(loss), **config})
    rows = rows_of(PAIRS)
    return their_result(trainer, [trainer.data_collator(r) for r in ([[row] for row in rows] if singly else [rows])])


@pytest.mark.parametrize("margin_coef", [0.0, 0.5])
@pytest.mark.parametrize("center_coef", [0.0, 0.1])
def test_the_reward_model_agrees(folder: Path, margin_coef: float, center_coef: float):
    models = open_ours(folder, "reward_model")
    config = reward_model.RewardModelConfig(center_coef=center_coef, margin_coef=margin_coef)
    parts = [reward_model.RewardBatch(collate_pairs([p]), torch.tensor([p.margin])) for p in PAIRS]
    mine = our_result(
        models, parts, lambda batch: reward_model.step(models, batch, config), reward_model.count, "reward_model"
    )
    trainer = trainer_of("Reward", folder, {"center_rewards_coefficient": center_coef or None}, trained="reward_model")
    agree(mine, their_result(trainer, [trainer.data_collator(rows_of(PAIRS, margin_coef, whole=True))]))


@pytest.mark.parametrize(
    ("loss", "smoothing"), [("sigmoid", 0.0), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.0), ("robust", 0.2)]
)
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_dpo_agrees(folder: Path, loss: str, smoothing: float, beta: float):
    mine = our_dpo(folder, loss, beta=beta, label_smoothing=smoothing)
    agree(mine, their_dpo(folder, [loss], beta=beta, label_smoothing=smoothing))


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_sppo_on_stored_pairs_is_half_of_trl_s(folder: Path, beta: float):
    """TRL adds the squares of both responses where ours is their mean."""
    agree(our_dpo(folder, "sppo", beta=beta), their_dpo(folder, ["sppo_hard"], beta=beta), 0.5)


def test_smoothed_sigmoid_is_cdpo_where_trl_ignores_the_smoothing(folder: Path):
    mine = our_dpo(folder, "sigmoid", label_smoothing=0.2)
    agree(mine, their_dpo(folder, ["aot"], label_smoothing=0.2, singly=True))  # nothing to sort in a batch of one
    ignored, plain = (their_dpo(folder, ["sigmoid"], label_smoothing=e)[0] for e in (0.2, 0.0))
    close(ignored, plain, EXACT)
    assert abs(mine[0] - ignored) > 0.05


def test_the_likelihood_term_is_a_mean_of_each_response_where_trl_takes_all_tokens(folder: Path):
    """On one pair both are the same; on pairs of 4, 2 and 9 tokens they differ."""
    config = {"loss_weights": [1.0, 0.4]}
    mine = our_dpo(folder, "sigmoid", nll_coef=0.4)
    agree(mine, their_dpo(folder, ["sigmoid", "sft"], singly=True, **config))
    assert abs(mine[0] - their_dpo(folder, ["sigmoid", "sft"], **config)[0]) > 0.01


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_simpo_agrees(folder: Path, smoothing: float, alpha: float):
    """TRL has it in CPO, which adds α times the likelihood of all chosen tokens; so one pair a batch."""
    mine = our_dpo(folder, "simpo", beta=2.0, simpo_margin=0.7, label_smoothing=smoothing, nll_coef=alpha)
    keys = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": smoothing, "cpo_alpha": alpha}
    trainer = trainer_of("CPO", folder, {**keys, "max_length": 64})
    batches = []
    for p in PAIRS:
        row = {}
        for side, response in (("chosen", p.chosen), ("rejected", p.rejected)):
            row[f"{side}_input_ids"] = [*p.prompt, *response]
            row[f"{side}_attention_mask"] = [1] * len(p.prompt + response)
            row[f"{side}_labels"] = [-100] * len(p.prompt) + list(response)
        batches.append(trainer.data_collator([row]))
    agree(mine, their_result(trainer, batches))


def test_sft_agrees(folder: Path):
    models = open_ours(folder)
    parts = [collate([Example(p.prompt, p.chosen)]) for p in PAIRS]
    trainer = trainer_of("SFT", folder, {})
    rows = [{"input_ids": [*p.prompt, *p.chosen], "labels": [-100] * len(p.prompt) + list(p.chosen)} for p in PAIRS]
    agree(
        our_result(models, parts, partial(sft.step, models), sft.count),
        their_result(trainer, [trainer.data_collator(rows)]),
    )


# -- rollouts: GRPO, and PPO's policy loss -------------------------------------------------------------------------

GROUP, LONGEST, TEMPERATURE = 3, 12, 0.7
PROMPTS = [ids(3, 31), ids(7, 32)]
LENGTHS = [4, 7, 1, 9, 3, 5]
CUT = 3  # this row has no end-of-sequence
SCORES = [1.0, 0.2, -0.5, 0.3, 0.9, 0.8]
ROWS = [
    Example(PROMPTS[i // GROUP], ids(n, 40 + i) if i == CUT else (*ids(n - 1, 40 + i), 97))
    for i, n in enumerate(LENGTHS)
]


class Case:
    """One batch of given responses, sampled by both sides' policies, which then moved by the same step."""

    def __init__(self, folder: Path, scores: Sequence[float | None] = SCORES, **keys: Any) -> None:
        base = grpo.GRPOConfig(
            beta=0.2,
            clip_range_low=0.05,
            clip_range_high=0.1,
            group_size=GROUP,
            normalization="grpo",
            std_epsilon=1e-4,
            zero_variance="keep",
            resample_limit=1,
            mask_truncated=False,
        )
        theirs = {
            name: keys.pop(name) for name in ("loss_type", "entropy_coef", "use_bias_correction_kl") if name in keys
        }
        self.config = replace(base, **keys)
        self.models = open_ours(folder)
        self.trainer = trainer_of(
            "GRPO",
            folder,
            {
                "beta": self.config.beta,
                "epsilon": self.config.clip_range_low,
                "epsilon_high": self.config.clip_range_high,
                "loss_type": self.config.normalization,
                "scale_rewards": "none" if self.config.normalization == "dr_grpo" else "group",
                "mask_truncated_completions": self.config.mask_truncated,
                "temperature": TEMPERATURE,
                "max_completion_length": LONGEST,
                "per_device_train_batch_size": len(ROWS),
                "num_generations": GROUP,
                "num_iterations": 2,  # else TRL keeps no log-probs of the sampling policy
                "use_bias_correction_kl": False,
                **theirs,
            },
            reward_funcs=[lambda **_: list(scores)],
            rollout_func=self._given,
        )
        self.theirs = self.trainer._generate_and_score_completions([{"prompt": "a"}] * len(ROWS))
        sequences = collate(ROWS)
        with torch.no_grad():
            old, ref = (self.models.logprobs(role, sequences, TEMPERATURE)[0] for role in ("policy", "reference"))
        self.rollouts = Rollouts(
            sequences=sequences,
            scores=torch.tensor([s or 0.0 for s in scores]),
            scored=torch.tensor([s is not None for s in scores]),
            truncated=torch.arange(len(ROWS)) == CUT,
        )
        self.ours, self.metrics = grpo.prepare(self.rollouts, old, ref, self.config)
        self._move()

    @staticmethod
    def _given(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        assert len(prompts) == len(ROWS)
        rows = {"prompt_ids": [list(r.prompt) for r in ROWS], "completion_ids": [list(r.response) for r in ROWS]}
        return {**rows, "logprobs": None}

    def _move(self) -> None:
        """Step away from the policy that sampled, so far that some ratios leave the clip range."""
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for name, parameter in self.models._peft.named_parameters():
                if ".policy." in name:
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
                    self.trainer.model.get_parameter(name.replace(".policy.", ".default.")).copy_(parameter)

    def our_grpo(self) -> Result:
        """Run our update on the rows that count, two a micro-batch."""
        rows = self.ours.sequences.response_mask.any(1).nonzero()[:, 0].tolist()
        return our_result(
            self.models,
            [take_rows(self.ours, rows[i : i + 2]) for i in range(0, len(rows), 2)],
            lambda batch: grpo.step(self.models, batch, self.config, temperature=TEMPERATURE),
            lambda batch: grpo.count(batch, self.config, max_response_length=LONGEST),
        )

    def their_grpo(self) -> Result:
        return their_result(self.trainer, [self.theirs])


@pytest.mark.parametrize("normalization", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_grpo_agrees(folder: Path, normalization: str, beta: float):
    """With ratios beyond either clip range, which differ; and log-probs at the sampling temperature."""
    case = Case(folder, normalization=normalization, beta=beta)
    mask = case.ours.sequences.response_mask[:, 1:]
    close(case.ours.advantages, case.theirs["advantages"])
    close(case.ours.old_logprobs[mask], case.theirs["old_per_token_logps"][case.theirs["completion_mask"].bool()])
    if beta:
        close(case.ours.ref_logprobs[mask], case.theirs["ref_per_token_logps"][case.theirs["completion_mask"].bool()])
    agree(case.our_grpo(), case.their_grpo())
    metrics = case.trainer._metrics["train"]
    assert metrics["clip_ratio/low_mean"][-1] > 0
    assert metrics["clip_ratio/high_mean"][-1] > 0


def test_dapo_is_bnpo_in_one_batch(folder: Path):
    case = Case(folder, normalization="dapo", loss_type="bnpo")
    agree(case.our_grpo(), case.their_grpo())


@pytest.mark.parametrize(("normalization", "factor"), [("grpo", 6 / 5), ("dapo", 1.0), ("dr_grpo", 6 / 5)])
def test_truncated_responses_leave_our_denominator_and_stay_in_that_of_trl(
    folder: Path, normalization: str, factor: float
):
    """Of six responses one is cut; a mean over tokens has no place for it in TRL either."""
    case = Case(folder, normalization=normalization, mask_truncated=True)
    close(case.metrics["counted_fraction"].mean(), 5 / 6)
    agree(case.our_grpo(), case.their_grpo(), factor)


@pytest.mark.parametrize(("normalization", "factor"), [("grpo", 6 / 5), ("dapo", 29 / 22), ("dr_grpo", 6 / 5)])
def test_unscored_responses_leave_our_denominator_and_stay_in_that_of_trl(
    folder: Path, normalization: str, factor: float
):
    """The second of six responses has no score: 7 of 29 tokens."""
    scores = [1.0, None, *SCORES[2:]]
    case = Case(folder, scores, normalization=normalization, beta=0.0)
    agree(case.our_grpo(), case.their_grpo(), factor)
    case = Case(folder, scores, normalization=normalization)
    assert abs(case.our_grpo()[0] - factor * case.their_grpo()[0]) > 1e-4  # TRL's KL goes on


@pytest.mark.parametrize(("choice", "factor"), [("keep", 1.0), ("drop", 2.0)])
def test_groups_of_equal_scores_stay_with_trl_unless_dropped(folder: Path, choice: str, factor: float):
    """One group of two: its advantages are 0, so without KL only the denominator differs."""
    scores = [*SCORES[:3], 0.4, 0.4, 0.4]
    case = Case(folder, scores, zero_variance=choice, beta=0.0)
    assert case.metrics["zero_variance_fraction"].tolist() == [0.0, 1.0]
    agree(case.our_grpo(), case.their_grpo(), factor)


def test_the_kl_has_no_importance_weight_which_trl_gives_it_by_default(folder: Path):
    weighted = Case(folder, use_bias_correction_kl=True)
    mine, expected = weighted.our_grpo(), weighted.their_grpo()
    largest = max(float((mine[1][name] - expected[1][name]).abs().max()) for name in mine[1])
    assert largest > 0.01 * max(float(g.abs().max()) for g in expected[1].values())


def test_log_ratios_are_clamped_where_trl_lets_one_token_overflow(folder: Path):
    """One token a hundred nats more likely than when sampled, at a loss (A < 0) that no clip bounds."""
    case = Case(folder, beta=0.0, normalization="dapo")
    row = int(case.ours.advantages.argmin())
    first = int(case.ours.sequences.response_mask[row, 1:].int().argmax())
    case.ours.old_logprobs[row, first] -= 100.0
    case.theirs["old_per_token_logps"][row, 0] -= 100.0
    assert math.isinf(float(case.trainer.compute_loss(case.trainer.model, case.theirs)))
    mine = case.our_grpo()[0]
    close(mine / (-float(case.ours.advantages[row]) * math.exp(20.0) / sum(LENGTHS)), 1.0)


@pytest.mark.parametrize(
    "scores",
    [
        SCORES,
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.5],  # a group of zero variance
        [1.0, None, 0.0, None, None, 0.4],  # two scored, and only one
        [None, None, None, 0.3, 0.3001, 0.3],  # none at all, and nearly equal
    ],
)
def test_advantages_agree_but_for_the_epsilon(folder: Path, scores: list[float | None]):
    """Ours times (std + ε) are TRL's times (std + 1e-4): both are the centred scores."""
    expected = Case(folder, scores).theirs["advantages"].view(-1, GROUP)
    given = torch.tensor([s or 0.0 for s in scores]).view(-1, GROUP)
    mask = torch.tensor([s is not None for s in scores]).view(-1, GROUP)
    close(group_relative(given, mask, epsilon=1e-4, scale=True)[0], expected)
    mine, std = group_relative(given, mask, epsilon=0.01, scale=True)
    close(mine * (std[:, None] + 0.01), expected * (std[:, None] + 1e-4))


def test_dr_grpo_only_centres_where_trl_scales_unless_told(folder: Path):
    from trl import GRPOConfig

    assert GRPOConfig(loss_type="dr_grpo", output_dir=str(folder / "out"), **QUIET).scale_rewards == "group"
    case = Case(folder, normalization="dr_grpo")
    groups = torch.tensor(SCORES).view(-1, GROUP)
    close(case.theirs["advantages"].view(-1, GROUP), groups - groups.mean(1, keepdim=True))
    close(case.ours.advantages, case.theirs["advantages"])


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
def test_ppos_policy_loss_agrees_with_bnpo_of_token_advantages(folder: Path, entropy_coef: float):
    """A mean over all tokens of the clipped surrogate of each, less the entropy bonus."""
    case = Case(folder, loss_type="bnpo", entropy_coef=entropy_coef, beta=0.0, clip_range_low=0.1, clip_range_high=0.1)
    mask, whole = case.ours.sequences.response_mask[:, 1:], case.theirs["completion_mask"].bool()
    advantages = torch.randn(mask.shape, generator=torch.Generator().manual_seed(5)).where(mask, 0.0)
    case.theirs["advantages"] = torch.zeros(whole.shape).masked_scatter(whole, advantages[mask])
    zeros = torch.zeros_like(advantages)
    batch = ppo.PPOBatch(case.ours.sequences, case.ours.old_logprobs, zeros, advantages, zeros)
    config = ppo.PPOConfig(
        kl_coef=0.0,
        kl_estimator="k1",
        kl_target=None,
        kl_gain=0.0,
        reward_clip=None,
        whiten_rewards=False,
        clip_range=0.1,
        value_clip_range=None,
        value_coef=0.0,
        entropy_coef=entropy_coef,
        gamma=1.0,
        gae_lambda=1.0,
    )
    mine = our_result(
        case.models,
        [take_rows(batch, rows) for rows in ([0, 1], [2, 3], [4, 5])],
        lambda part: ppo.policy_step(case.models, part, config, temperature=TEMPERATURE),
        ppo.count,
    )
    agree(mine, case.their_grpo())


# -- tools ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_and_entropies_agree_with_trl_on_whole_logits(temperature: float):
    from trl.trainer.utils import selective_log_softmax_and_entropy

    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    weight, targets = draw(50, 16), torch.randint(0, 50, (11,), generator=generator)
    pull, push, start = draw(11), draw(11), 2 * draw(11, 16)
    results = []
    for mine in (True, False):
        hidden = start.clone().requires_grad_()
        if mine:
            found = token_logprobs(hidden, weight, targets, temperature=temperature, chunk=4, entropy=True)
        else:
            logits = (hidden @ weight.T)[None]
            found = selective_log_softmax_and_entropy(logits, targets[None], temperature=temperature)
            found = (found[0][0], found[1][0])
        (found[0] * pull + found[1] * push).sum().backward()
        results.append([*found, hidden.grad])
    for a, b in zip(*results, strict=True):
        close(a, b)
