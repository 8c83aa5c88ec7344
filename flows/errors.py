"""Errors that a user can cause and correct: one message, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A message for the user: what is wrong and what to do about it."""


def nearest(given: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the closest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
