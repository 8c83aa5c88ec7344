"""Rules that judge single steps, by name: where they exist, the first wrong step is known without sampling."""

import re
from collections.abc import Callable, Sequence

StepRule = Callable[[str, Sequence[str], str, str | None], bool | None]
"""Prompt, steps before, step, right answer -> whether the step is right; None where the rule cannot tell."""

ADD = re.compile(r"\b(\d+) (?:and|\+) (\d+)\b")


def column_addition(prompt: str, before: Sequence[str], step: str, answer: str | None) -> bool | None:
    """Judge a step of a sum that is written out by columns from the right, as in data/addition.jsonl.

    Step k must be the k-th column, digits of both numbers and a carry as terms: ``4+9+1=14``. After the last column
    comes the sum, as the last number of its step.
    """
    found = ADD.search(prompt)
    if not found:
        return None
    columns = written_columns(int(found[1]), int(found[2]))
    if len(before) < len(columns):
        return step.strip() == columns[len(before)]
    if answer is None:
        return None
    numbers = re.findall(r"\d+", step)
    return bool(numbers) and numbers[-1] == answer


def written_columns(first: int, second: int) -> list[str]:
    """Return the columns of a sum from the right, each with its carry."""
    columns, carry = [], 0
    for place in range(max(len(str(first)), len(str(second)))):
        terms = [number // 10**place % 10 for number in (first, second)] + ([carry] if carry else [])
        columns.append(f"{'+'.join(map(str, terms))}={sum(terms)}")
        carry = sum(terms) // 10
    return columns


STEP_RULES: dict[str, StepRule] = {"column_addition": column_addition}
