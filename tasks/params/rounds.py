"""The rounds of iterative DPO in ``params.yaml``: a map that follows from the number of shards."""

from collections.abc import Mapping


def rounds_of(shards: int) -> dict[str, dict[str, str | int]]:
    """Return the ``iterative_dpo.rounds`` map for m shards: each round starts from the one before."""
    return {
        f"round-{i}": {
            "previous": "artifacts/sft" if i == 1 else f"artifacts/iterative_dpo/round-{i - 1}",
            "shard": i,
            "of": shards,
        }
        for i in range(1, shards + 1)
    }


def last_of(shards: int) -> str:
    """Return the name of the last round."""
    return f"round-{shards}"


def check_rounds(shards: int, rounds: Mapping[str, Mapping[str, object]], last: str) -> None:
    """Check that ``rounds`` and ``last`` match the number of shards.

    Raises:
        ValueError: they do not match.
    """
    if rounds != rounds_of(shards) or last != last_of(shards):
        raise ValueError(
            f"rounds and last do not match shards: {shards}; run `alignflow set iterative_dpo.shards={shards}` "
            "to rewrite them"
        )
