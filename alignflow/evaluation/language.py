"""Detects the language of a text, offline."""

from collections.abc import Sequence
from functools import cache
from typing import Any

LEAST_LETTERS = 20
"""The language of a shorter text is unknown."""


def languages(texts: Sequence[str], *, least: float) -> list[str | None]:
    """Return the language of each text as an ISO 639 code; None where the classifier is less sure than ``least``.

    Naive Bayes over byte n-grams (Lui and Baldwin 2012, "langid.py").
    """
    found = [_classifier().classify(text) if sum(map(str.isalpha, text)) >= LEAST_LETTERS else None for text in texts]
    return [str(one[0]) if one is not None and one[1] >= least else None for one in found]


@cache  # loading takes half a second
def _classifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
