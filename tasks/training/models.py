"""What the training stages share: models from params, stored pairs as batches, and the last look."""

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alignflow import distributed
from alignflow.data.collate import collate_pairs, micro_batches, sequence_lengths
from alignflow.data.encoding import encode_prompt, encode_response
from alignflow.models.adapters import AdapterShape
from alignflow.models.base import load_identity, verify
from alignflow.models.checkpointing import checkpoint_layers
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from alignflow.models.sharing import share_base
from alignflow.optim import OptimisationConfig
from alignflow.types import Pair, Sequences
from tasks.params.sections import Params
from tasks.paths import CONVERTED, IDENTITY, PREPARED
from tasks.running.stage import Stage

if TYPE_CHECKING:
    from alignflow.checkpoint import Keep, State

Config = TypeVar("Config")
SFT = Path("artifacts/sft")
REWARD_MODEL = Path("artifacts/reward_model")
JUDGE_MODEL = Path("artifacts/judge_model")


def config_of(section: object, record: type[Config]) -> Config:
    """Return the core's config record filled from a params section."""
    return record(**{f.name: getattr(section, f.name) for f in fields(record)})  # type: ignore[arg-type]


def open_models(params: Params) -> SharedBase:
    """Load the base that this pipeline started from, ready for roles."""
    identity = load_identity(IDENTITY)
    verify(identity, converted=CONVERTED)
    base = load_base(identity, quantization=params.base.quantization, dtype=params.base.dtype)
    if params.memory.share_base:
        share_base(base.model)
    if params.memory.gradient_checkpointing:
        checkpoint_layers(base.model)
    targets = params.lora.target_modules
    shape = AdapterShape(params.lora.rank, params.lora.alpha, targets if isinstance(targets, str) else tuple(targets))
    models = SharedBase(base, shape)
    if not models.shares_prefixes and distributed.is_main():
        print(
            f"{identity.model} mixes tokens in its own way: rows are padded, and prompts computed once a row",
            flush=True,
        )
    return models


def read_prepared(side: str) -> list[dict[str, Any]]:
    """Return all prepared rows of ``train``, ``judge`` or ``eval``."""
    return read_lines(PREPARED / f"{side}.jsonl")


def read_pairs(side: str) -> list[dict[str, Any]]:
    """Return the prepared rows of a side that have a chosen and a rejected response.

    Raises:
        LacksRows: there is none.
    """
    return _those(side, "pair of a chosen and a rejected response", ("chosen", "rejected"))


def read_demonstrations(side: str) -> list[dict[str, Any]]:
    """Return the prepared rows of a side that have a chosen response, with or without a rejected one.

    Raises:
        LacksRows: there is none.
    """
    return _those(side, "chosen response", ("chosen",))


def read_prompts(side: str) -> list[dict[str, Any]]:
    """Return the first prepared row of each distinct prompt of a side, whatever responses it has."""
    first: dict[str, dict[str, Any]] = {}
    for row in read_prepared(side):
        first.setdefault(row["prompt_id"], row)
    return list(first.values())


def _those(side: str, what: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    rows = read_prepared(side)
    found = [row for row in rows if all(row[key] is not None for key in keys)]
    if not found:
        good = sum(row["chosen"] is not None for row in rows)
        can = ["ppo and grpo with rewards.rules and rewards.reward_model: 0"] if rows else []
        can = [*(["sft"] if good else []), *can] or ["nothing"]
        raise LacksRows(
            f"{PREPARED / f'{side}.jsonl'} has no {what}: it holds {len(rows)} rows, {good} of them with a chosen "
            f"response alone; what can be run with it: {', '.join(can)}"
        )
    return found


class LacksRows(ValueError):
    """The prepared data has none of the rows that a stage learns from."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file; only a line feed ends a line, since texts may hold other separators."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def encode_pairs(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Return rows of texts as rows of token ids."""
    return [
        Pair(
            encode_prompt(tokenizer, row["messages"]),
            encode_response(tokenizer, row["chosen"]),
            encode_response(tokenizer, row["rejected"]),
            row["margin"],
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


def pair_batches(
    pairs: Sequence[Pair], config: OptimisationConfig, step: int, budget: int, device: torch.device
) -> list[tuple[list[int], Sequences]]:
    """Return an optimiser step's micro-batches within a budget of tokens, on a device, with their pairs' indices."""
    lengths = [len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs]  # the prompt is computed once
    groups = micro_batches(lengths, rows_of_step(len(pairs), config, step), budget)
    return [(rows, collate_pairs([pairs[i] for i in rows]).to(device)) for rows in groups]


def tokens_of(batch: Sequences) -> int:
    """Return the real tokens of a batch."""
    return sum(sequence_lengths(batch))


def snapshot_steps(total: int, count: int) -> list[int]:
    """Return equally spaced steps strictly between the start and the end; fewer where there are not so many."""
    return sorted({round(total * i / (count + 1)) for i in range(1, count + 1)} - {0, total})


def keep_snapshots(stage: Stage, models: SharedBase, count: int) -> "Keep":
    """Return the stage's ``keep``, which then also saves the policy at equally spaced steps.

    Snapshots lie beside the checkpoint until ``finish``: DVC removes a stage's outputs before a stopped run continues.
    """
    wanted = snapshot_steps(stage.total_steps, count)

    def keep(step: int, state: "Callable[[], State]") -> None:
        if step in wanted and distributed.is_main():
            models.save_adapter("policy", _snapshots(stage) / f"step-{step}")
        stage.keep(step, state)

    return keep


def _snapshots(stage: Stage) -> Path:
    return stage.checkpoint.parent / "snapshots"


def finish(
    stage: Stage,
    models: SharedBase,
    role: str,
    *,
    frozen: Mapping[str, str],
    beside: Mapping[str, object] | None = None,
) -> dict[str, float]:
    """Save the trained role and its snapshots, check that frozen roles are as they were, write the curve, track it.

    Args:
        stage: the running stage.
        models: all roles.
        role: the trained one.
        frozen: fingerprints of the frozen roles, taken before training.
        beside: more files for the adapter's folder: JSON content by name.

    Raises:
        ReferenceChanged: a frozen role has other weights than before.
        Apart: the trained role has not the same weights in every process.
    """
    for name, before in frozen.items():
        if models.fingerprint(name) != before:
            raise ReferenceChanged(f"the weights of {name} changed during training; nothing was saved")
    if len(set(distributed.gather(models.fingerprint(role)))) > 1:
        raise Apart(f"the weights of {role} differ between processes; nothing was saved")
    if distributed.is_main():
        _save(stage, models, role, {"training.json": {"steps": len(stage.history)}, **(beside or {})})
    return stage.training_metrics()


def _save(stage: Stage, models: SharedBase, role: str, beside: Mapping[str, object]) -> None:
    folder = Path("artifacts") / stage.name.replace("@", "/")
    models.save(role, folder)
    for name, content in beside.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    stage.write_curve()
    stage.record.adapter(folder, name=f"alignflow-{stage.name.partition('@')[0]}")
    if _snapshots(stage).exists():  # after the record took its copy: they are looked at once, not registered
        shutil.copytree(_snapshots(stage), folder / "snapshots", dirs_exist_ok=True)


class ReferenceChanged(ValueError):
    """A frozen model was trained: a defect, never a setting."""


class Apart(ValueError):
    """Processes that train together hold different weights: a defect, never a setting."""
