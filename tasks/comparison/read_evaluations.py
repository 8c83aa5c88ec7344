"""Read the files of the evaluations: answers, snapshots along training, quality, an LLM's judgements."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from alignflow.evaluation.trajectories import Trajectory
from alignflow.evaluation.win_rates import Floats, PromptMismatchError, same_order
from tasks.comparison.inputs import InputError, Share, listed, record, rows
from tasks.policies import REFERENCE

OUTCOMES = ("right", "abstain", "wrong")
"""Of a rule task's row, the best first."""


class Answer(BaseModel):
    """One row of ``evaluations/<policy>/responses.jsonl``; further keys are left for other readers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    prompt_id: str
    sample: Annotated[int, Field(ge=0)]
    """Which of the prompt's answers this is, from 0; all policies used the same random numbers for the same sample."""
    prompt: str
    response: str
    score: FiniteFloat
    """The proxy: what training maximised, without the penalty for a missing end."""
    judges: dict[str, FiniteFloat]
    """The value of each independent judge; none of them was used in training."""
    kl: FiniteFloat
    """To the reference at ``Quality.kl_temperature``, nats for the whole response."""
    response_length: Annotated[int, Field(ge=0)]
    """Tokens."""
    truncated: bool
    repetition: Share
    """Share of repeated word trigrams."""
    language: str | None
    """ISO code found in the response; None where unsure."""
    prompt_language: str | None
    outcome: Literal["right", "abstain", "wrong"] | None
    """Of a question whose answer is known; None elsewhere."""

    @property
    def drifted(self) -> bool | None:
        """Say whether the response is in another language than its prompt; None where either is unsure."""
        return self.language != self.prompt_language if self.language and self.prompt_language else None


class Quality(BaseModel):
    """Figures of ``metrics/evaluate/<policy>.json`` that belong to no single answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kl_temperature: Annotated[FiniteFloat, Field(gt=0, alias="kl/temperature")]
    """At which the KL of the answers was taken."""
    distinct_1: Share
    distinct_2: Share
    perplexity: Annotated[FiniteFloat, Field(gt=0)] | None = Field(None, alias="capability/perplexity")
    """On held-out chosen text."""
    multiple_choice: Share | None = Field(None, alias="capability/multiple_choice")
    """Accuracy of the small fixed set."""


class SnapshotValues(BaseModel):
    """One entry of ``evaluations/<policy>/trajectory.json``: a value a prompt, always the same first prompts.

    Each the mean over the prompt's answers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: Annotated[int, Field(ge=0)]
    label: str
    kl: Annotated[list[FiniteFloat], Field(min_length=1)]
    score: list[FiniteFloat]
    judges: dict[str, list[FiniteFloat]]
    response_length: list[FiniteFloat]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        lengths = {"score": len(self.score), "response_length": len(self.response_length)} | {
            f"judges.{name}": len(values) for name, values in self.judges.items()
        }
        for key, length in lengths.items():
            if length != len(self.kl):
                raise ValueError(f"{key} has {length} values, kl has {len(self.kl)}")
        return self


class Judgement(BaseModel):
    """One row of ``judgements/llm.jsonl``: an LLM's judgement of a policy's answer against the reference's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_id: str
    policy: str
    outcome: Annotated[FiniteFloat, Field(ge=0, le=1, multiple_of=0.5)] | None
    """1 for a win, ½ for a tie, 0 for a loss, of both first answers to the prompt; null where no verdict was read."""


AnswersByPrompt = tuple[tuple[Answer, ...], ...]
"""The answers of one policy by prompt, in order of their samples; the same number to each prompt."""


def read_answers(root: Path, policies: Sequence[str]) -> dict[str, AnswersByPrompt]:
    """Read the policies' answers, in the reference's order of prompts.

    Raises:
        InputError: A file is missing or broken, or policies differ in prompts, answers to a prompt or judges.
    """
    paths = {policy: root / "evaluations" / policy / "responses.jsonl" for policy in policies}
    found = {policy: _by_prompt(path, rows(path, f"evaluate@{policy}", Answer)) for policy, path in paths.items()}
    ids, first = list(found[REFERENCE]), next(iter(found[REFERENCE].values()))
    ordered = {}
    for policy, answers in found.items():
        try:
            order = same_order(list(answers), ids)
        except PromptMismatchError as error:
            raise InputError(f"{paths[policy]}, compared with {paths[REFERENCE]}: {error}") from None
        by_prompt = list(answers.values())
        ordered[policy] = tuple(by_prompt[i] for i in order)
        for mine, theirs in zip(ordered[policy], found[REFERENCE].values(), strict=True):
            _same_question(policy, paths, mine, theirs)
            for row in mine:
                if sorted(row.judges) != sorted(first[0].judges):
                    raise InputError(
                        f"{paths[policy]}: judges of prompt {row.prompt_id!r} are {sorted(row.judges)}, not "
                        f"{sorted(first[0].judges)}; `dvc repro evaluate@{policy}` judges it again"
                    )
    return ordered


def _same_question(policy: str, paths: Mapping[str, Path], mine: Sequence[Answer], theirs: Sequence[Answer]) -> None:
    what = f"{paths[policy]}: prompt {mine[0].prompt_id!r}"
    if any(row.prompt != theirs[0].prompt for row in mine):
        raise InputError(f"{what} has another text than in {paths[REFERENCE]}")
    if len(mine) != len(theirs):
        raise InputError(f"{what} was answered {len(mine)} times, not {len(theirs)} as in {paths[REFERENCE]}")


def _by_prompt(path: Path, answers: Sequence[Answer]) -> dict[str, tuple[Answer, ...]]:
    """Return the answers by prompt, in order of their samples; the same number to each prompt."""
    if not answers:
        raise InputError(f"{path} holds no answer")
    found: dict[str, list[Answer]] = {}
    for row in answers:
        found.setdefault(row.prompt_id, []).append(row)
    expected = list(range(1 + max(row.sample for row in answers)))
    for prompt_id, mine in found.items():
        mine.sort(key=lambda row: row.sample)
        if (samples := [row.sample for row in mine]) != expected:
            raise InputError(f"{path}: prompt {prompt_id!r} has the answers {samples}, not {expected}")
    return {prompt_id: tuple(mine) for prompt_id, mine in found.items()}


def read_trajectories(
    root: Path, policies: Sequence[str], reference: AnswersByPrompt
) -> dict[str, tuple[tuple[str, ...], Trajectory]]:
    """Read the snapshots of all policies that have any: their labels and values, the reference first.

    Raises:
        InputError: A file is missing or broken, or its prompts or judges are not those of the others.
    """
    read = {policy: _trajectory(root, policy, reference) for policy in policies}
    found = {policy: each for policy, each in read.items() if each}
    sizes = {policy: path.kl.shape[1] for policy, (_, path) in found.items()}
    for policy, size in sizes.items():
        first = next(iter(sizes))
        if size != sizes[first]:
            raise InputError(
                f"{_trajectory_file(root, policy)}: 0.kl has {size} values, that of {first} has {sizes[first]}"
            )
    return found


def read_quality(root: Path, policy: str) -> Quality:
    """Read the figures of a policy over all its answers, or over other texts.

    Raises:
        InputError: The file is missing or broken, or lacks a number.
    """
    return record(root / "metrics" / "evaluate" / f"{policy}.json", f"evaluate@{policy}", Quality)


def read_judgements(root: Path, judge: str, policies: Sequence[str], prompt_ids: Sequence[str]) -> Mapping[str, Floats]:
    """Read an LLM's outcomes by policy, NaN for a prompt that it did not judge; empty without such a judge. (P, 1)

    Raises:
        InputError: The file is broken, or names a policy or prompt that was not evaluated, or one twice.
    """
    path = root / "judgements" / f"{judge}.jsonl"
    if not path.exists():  # a judge that is never required
        return {}
    position = {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
    found: dict[str, Floats] = {}
    for number, row in enumerate(rows(path, f"{judge}_judge", Judgement), start=1):
        if row.policy not in policies or row.policy == REFERENCE:
            raise InputError(f"{path}, row {number}: policy: {row.policy!r} is not compared with the reference")
        if row.prompt_id not in position:
            raise InputError(f"{path}, row {number}: prompt_id: {row.prompt_id!r} was not evaluated")
        if row.outcome is None:
            continue
        outcomes = found.setdefault(row.policy, np.full((len(prompt_ids), 1), np.nan))
        if np.isfinite(outcomes[position[row.prompt_id]]):
            raise InputError(f"{path}, row {number}: {row.policy} on {row.prompt_id!r} was judged before")
        outcomes[position[row.prompt_id]] = row.outcome
    return found


def _trajectory_file(root: Path, policy: str) -> Path:
    return root / "evaluations" / policy / "trajectory.json"


def _trajectory(root: Path, policy: str, reference: AnswersByPrompt) -> tuple[tuple[str, ...], Trajectory] | None:
    path = _trajectory_file(root, policy)
    snapshots = listed(path, f"evaluate@{policy}", SnapshotValues)
    if not snapshots:
        return None
    size, names = len(snapshots[0].kl), list(reference[0][0].judges)
    for i, snapshot in enumerate(snapshots):
        if len(snapshot.kl) != size or size > len(reference):
            raise InputError(f"{path}: {i}.kl has {len(snapshot.kl)} values, expected {min(size, len(reference))}")
        if missing := set(names) - set(snapshot.judges):
            raise InputError(f"{path}: {i}.judges lacks {', '.join(sorted(missing))}")
    first = reference[:size]  # snapshots answer the first prompts, in the order of the evaluation
    kl = np.array([[0.0] * size, *(s.kl for s in snapshots)])
    values = {"score": np.array([[fmean(row.score for row in rows) for rows in first], *(s.score for s in snapshots)])}
    values |= {
        name: np.array(
            [[fmean(row.judges[name] for row in rows) for rows in first], *(s.judges[name] for s in snapshots)]
        )
        for name in names
    }
    labels = ("reference", *(s.label for s in snapshots))
    return labels, Trajectory(np.maximum(kl, 0), values)  # rounding may leave a KL slightly below 0
