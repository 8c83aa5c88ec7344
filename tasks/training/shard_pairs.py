"""The preference pairs of one round of iterative DPO: best against worst of a policy's own samples."""

from typing import Any

from alignflow.algorithms.iterative_dpo import choose_pair, shard_of
from alignflow.data.encoding import encode_prompt
from alignflow.models.roles import SharedBase
from alignflow.preferences import preferences, win_rates
from alignflow.types import Pair
from tasks.data.prepared import read_prompts
from tasks.running.stage import Stage
from tasks.training.lineage import NoPairs, dropped, origin, write_lineage
from tasks.training.rewards import check_sources, within_groups
from tasks.training.samples import sample
from tasks.training.sampling import settle


def make_pairs(stage: Stage, models: SharedBase) -> tuple[list[Pair], dict[str, float]]:
    """Make the round's pairs and write them with their lineage.

    They are part of the checkpoint: a resumed stage, which may have another budget of memory, must not sample others.
    """
    lineage = stage.once("pairs", lambda: _sample_pairs(stage, models))
    write_lineage(stage, lineage)
    kept = [row for row in lineage if row["dropped"] is None]
    stage.say(f"{len(kept)} pairs from {len(lineage)} prompts of shard {lineage[0]['shard']}")
    if not kept:
        raise NoPairs(
            f"none of {len(lineage)} prompts gave a pair ({dropped(lineage)}); raise iterative_dpo.samples_per_prompt, "
            "lower iterative_dpo.min_margin, or look at the rewards"
        )
    rows = [
        {"prompt": r["prompt"], "scores": r["scores"], "response": r["chosen"], "rejected": r["rejected"]} for r in kept
    ]
    stage.record.table("pairs", rows[:16])
    pairs = [
        Pair(
            encode_prompt(models.base.tokenizer, r["messages"]),
            tuple(r["chosen_ids"]),
            tuple(r["rejected_ids"]),
            wins=(r["wins"][r["best"]], r["wins"][r["worst"]]),
        )
        for r in kept
    ]
    scores = [score for row in lineage for score in row["scores"] if score is not None]
    truncated = [cut for row in lineage for cut in row["truncated"]]
    return pairs, {
        "pairs": float(len(kept)),
        "prompts_without_pair": float(len(lineage) - len(kept)),
        "reward/mean": sum(scores) / len(scores),
        "truncated_fraction": sum(truncated) / len(truncated),
    }


def _sample_pairs(stage: Stage, models: SharedBase) -> list[dict[str, Any]]:
    """Sample, score and pair; one row a prompt with everything that made or dropped its pair."""
    section, k = stage.params.iterative_dpo, stage.params.iterative_dpo.samples_per_prompt
    turn = section.rounds[stage.name.partition("@")[2]]
    train = read_prompts("train")
    check_sources(stage.params, train)
    shard = shard_of(len(train), shard=turn.shard, of=turn.of, seed=section.seed)[: section.prompts_per_shard]
    rows = [train[i] for i in shard]
    stage.say(f"samples {k} answers to each of {len(rows)} prompts")
    seed = section.seed * 1000 + turn.shard
    settle(stage, models)
    budget = stage.budget("passes", section.micro_batch_tokens)
    samples = sample(models, stage.params, rows, k, seed=seed, budget=budget)
    common = {
        "round": stage.name.partition("@")[2],
        "shard": turn.shard,
        "of": turn.of,
        **origin(stage, models, start=turn.previous, seed=seed),
    }
    result: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        group = samples[place * k : (place + 1) * k]
        totals, texts = [s.reward.total for s in group], [s.text for s in group]
        lengths = [len(s.response.tokens) for s in group]
        choice = choose_pair(
            within_groups(stage.params, totals, k),
            texts,
            lengths,
            min_margin=section.min_margin,
            length_penalty=section.length_penalty,
        )
        wins = win_rates(preferences(totals, section.win_temperature))
        result.append(
            {
                "prompt_id": row["prompt_id"],
                "messages": row["messages"],
                "prompt": row["prompt"],
                "chosen": texts[choice.best],
                "rejected": texts[choice.worst],
                "dropped": choice.dropped,
                "scores": [None if total is None else round(total, 4) for total in totals],
                "wins": wins,
                "best": choice.best,
                "worst": choice.worst,
                "sources": [s.reward.sources for s in group],
                "lengths": lengths,
                "responses": texts,
                "truncated": [s.response.truncated for s in group],
                "chosen_ids": group[choice.best].response.tokens,
                "rejected_ids": group[choice.worst].response.tokens,
                **common,
            }
        )
    return result
