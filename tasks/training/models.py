"""What the training stages share: models from params, the optimiser, snapshots, and what a training leaves."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from alignflow import distributed
from alignflow.checkpoint import Keep, State, sync_tree
from alignflow.models.adapters import AdapterShape
from alignflow.models.base import load_identity, verify
from alignflow.models.checkpointing import checkpoint_layers
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from alignflow.models.sharing import share_base
from tasks.params.sections import Params, Rank
from tasks.paths import CONVERTED, IDENTITY
from tasks.running.hardware import without_bfloat16
from tasks.running.stage import Stage

Config = TypeVar("Config")


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
    if base.compute != base.dtype and distributed.is_main():
        print(f"products of {params.base.dtype} numbers are {without_bfloat16()}", flush=True)
    models = SharedBase(base, adapter_shape(params, params.lora))
    if not models.shares_prefixes and distributed.is_main():
        print(
            f"{identity.model} mixes tokens in its own way: rows are padded, and prompts computed once a row",
            flush=True,
        )
    return models


def adapter_shape(params: Params, section: Rank) -> AdapterShape:
    """Return the shape of an adapter: target modules of ``lora``, rank and alpha of a section."""
    targets = params.lora.target_modules
    return AdapterShape(section.rank, section.alpha, targets if isinstance(targets, str) else tuple(targets))


def snapshot_steps(total: int, count: int) -> list[int]:
    """Return equally spaced steps strictly between the start and the end; fewer where there are not so many."""
    return sorted({round(total * i / (count + 1)) for i in range(1, count + 1)} - {0, total})


def keep_snapshots(stage: Stage, models: SharedBase, count: int) -> Keep:
    """Return the stage's ``keep``, which then also saves the policy at equally spaced steps.

    Snapshots lie beside the checkpoints until ``finish``: DVC removes a stage's outputs before a stopped run continues.
    """
    wanted = snapshot_steps(stage.total_steps, count)

    def keep(step: int, state: Callable[[], State]) -> None:
        if step in wanted and distributed.is_main():
            folder = _snapshots(stage) / f"step-{step}"
            models.save_adapter("policy", folder)
            sync_tree(folder)  # a later checkpoint does not write it again
        stage.keep(step, state)

    return keep


def _snapshots(stage: Stage) -> Path:
    return stage.checkpoints.folder / "snapshots"


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
