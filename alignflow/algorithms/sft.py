"""Supervised fine-tuning on the chosen responses: the start of every method.

L = −Σ_t log π(y_t | x, y_<t) over response tokens, divided by the tokens of the whole optimiser batch
(Ouyang et al. 2022, arXiv:2203.02155, step 1). The prompt carries no loss.
"""

from alignflow.types import Models, OfflineAlgorithm, Sequences, StepOutput


def count(batch: Sequences) -> float:
    """Return the response tokens of a micro-batch: the share of the denominator it brings."""
    return float(batch.response_mask[:, 1:].sum())


def step(models: Models, batch: Sequences) -> StepOutput:
    """Return −log π of each response token. (B, S-1)"""
    logprobs, _ = models.logprobs("policy", batch)
    mask = batch.response_mask[:, 1:]
    return StepOutput(losses=-logprobs, mask=mask, metrics={"nll": -logprobs[mask].detach()})


def build(models: Models) -> OfflineAlgorithm[Sequences]:
    """Bind the algorithm to models with the role ``policy``."""
    return OfflineAlgorithm(step=lambda batch: step(models, batch), count=count, tokens=Sequences.tokens)
