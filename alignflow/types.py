"""The program's nouns: frozen records of tensors that the layers hand to each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

Metrics = Mapping[str, float]
Log = Callable[[int, Metrics], None]
"""Receives an optimiser step (counted from 1) and its metrics."""
Carry = Mapping[str, float]
"""Values that an algorithm passes from one rollout batch to the next; part of a checkpoint."""
Step = tuple[int, ...]
"""A part of an answer that is chosen or rejected on its own, as token ids."""
Batch = TypeVar("Batch")


class Example(NamedTuple):
    """One prompt with one response, as token ids; the response ends with end-of-sequence unless cut off."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


class Pair(NamedTuple):
    """One prompt with a preferred and a dispreferred response, as token ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    margin: float = 0.0
    """By how much the chosen response is better, where the data says so."""
    wins: tuple[float, float] = (1.0, 0.0)
    """How often chosen and rejected win against the policy's responses; a label alone says always and never."""
    smoothing: float | None = None
    """Probability that this label is wrong; None: that of the settings."""


@dataclass(frozen=True)
class Sequences:
    """Prompts joined with responses; ``collate`` pads on the right, the models take padding on either side."""

    input_ids: Tensor
    """Token ids; padding holds any valid id. (B, S)"""
    attention_mask: Tensor
    """True where a token is real. (B, S) bool"""
    response_mask: Tensor
    """True where a token belongs to the response. (B, S) bool"""

    def to(self, device: object) -> "Sequences":
        """Return the same records on a device."""
        return Sequences(
            self.input_ids.to(device),  # type: ignore[call-overload]
            self.attention_mask.to(device),  # type: ignore[call-overload]
            self.response_mask.to(device),  # type: ignore[call-overload]
        )

    def tokens(self) -> int:
        """Return how many tokens are real."""
        return int(self.attention_mask.sum())

    def token_rows(self) -> list[list[int]]:
        """Return each row's real tokens, without padding."""
        return _picked(self.input_ids, self.attention_mask)

    def prompts(self) -> list[list[int]]:
        """Return each row's real tokens before its response; the whole row where no response counts."""
        before = self.response_mask.long().cumsum(1) == 0
        return _picked(self.input_ids, self.attention_mask & before)

    def counting(self, rows: Tensor) -> "Sequences":
        """Return the same records where only the responses of some rows count. (B,) bool"""
        return Sequences(self.input_ids, self.attention_mask, self.response_mask & rows[:, None])


def _picked(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(ids.cpu(), mask.cpu(), strict=True)]


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses and their rewards."""

    sequences: Sequences
    scores: Tensor
    """Reward of the whole response; 0 where ``scored`` is False. (B,)"""
    scored: Tensor
    """True where a source of reward applies; the others train nothing. (B,) bool"""
    truncated: Tensor
    """True where the length limit came before end-of-sequence. (B,) bool"""
    sampled_logprobs: Tensor | None = None
    """The sampler's own log-probs of its tokens, at the sampling temperature; zero outside the response. (B, S-1)"""
    penalties: Tensor | None = None
    """What was subtracted in ``scores`` for a missing end; None where nothing was. (B,)"""


class Models(Protocol):
    """What an algorithm may compute with the models; roles are adapters over one base."""

    def logprobs(
        self, role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probs of the response tokens, and entropies when asked for; zero elsewhere. (B, S-1) each."""
        ...

    def scores(self, role: str, batch: Sequences) -> Tensor:
        """Return the scalar of the role's head on the last response token. (B,) float32"""
        ...

    def values(self, role: str, batch: Sequences) -> Tensor:
        """Return the value before each predicted token; zero outside the response. (B, S-1) float32"""
        ...


@dataclass(frozen=True)
class StepOutput:
    """What a step gives the loop: losses that are not reduced yet."""

    losses: Tensor
    """One loss an example (B,) or a token (B, T)."""
    mask: Tensor
    """True where a loss counts; same shape."""
    metrics: Mapping[str, Tensor]
    """Values that the loop averages over all micro-batches of the step, any shape."""


@dataclass(frozen=True)
class SamplingConfig:
    """The sampling settings that a loss depends on."""

    temperature: float
    importance_cap: float | None
    """Largest importance weight of a token; None leaves all at 1."""
    max_response_length: int
    """Tokens."""


class ForwardPasses(Protocol):
    """Forward passes over a whole rollout batch: without gradient, in micro-batches, at the sampling temperature."""

    def logprobs(self, role: str, sequences: Sequences) -> Tensor:
        """Return log-probs of the response tokens; zero elsewhere. (B, S-1)"""
        ...

    def policy_and_reference(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Return the log-probs of policy and reference. (B, S-1) each"""
        ...

    def values(self, role: str, sequences: Sequences) -> Tensor:
        """Return the value before each predicted token; zero outside the response. (B, S-1)"""
        ...


@dataclass(frozen=True)
class OfflineAlgorithm(Generic[Batch]):
    """How the loop on stored data trains with an algorithm that is bound to models and settings."""

    step: Callable[[Batch], StepOutput]
    """Losses of a micro-batch."""
    count: Callable[[Batch], float]
    """What a micro-batch adds to the denominator of the loss."""
    tokens: Callable[[Batch], int]
    """Real tokens of a micro-batch, for the speed metric."""


@dataclass(frozen=True)
class OnlineAlgorithm(Generic[Batch]):
    """How the loop on the policy's own samples trains with an algorithm that is bound to models and settings."""

    samples: int
    """Responses to each prompt, side by side."""
    prepare: Callable[[Rollouts, Carry, bool], tuple[Batch, dict[str, Tensor], Carry]]
    """Log-probs, values and advantages of the whole rollout batch.

    The last argument says whether the policy's log-probs before the updates, and ``kl/reference``, are needed: the
    check of the start needs them, and so does a second update. Otherwise a step may use its own log-probs.
    ``kl/reference`` is always over all sampled responses, also those that do not train.
    """
    steps: Sequence[Callable[[Batch], StepOutput]]
    """Losses to add up in each update."""
    count: Callable[[Batch], float]
    """What a micro-batch adds to the denominator of the loss."""
    start: Carry
    """What is carried into the first rollout batch."""
    again: Callable[[Rollouts], Tensor] | None = None
    """Which prompts' responses to replace by responses to other prompts; None replaces none. (P,) bool"""
    limit: int = 0
    """How often at most."""
