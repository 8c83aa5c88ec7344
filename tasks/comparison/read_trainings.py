"""Read the files of the training stages: costs, learning curves and the reports on the reward models."""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from tasks.comparison.inputs import InputError, Share, record, text
from tasks.paths import stage_file
from tasks.stages import TRAINING


class Cost(BaseModel):
    """What training took; the keys that every training stage's metrics file has."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    train_seconds: Annotated[FiniteFloat, Field(ge=0)]
    trained_tokens: Annotated[FiniteFloat, Field(ge=0)]
    peak_memory_gib: Annotated[FiniteFloat, Field(ge=0)]


class AccuracyBin(BaseModel):
    """Held-out pairs with a quantity between ``low`` and ``high``; None where it is open-ended or empty."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    low: FiniteFloat | None
    high: FiniteFloat | None
    pairs: Annotated[int, Field(ge=0)]
    accuracy: Share | None


class Calibration(BaseModel):
    """Held-out pairs to which the model gave about the same probability of its order."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    probability: Share | None
    observed: Share | None
    pairs: Annotated[int, Field(ge=0)]


class RewardReport(BaseModel):
    """What ``artifacts/<reward model>/report.json`` says of a reward model on held-out pairs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pairs: Annotated[int, Field(ge=0)]
    accuracy: Share | None
    """With the bounds of its interval; like all below, None where there are no pairs."""
    low: Share | None
    high: Share | None
    margins: list[FiniteFloat]
    """Score of the chosen answer minus that of the rejected one, a pair."""
    by_margin: list[AccuracyBin]
    by_length_difference: list[AccuracyBin]
    calibration: list[Calibration]
    calibration_error: Share | None
    length_correlation: FiniteFloat | None
    shorter_wins: Share | None
    """Accuracy of a judge that always takes the shorter answer."""


@dataclass(frozen=True)
class Curve:
    """A policy's learning curve; the stages that trained it follow each other on the step axis."""

    steps: NDArray[np.float64]
    series: Mapping[str, NDArray[np.float64]]
    """Values by metric; NaN where a step has none. (steps,)"""
    breaks: tuple[float, ...]
    """Steps at which a later stage took over (rounds of iterative DPO)."""


def read_cost(root: Path, stages: Iterable[str]) -> Cost:
    """Read the cost of the stages that trained a policy: times and tokens are summed, memory is the highest.

    Raises:
        InputError: A metrics file is missing or broken, or lacks a number.
    """
    costs = [record(root / stage_file(TRAINING, stage, ".json"), stage, Cost) for stage in stages]
    return Cost(
        train_seconds=sum(cost.train_seconds for cost in costs),
        trained_tokens=sum(cost.trained_tokens for cost in costs),
        peak_memory_gib=max(cost.peak_memory_gib for cost in costs),
    )


def read_reward_report(root: Path, folder: Path) -> RewardReport:
    """Read the report on the reward model in a folder; the stage of the same name writes it.

    Raises:
        InputError: The file is missing or broken, or lacks a key.
    """
    return record(root / folder / "report.json", folder.name, RewardReport)


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


def _points(path: Path, stage: str) -> dict[float, Mapping[str, float]]:
    reader = csv.DictReader(text(path, stage).splitlines())
    if "step" not in (reader.fieldnames or ()):
        raise InputError(f"{path} has no column named step")
    points: dict[float, Mapping[str, float]] = {}
    for row in reader:
        try:
            values = {name: float(cell) for name, cell in row.items() if cell}
            points[values.pop("step")] = values  # a resumed stage repeats steps; the later row holds
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {reader.line_num}: not a row of numbers ({error})") from None
    return points
