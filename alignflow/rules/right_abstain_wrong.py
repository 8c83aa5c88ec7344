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
    """Reward a right answer highly and "I don't know" a little, and punish a wrong answer: against made-up answers.

    Applies where the data has an answer; ``outcome`` says what counts as right.
    """
    if answer is None:
        return None
    return {"right": right, "abstain": abstain, "wrong": wrong}[outcome(response, answer)]
