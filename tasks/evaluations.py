"""Read what earlier stages left for the comparison: answers, costs and learning curves, all checked."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from alignflow.comparison import PromptMismatchError, same_order
from tasks.workspace import stage_file

REFERENCE = "reference"
TITLES: Mapping[str, str] = {
    "base": "Base",
    REFERENCE: "Reference",
    "dpo": "DPO",
    "iterative_dpo": "Iterative DPO",
    "ppo": "PPO",
    "grpo": "GRPO",
}
"""Every evaluated policy and how a reader sees it named, in the order of tables and samples."""


class InputError(ValueError):
    """A file of an earlier stage is missing, broken or does not fit the others; names the file."""


class Answer(BaseModel):
    """One row of ``evaluations/<policy>/responses.jsonl``; further keys are left for other readers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    prompt_id: str
    prompt: str
    response: str
    score: FiniteFloat
    """Reward model, normalised to mean 0 and standard deviation 1 on reference responses."""
    gold: Annotated[FiniteFloat, Field(ge=0, le=1)]
    """Independent judge that no training stage saw."""
    kl: FiniteFloat
    """KL estimate to the reference, nats for the whole response."""
    response_length: Annotated[int, Field(ge=0)]
    """Tokens."""
    truncated: bool


class Cost(BaseModel):
    """What training took; the keys that every training stage's metrics file has."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    train_seconds: Annotated[FiniteFloat, Field(ge=0)]
    trained_tokens: Annotated[FiniteFloat, Field(ge=0)]
    peak_memory_gib: Annotated[FiniteFloat, Field(ge=0)]


@dataclass(frozen=True)
class Curve:
    """A policy's learning curve; the stages that trained it follow each other on the step axis."""

    steps: NDArray[np.float64]
    series: Mapping[str, NDArray[np.float64]]
    """Values by metric; NaN where a step has none. (steps,)"""
    breaks: tuple[float, ...]
    """Steps at which a later stage took over (rounds of iterative DPO)."""


def training_stages(rounds: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the stages that trained each compared policy, in the order of the comparison."""
    return {
        REFERENCE: ("sft",),
        "dpo": ("dpo",),
        "iterative_dpo": tuple(f"iterative_dpo@{name}" for name in rounds),
        "ppo": ("ppo",),
        "grpo": ("grpo",),
    }


def read_answers(root: Path) -> dict[str, tuple[Answer, ...]]:
    """Read every policy's answers, brought into the reference's order of prompts.

    Raises:
        InputError: A file is missing or broken, or a policy answered other prompts.
    """
    paths = {policy: root / "evaluations" / policy / "responses.jsonl" for policy in TITLES}
    found = {policy: _rows(path, f"evaluate@{policy}") for policy, path in paths.items()}
    ids = [row.prompt_id for row in found[REFERENCE]]
    ordered = {}
    for policy, rows in found.items():
        try:
            order = same_order([row.prompt_id for row in rows], ids)
        except PromptMismatchError as error:
            raise InputError(f"{paths[policy]}, compared with {paths[REFERENCE]}: {error}") from None
        ordered[policy] = tuple(rows[i] for i in order)
        for mine, theirs in zip(ordered[policy], found[REFERENCE], strict=True):
            if mine.prompt != theirs.prompt:
                raise InputError(
                    f"{paths[policy]}: prompt {mine.prompt_id!r} has another text than in {paths[REFERENCE]}"
                )
    return ordered


def read_cost(root: Path, stages: Iterable[str]) -> Cost:
    """Read what the stages that trained a policy took: times and tokens add up, memory is the highest.

    Raises:
        InputError: A metrics file is missing or broken, or lacks a number.
    """
    costs = [_cost(root / stage_file("metrics", stage, ".json"), stage) for stage in stages]
    return Cost(
        train_seconds=sum(cost.train_seconds for cost in costs),
        trained_tokens=sum(cost.trained_tokens for cost in costs),
        peak_memory_gib=max(cost.peak_memory_gib for cost in costs),
    )


def read_curve(root: Path, stages: Iterable[str]) -> Curve:
    """Read the learning curves of the stages that trained a policy, one after the other.

    Raises:
        InputError: A plots file is missing, has no step column or holds something that is no number.
    """
    points: dict[float, Mapping[str, float]] = {}
    breaks: list[float] = []
    for stage in stages:
        offset = max(points, default=0.0)
        if points:
            breaks.append(offset)
        read = _points(root / stage_file("plots", stage, ".csv"), stage)
        points |= {offset + step: values for step, values in read.items()}
    steps = sorted(points)
    names = dict.fromkeys(name for values in points.values() for name in values)
    return Curve(
        steps=np.array(steps),
        series={name: np.array([points[s].get(name, math.nan) for s in steps]) for name in names},
        breaks=tuple(breaks),
    )


def _text(path: Path, stage: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; `dvc repro {stage}` makes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _rows(path: Path, stage: str) -> tuple[Answer, ...]:
    rows = []
    # JSON may hold U+2028 and its like unescaped, so only a newline ends a row
    for number, line in enumerate(_text(path, stage).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(Answer.model_validate_json(line))
            except ValidationError as error:
                raise InputError(f"{path}, line {number}: {_first(error)}") from None
    if not rows:
        raise InputError(f"{path} holds no answer")
    return tuple(rows)


def _cost(path: Path, stage: str) -> Cost:
    try:
        return Cost.model_validate(json.loads(_text(path, stage)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {_first(error)}") from None


def _points(path: Path, stage: str) -> dict[float, Mapping[str, float]]:
    reader = csv.DictReader(_text(path, stage).splitlines())
    if "step" not in (reader.fieldnames or ()):
        raise InputError(f"{path} has no column named step")
    points: dict[float, Mapping[str, float]] = {}
    for row in reader:
        try:
            values = {name: float(text) for name, text in row.items() if text}
            points[values.pop("step")] = values  # a resumed stage repeats steps; the later row holds
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {reader.line_num}: not a row of numbers ({error})") from None
    return points


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
