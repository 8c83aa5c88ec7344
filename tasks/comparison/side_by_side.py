"""Choose sample answers fairly, and mark by word how each differs from the reference's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from alignflow.evaluation.win_rates import Floats
from tasks.comparison.compute import values
from tasks.comparison.read_evaluations import Answer
from tasks.comparison.results import Comparison
from tasks.comparison.wording import signed
from tasks.judges import PROXY, judge_title
from tasks.policies import REFERENCE

RANDOM_SAMPLES = 3
"""Number of shown prompts that the seed alone chose."""
LONGEST_TEXT = 4000
"""Characters of a text that are shown; a page stays below a megabyte with any evaluation."""
ALIKE = 0.3
"""Below this share of common words differences are not marked: the marks would hide the text."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text: in both answers (``same``), only in this one (``new``) or only in the reference (``gone``)."""

    kind: str
    text: str


@dataclass(frozen=True)
class ShownAnswer:
    """A policy's answer as the page shows it."""

    answer: Answer
    pieces: tuple[Piece, ...]
    note: str
    """How it differs as a whole; empty for the reference and for answers marked word by word."""


@dataclass(frozen=True)
class ShownPrompt:
    """One prompt and what every policy answered."""

    reason: str
    prompt: str
    answers: Mapping[str, ShownAnswer]
    """By policy, in the order of their table."""


def choose(comparison: Comparison) -> tuple[ShownPrompt, ...]:
    """Choose the answers to show: a seeded draw of prompts, then the largest gain and loss by an independent judge.

    Gain is the judge's value minus that of the reference's same sample, averaged over the trained policies (where there
    is none, over all others); the proxy decides between equal gains. The judge is the first independent one; without
    any, the proxy. No prompt is shown twice, and a drawn prompt is shown with its first answers.
    """
    judge = next((judge for judge in comparison.judges if judge != PROXY), PROXY)
    gain, score = (_gain(comparison, each) for each in (judge, PROXY))
    ranked = np.lexsort((score.ravel(), gain.ravel()))  # the last key is the first to decide
    extremes = [divmod(int(ranked[end]), comparison.samples) for end in (-1, 0)]
    extremes = list({prompt: (prompt, sample) for prompt, sample in extremes[::-1]}.values())[::-1]
    rest = [i for i in range(len(gain)) if i not in dict(extremes)]
    random = np.random.default_rng(comparison.method.resampling.seed)
    reasons = [((i, 0), "Random") for i in sorted(random.permutation(rest)[:RANDOM_SAMPLES].tolist())]
    for at, direction in zip(extremes, ("gain", "loss"), strict=False):
        reasons.append((at, f"Largest {direction} by the {judge_title(judge)} ({signed(float(gain[at]))} on average)"))
    return tuple(_sample(comparison, *at, reason) for at, reason in reasons)


def differences(text: str, before: str) -> tuple[Piece, ...]:
    """Return the text in pieces, with the words of another text that it lacks in between."""
    new, old = _words(text), _words(before)
    pieces: list[Piece] = []
    was, now = ([word.strip() for word in words] for words in (old, new))
    for kind, a, b, c, d in SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(Piece("same", "".join(new[c:d])))
            continue
        for name, words in (("gone", "".join(old[a:b])), ("new", "".join(new[c:d]))):
            marked = words.rstrip()
            pieces += [Piece(name, marked), Piece("same", words[len(marked) :])]  # a space is not marked
    return tuple(piece for piece in pieces if piece.text)


def shorten(text: str) -> str:
    """Cut a very long text and say so."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n… ({len(text) - LONGEST_TEXT} more characters)"


def _words(text: str) -> list[str]:
    """Cut a text into words, each with the white space after it; joined they are the text."""
    return re.findall(r"^\s+|\S+\s*", text)


def _shown(answer: Answer, reference: Answer) -> ShownAnswer:
    text, before = shorten(answer.response), shorten(reference.response)
    plain = (Piece("same", text),)
    if answer is reference:
        return ShownAnswer(answer, plain, "")
    if text == before:
        return ShownAnswer(answer, plain, "the reference's answer, word for word")
    pieces = differences(text, before)
    common = sum(len(piece.text.split()) for piece in pieces if piece.kind == "same")
    if common < ALIKE * max(len(text.split()), len(before.split()), 1):
        return ShownAnswer(answer, plain, "few words in common with the reference's answer")
    return ShownAnswer(answer, pieces, "")


def _gain(comparison: Comparison, judge: str) -> Floats:
    trained = [result.policy for result in comparison.candidates]
    others = trained or [policy for policy in comparison.policies if policy != REFERENCE]
    rows: Sequence[Floats] = [values(comparison.answers[policy], judge) for policy in others]
    return np.asarray(np.mean(rows, axis=0) - values(comparison.answers[REFERENCE], judge), dtype=np.float64)


def _sample(comparison: Comparison, prompt: int, sample: int, reason: str) -> ShownPrompt:
    reference = comparison.answers[REFERENCE][prompt][sample]
    return ShownPrompt(
        reason=reason,
        prompt=reference.prompt,
        answers={policy: _shown(rows[prompt][sample], reference) for policy, rows in comparison.answers.items()},
    )
