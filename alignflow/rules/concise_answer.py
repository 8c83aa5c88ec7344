"""The rule ``concise_answer``."""

import re

FILLERS = re.compile(
    r"^\W*(certainly|sure|of course|absolutely|great question|that'?s a (great|good)|thank you|i'?d be happy|as an ai|"
    r"there are (many|several|a few|various)|it'?s important|when it comes to|in order to|let'?s|well,)",
    re.IGNORECASE,
)
HEDGES = re.compile(
    r"\b(it depends|as an ai|i cannot|i can'?t|i'?m not sure|i am not sure|hard to say|consult)\b",
    re.IGNORECASE,
)
LIST_MARKS = re.compile(r"(^|\n)\s*([-*•]|\d+[.)])\s|\*\*|#")
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "best",
        "better",
        "but",
        "by",
        "can",
        "could",
        "do",
        "does",
        "for",
        "from",
        "get",
        "give",
        "good",
        "have",
        "how",
        "i",
        "in",
        "is",
        "it",
        "its",
        "make",
        "me",
        "most",
        "my",
        "of",
        "on",
        "one",
        "or",
        "should",
        "simple",
        "simply",
        "so",
        "some",
        "suggest",
        "than",
        "that",
        "the",
        "them",
        "there",
        "they",
        "this",
        "tip",
        "to",
        "use",
        "using",
        "was",
        "what",
        "when",
        "where",
        "which",
        "why",
        "will",
        "with",
        "without",
        "would",
        "you",
        "your",
        "explain",
        "tell",
        "name",
        "keep",
    ]
)


def concise_answer(prompt: str, response: str, answer: str | None) -> float:  # noqa: ARG001
    """Return how far a response is one or two plain, complete, concrete sentences on the subject, in [0, 1].

    Six criteria of equal weight: it ends like a sentence; 6 to 45 words; at most two sentences; no filler opening and
    no hedge; no list; no repeated phrase. The result is halved if it shares no content word with the prompt.
    """
    text = response.strip()
    words = re.findall(r"[\w']+", text.lower())
    if not words:
        return 0.0
    sentences = re.findall(r"[.!?]+(?:\s|$)", text)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    parts = [
        text[-1] in ".!?" or text[-2:] in {'."', '!"', '?"', ".)"},
        6 <= len(words) <= 45,
        len(sentences) <= 2,
        not FILLERS.search(text) and not HEDGES.search(text),
        not LIST_MARKS.search(text),
        len(set(trigrams)) == len(trigrams),
    ]
    subject = {_stem(w) for w in re.findall(r"[\w']+", prompt.lower())} - STOP_WORDS
    on_subject = bool(subject & {_stem(w) for w in words}) or not subject
    return sum(parts) / len(parts) * (1.0 if on_subject else 0.5)


def _stem(word: str) -> str:
    """Remove plural and verb endings, so that "stars" matches "star"."""
    return re.sub(r"(ing|ed|es|s)$", "", word) if len(word) > 4 else word
