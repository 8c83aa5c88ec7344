"""KTO against TRL 1.16's own trainer: same tiny model, adapters and rows; values and gradients of the adapter.

TRL's code collates the rows, runs its model and its loss; mismatched pairs are given to it. Differences by design:

| in TRL                                          | here                            | why
|-------------------------------------------------|---------------------------------|-----------------------------------------
| z₀ is of a device's batch of one forward pass   | of the optimiser batch          | micro-batches change no result
| a mean of each micro-batch's mean loss          | one mean over the whole batch   | the same
| y′ of row i is that of row i − 1                | of row i + 1                    | as in the authors' own code
| rows are paired once, in the order of the file  | in each step's optimiser batch  | each epoch has its own order
| a row may meet its own text or its own prompt   | not while others are there      | y′ is to be unrelated to x
| 1 − σ(h)                                        | σ(−h)                           | digits of a sure policy

The first three and the fifth are asserted below. Of several processes TRL averages their estimates before it clamps;
that is our number where all have as many rows.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.kto import KTOBatch, KTOConfig, Labelled, build, mismatched, reference_point
from alignflow.data.collate import collate, take_rows
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.types import Example
from tests.close import EXACT, close
from tests.oracle.sides import Result, agree, ids, open_ours, our_result, their_result, trainer_of

pytest.importorskip("trl", reason="the oracle extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, of deprecated names


def row(number: int, prompt: int, response: int, desirable: bool) -> Labelled:
    return Labelled(ids(prompt, number), (*ids(response - 1, number + 10), 97), desirable)


ROWS = [row(0, 3, 4, True), row(1, 6, 2, False), row(2, 2, 9, False), row(3, 5, 3, True)]


@torch.no_grad()
def logps(models: SharedBase, role: str, examples: Sequence[Example]) -> Tensor:
    sequences = collate(examples)
    return masked_sum(models.logprobs(role, sequences)[0], sequences.response_mask[:, 1:])


def log_ratios(models: SharedBase, examples: Sequence[Example]) -> Tensor:
    return logps(models, "policy", examples) - logps(models, "reference", examples)


def pairs_with(folder: Path, sign: int) -> list[Example]:
    """Return each prompt with the response of another row of the largest (or, for -1, the smallest) log-ratio."""
    models, found = open_ours(folder), []
    for mine in ROWS:
        others = [Example(mine.prompt, other.response) for other in ROWS if other is not mine]
        found.append(others[int((sign * log_ratios(models, others)).argmax())])
    return found


def our_kto(
    folder: Path, rows: Sequence[Labelled], pairs: Sequence[Example], config: KTOConfig, parts: Sequence[list[int]]
) -> tuple[Result, float]:
    """Run our KTO on rows in some micro-batches; return also the reference point of the whole."""
    models, own = open_ours(folder), [Example(r.prompt, r.response) for r in rows]
    point = reference_point(logps(models, "policy", pairs), logps(models, "reference", pairs))
    thumbs = torch.tensor([r.desirable for r in rows])
    whole = KTOBatch(collate(own), logps(models, "reference", own), thumbs, point.expand(len(rows)))
    algorithm = build(models, config)
    return our_result(models, [take_rows(whole, part) for part in parts], algorithm.step, algorithm.count), float(point)


def their_kto(
    folder: Path, rows: Sequence[Labelled], pairs: Sequence[Example], config: KTOConfig, size: int = 4
) -> tuple[Result, float]:
    """Run TRL's KTO on rows, some at once; return also the reference point of the last."""
    trainer = trainer_of("KTO", folder, dict(vars(config)))
    columns = [
        {
            "prompt_ids": list(r.prompt),
            "completion_ids": list(r.response),
            "KL_completion_ids": list(pair.response),
            "label": r.desirable,
        }
        for r, pair in zip(rows, pairs, strict=True)
    ]
    batches = [trainer.data_collator(columns[i : i + size]) for i in range(0, len(columns), size)]
    result = their_result(trainer, batches)
    return result, trainer._metrics["train"]["kl"][-1]


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[0, 3], [1, 2]], [[0], [1], [2], [3]]], ids=["1", "2", "4"])
@pytest.mark.parametrize("config", [KTOConfig(0.05, 1.0, 1.0), KTOConfig(0.5, 1.3, 0.7)], ids=["low", "high"])
def test_kto_agrees_however_our_rows_are_cut(folder: Path, config: KTOConfig, parts: list[list[int]]):
    pairs = pairs_with(folder, 1)
    mine, point = our_kto(folder, ROWS, pairs, config, parts)
    expected, theirs = their_kto(folder, ROWS, pairs, config)
    assert theirs > 0.01
    close(point, theirs)
    agree(mine, expected)


@pytest.mark.parametrize("kind", [True, False])
def test_rows_of_one_kind_agree(folder: Path, kind: bool):
    rows, config = [r._replace(desirable=kind) for r in ROWS], KTOConfig(0.3, 1.3, 0.7)
    mine, _ = our_kto(folder, rows, mismatched(rows), config, [[0, 1, 2, 3]])
    agree(mine, their_kto(folder, rows, mismatched(rows), config)[0])


def test_an_estimate_below_zero_is_zero_on_both_sides(folder: Path):
    pairs, config = pairs_with(folder, -1), KTOConfig(0.3, 1.0, 1.0)
    assert log_ratios(open_ours(folder), pairs).mean() < -0.01
    mine, point = our_kto(folder, ROWS, pairs, config, [[0, 1], [2, 3]])
    expected, theirs = their_kto(folder, ROWS, pairs, config)
    close([point, theirs], [0.0, 0.0], EXACT)
    agree(mine, expected)


def test_micro_batches_change_trl_s_loss_and_not_ours(folder: Path):
    """TRL gives each its own reference point, so its loss on two halves is not that of the whole."""
    pairs, config = pairs_with(folder, 1), KTOConfig(0.5, 1.3, 0.7)
    whole, halves = (their_kto(folder, ROWS, pairs, config, size)[0] for size in (4, 2))
    assert abs(whole[0] - halves[0]) > 1e-4
    agree(our_kto(folder, ROWS, pairs, config, [[0, 1], [2, 3]])[0], whole)


def prepared(folder: Path, texts: Sequence[tuple[str, str]]) -> tuple[list[Labelled], list[Example]]:
    """Return rows and mismatched pairs as TRL's own preparation makes them of texts; a letter is a token."""
    from datasets import Dataset

    trainer = trainer_of("KTO", folder, {"per_device_train_batch_size": len(texts)})
    rows = [{"prompt": prompt, "completion": completion, "label": True} for prompt, completion in texts]
    found = trainer._prepare_dataset(Dataset.from_list(rows), trainer.processing_class, trainer.args, "train")
    data = [Labelled(tuple(r["prompt_ids"]), tuple(r["completion_ids"]), True) for r in found]
    return data, [Example(tuple(r["prompt_ids"]), tuple(r["KL_completion_ids"])) for r in found]


def test_trl_gives_each_prompt_the_response_before_it_and_we_the_one_after(folder: Path):
    rows, theirs = prepared(folder, [("a", "x"), ("b", "y"), ("c", "z")])
    assert theirs == [Example(rows[i].prompt, rows[i - 1].response) for i in range(3)]
    assert mismatched(rows) == [Example(rows[i].prompt, rows[(i + 1) % 3].response) for i in range(3)]


def test_trl_keeps_rows_with_their_own_text_and_prompt_where_we_do_not(folder: Path):
    """Equal answers to a and b stand side by side, then two answers to c."""
    rows, theirs = prepared(folder, [("a", "x"), ("b", "x"), ("c", "y"), ("c", "z")])
    own = [Example(r.prompt, r.response) for r in rows]
    assert theirs[1] == own[1]
    assert theirs[3] == Example(rows[3].prompt, rows[2].response)
    assert all(
        pair.response != r.response and (r.prompt, pair.response) not in own
        for r, pair in zip(rows, mismatched(rows), strict=True)
    )
