"""Steps of an answer, as runs of its tokens.

A step ends with the first token whose text holds the delimiter, or with a token that ends the turn. So the delimiter
belongs to the step that it closes, and the next step begins where a token does, whatever the tokenizer joins. Nothing
is tokenised again: steps are slices of the sampled ids.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from alignflow.types import Step


@dataclass(frozen=True)
class Cutter:
    """Which tokens end a step."""

    ends: frozenset[int]
    """Tokens whose text holds the delimiter."""
    blank: frozenset[int]
    """Tokens of white space alone."""
    turn_ends: frozenset[int]
    """Tokens that end the turn."""

    def cut(self, tokens: Sequence[int]) -> list[Step]:
        """Return the steps; joined they are the tokens.

        A step of white space alone belongs to the one after it, or to the one before where none follows.
        """
        steps: list[Step] = []
        start = 0
        for place, token in enumerate(tokens, start=1):
            closes = token in self.ends and not self.blank.issuperset(tokens[start:place])
            if closes or token in self.turn_ends:
                steps.append(tuple(tokens[start:place]))
                start = place
        rest = tuple(tokens[start:])
        if rest and steps and self.blank.issuperset(rest):
            steps[-1] += rest
        elif rest:
            steps.append(rest)
        return steps

    def finishes(self, step: Step) -> bool:
        """Return whether a step ends the turn."""
        return step[-1] in self.turn_ends

    def whole(self, step: Step) -> bool:
        """Return whether a step has an end; the last one of an answer that was cut off has none."""
        return step[-1] in self.turn_ends or not self.ends.isdisjoint(step)


def cutter(tokenizer: Any, delimiter: str, turn_ends: Collection[int]) -> Cutter:
    """Return how answers are cut into steps.

    Args:
        tokenizer: of the policy.
        delimiter: one character.
        turn_ends: tokens that end a response.

    Raises:
        NoSuchDelimiter: no token that is not a control token holds it.
    """
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(turn_ends)
    ordinary = [i for i in range(len(tokenizer)) if i not in control]
    texts = dict(zip(ordinary, tokenizer.batch_decode([[i] for i in ordinary]), strict=True))
    ends = frozenset(i for i, text in texts.items() if delimiter in text)
    if not ends:
        fitting = next((each for each in ("\n", ".", " ") if any(each in text for text in texts.values())), None)
        raise NoSuchDelimiter(f"no token of the model holds {delimiter!r}, so no step would end; {fitting!r} would do")
    blank = frozenset(i for i, text in texts.items() if text and not text.strip())
    return Cutter(ends, blank, frozenset(turn_ends))


class NoSuchDelimiter(ValueError):
    """The delimiter of steps is in no token."""
