"""The language that a text is written in, told without a network."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

LEAST_LETTERS = 20
"""A shorter text is in no language that could be told."""
LEAST_PROBABILITY = 0.9
"""Of a language; below it none is named."""


@cache  # half a second to load
def recogniser() -> Callable[[str], str | None]:
    """Return the function that names a text's language (ISO 639-1), or None where it cannot be told."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def name(text: str) -> str | None:
        if sum(letter.isalpha() for letter in text) < LEAST_LETTERS:
            return None
        language, probability = model.classify(text)
        return str(language) if probability >= LEAST_PROBABILITY else None

    return name


def languages(texts: Iterable[str]) -> dict[str, int]:
    """Return how many texts are in each language, the most frequent first; "?" counts the unclear ones."""
    name = recogniser()
    return dict(Counter(name(text) or "?" for text in texts).most_common())
