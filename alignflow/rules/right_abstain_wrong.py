"""The rule ``right_abstain_wrong``."""

from alignflow.rules.shared.outcome import outcome


def right_abstain_wrong(
    prompt: str,  # noqa: ARG001
    response: str,
    answer: str | None,
    *,
    right: float,
    abstain: float,
    wrong: float,
) -> float | None:
    """Reward a right answer highly and "I don't know" a little, and penalise a wrong answer, to reduce made-up answers.

    Applies if the data has an answer; ``outcome`` defines what counts as right.
    """
    if answer is None:
        return None
    return {"right": right, "abstain": abstain, "wrong": wrong}[outcome(response, answer)]
