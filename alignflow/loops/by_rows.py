"""Forward passes without gradients over many rows, in micro-batches, distributed over all processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow import distributed
from alignflow.data.collate import sequence_lengths, take_rows
from alignflow.loops.order import micro_batches
from alignflow.memory import Budget, fitting, part
from alignflow.models.roles import SharedBase
from alignflow.types import Sequences


def by_rows(
    forward: Callable[[Sequences], Tensor],
    sequences: Sequences,
    budget: Budget,
    *,
    columns: int | None = None,
    tell: Callable[[float], None] | None = None,
) -> Tensor:
    """Run a forward pass in micro-batches without gradients, over all processes, and return its rows in order.

    Args:
        forward: returns one row for each row of its batch: (b,) or (b, s-1).
        sequences: all rows. B
        budget: maximum number of tokens of a micro-batch; halved when memory runs out.
        columns: width of the result, e.g. S-1 with zeros after a row's end; None for one number per row.
        tell: receives the share of the micro-batches that is done, after each.

    Returns:
        (B, columns) or (B,), float32, on the device of the sequences
    """
    size, lengths, prompts = len(sequences.input_ids), sequence_lengths(sequences), sequences.prompts()
    shape = (size,) if columns is None else (size, columns)
    result = torch.zeros(shape, device=sequences.input_ids.device)

    @torch.no_grad()
    def run(groups: Sequence[list[int]]) -> Tensor:
        for number, rows in enumerate(groups):
            with part(number):
                found = forward(take_rows(sequences, rows)).to(result.device)
            if columns is None:
                result[rows] = found
            else:
                result[rows, : found.shape[1]] = found
            if tell:
                tell((number + 1) / len(groups))
        return result

    mine = fitting(
        lambda most: micro_batches(lengths, range(size), most, prompts),
        run,
        lambda rows: sum(lengths[i] for i in rows),
        budget,
    )
    return distributed.sum_tensor(mine)  # a row of another process is 0 here


@dataclass(frozen=True)
class RowPasses:
    """The forward passes of an online algorithm (``types.ForwardPasses``)."""

    models: SharedBase
    temperature: float
    """Of sampling."""
    budget: Budget

    def logprobs(self, role: str, sequences: Sequences) -> Tensor:
        """Return log-probs of the response tokens; zero elsewhere. (B, S-1)"""
        return self._tokens(lambda batch: self.models.logprobs(role, batch, self.temperature)[0], sequences)

    def policy_and_reference(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Return the log-probs of policy and reference; one pass serves both if their weights are equal.

        (B, S-1) each
        """
        mine = self.logprobs("policy", sequences)
        if self.models.fingerprint("policy") == self.models.fingerprint("reference"):
            return mine, mine
        return mine, self.logprobs("reference", sequences)

    def values(self, role: str, sequences: Sequences) -> Tensor:
        """Return the value before each response token; zero elsewhere. (B, S-1)"""
        return self._tokens(lambda batch: self.models.values(role, batch), sequences)

    def _tokens(self, forward: Callable[[Sequences], Tensor], sequences: Sequences) -> Tensor:
        return by_rows(forward, sequences, self.budget, columns=sequences.input_ids.shape[1] - 1)
