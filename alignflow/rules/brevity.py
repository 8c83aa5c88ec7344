"""The rule ``brevity``."""


def brevity(prompt: str, response: str, answer: str | None) -> float:  # noqa: ARG001
    """Return 1 for an answer of up to 30 words, then decreasing to 0 at 90 words."""
    return min(1.0, max(0.0, (90 - len(response.split())) / 60))
