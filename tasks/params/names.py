"""Unknown names in ``params.yaml``: the nearest known one, or all of them."""

import difflib
from collections.abc import Collection


def closest(name: str, known: Collection[str], before: str = "") -> str:
    """Return "; did you mean X?" for the most similar known name; empty if none is similar."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {before}{near[0]}?" if near else ""


def suggest(name: str, known: Collection[str], before: str = "") -> str:
    """Return what to write instead of an unknown name: the nearest known one, or the list of all."""
    return closest(name, known, before) or f"; known here: {', '.join(known)}"
