"""Writes ``addition.jsonl``: sums that are written out by columns, with one wrong column in every rejected answer.

``python data/make_addition.py > data/addition.jsonl`` writes the bundled file again, byte for byte.
"""

import json
import random
import sys
from collections.abc import Iterator

ROWS = 600
SEED = 20
SLIPS = (-2, -1, 1, 2)
"""What a wrong column is off by; its carry, and all that follows, are those of the wrong result."""


def worked(first: int, second: int, slips: tuple[int, int, int] = (0, 0, 0)) -> str:
    """Return the sum of two numbers of three digits, a column a line from the right, each off by its slip."""
    lines, digits, carry = [], "", 0
    for place, slip in enumerate(slips):
        terms = [number // 10**place % 10 for number in (first, second)] + ([carry] if carry else [])
        total = sum(terms) + slip
        lines.append(f"{'+'.join(map(str, terms))}={total}\n")
        carry, digits = total // 10, f"{total % 10}{digits}"
    return "".join([*lines, f"Answer: {int(str(carry) + digits)}"])


def rows() -> Iterator[dict[str, str]]:
    """Yield the rows, each of another pair of numbers."""
    draw, seen = random.Random(SEED), set[tuple[int, int]]()
    while len(seen) < ROWS:
        first, second = draw.randint(100, 999), draw.randint(100, 999)
        place, slip = draw.randrange(3), draw.choice(SLIPS)
        wrong = tuple(slip if each == place else 0 for each in range(3))
        rejected = worked(first, second, wrong)  # type: ignore[arg-type]
        if (first, second) in seen or "=-" in rejected:
            continue
        seen.add((first, second))
        yield {
            "prompt": f"Add {first} and {second}. One column a line, from the right.",
            "chosen": worked(first, second),
            "rejected": rejected,
            "answer": str(first + second),
        }


if __name__ == "__main__":
    for row in rows():
        sys.stdout.write(json.dumps(row) + "\n")
