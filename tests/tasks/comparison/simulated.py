"""Answers and judges whose truth is known, through the real path from answers to a standing."""

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from alignflow.evaluation.win_rates import Floats, Resampling
from tasks.comparison.against_reference import against_reference, models
from tasks.comparison.compute import judged_pairs
from tasks.comparison.read_evaluations import Answer, AnswersByPrompt
from tasks.comparison.results import Method
from tasks.comparison.verdict import Standing, standing

JUDGES = ("score", "judge_model", "concise_answer")
LIMIT = 96
CONFIDENCE = 0.95


@dataclass(frozen=True)
class World:
    """How a policy differs from the reference, and what judges look at. Qualities have deviation 1 an answer."""

    gain: float = 0.0
    """Of the policy's quality over the reference's."""
    cut: tuple[float, float] = (0.0, 0.0)
    """Share of answers that are cut off: of the reference, of the policy."""
    penalty: float = 3.0
    """Judges take so much from an answer that is cut off."""
    longer: float = 0.0
    """Tokens by which the policy's answers are longer."""
    liking: float = 0.0
    """Judges give so much for each token."""
    kin: float = 0.8
    """Correlation of the judges' opinions on the quality of an answer."""
    varied: float = 0.3
    """Deviation of the gain from prompt to prompt, the same for all judges."""


def answers(random: np.random.Generator, world: World, prompts: int, samples: int) -> AnswersByPrompt:
    """Return one policy's answers; prompts make some answers longer and more often cut off than others."""
    prompt, own = np.random.default_rng(1).normal(size=(prompts, 1)), random.normal(size=(2, prompts, samples))
    share = world.cut[1]
    threshold = np.sqrt(2) * NormalDist().inv_cdf(1 - share) if share else np.inf
    cut = (prompt + own[0]) > threshold
    length = np.clip(np.rint(45 + 6 * prompt + 10 * own[1] + world.longer), 1, LIMIT - 1)
    length = np.where(cut, LIMIT, length)
    shared = random.normal(size=(prompts, samples))
    seen = world.gain + world.varied * random.normal(size=(prompts, 1)) - world.penalty * cut + world.liking * length
    scores = {
        judge: seen + np.sqrt(world.kin) * shared + np.sqrt(1 - world.kin) * random.normal(size=shared.shape)
        for judge in JUDGES
    }
    return tuple(
        tuple(_answer(scores, int(length[i, k]), bool(cut[i, k]), i, k) for k in range(samples)) for i in range(prompts)
    )


def _answer(scores: dict[str, Floats], length: int, cut: bool, i: int, k: int) -> Answer:
    values = {judge: float(each[i, k]) for judge, each in scores.items()}
    return Answer.model_construct(
        prompt_id=str(i),
        sample=k,
        response=str(values["score"]),
        score=values["score"],
        judges={judge: value for judge, value in values.items() if judge != "score"},
        response_length=length,
        truncated=cut,
    )


def gain(rate: float, varied: float = World.varied) -> float:
    """Return the gain with which a policy truly wins so often: P(win) = Φ(gain / √(1 + 1 + varied²))."""
    return NormalDist().inv_cdf(rate) * float(np.sqrt(2 + varied**2))


def standings(seed: int, world: World, prompts: int, samples: int, policies: int, resamples: int) -> list[Standing]:
    """Return where so many policies, all of one kind, stand in one experiment."""
    random = np.random.default_rng(seed)
    reference = answers(
        random, replace(world, gain=0.0, longer=0.0, varied=0.0, cut=(0.0, world.cut[0])), prompts, samples
    )
    pairs = {
        str(name): judged_pairs(answers(random, world, prompts, samples), reference, JUDGES, {})
        for name in range(policies)
    }
    method = Method(Resampling(resamples, CONFIDENCE, seed), length_ridge=0.1, kl_levels=1)
    found = against_reference(pairs, list(pairs), models(pairs, list(pairs), 0.1), method)
    return [standing(each, world.cut[1] < world.cut[0], CONFIDENCE) for each in found.values()]
