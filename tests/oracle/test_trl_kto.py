"""KTO against TRL 1.16's own trainer: same tiny model, adapters and rows; values and gradients of the adapter.

Differences by design:

| in TRL                                        | here                             | why
|-----------------------------------------------|----------------------------------|---------------------------------------
| y′ is the response of the row before          | of the row after                 | the paper's order
| rows are paired once, in the order of the file| in each step's optimiser batch   | every epoch has an order of its own
| z₀ is of a micro-batch                        | of the optimiser batch           | micro-batches change no result
| a pair may be a row of the batch              | other rotations are tried        | y′ should be unrelated to x

The first three are asserted below, the last in ``test_kto.py``. Of several processes TRL takes the mean of their means,
which is ours where they have as many rows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.kto import KTOBatch, KTOConfig, Labelled, build, mismatched, reference_point
from alignflow.data.collate import collate, take_rows
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.types import Example
from tests.close import close
from tests.oracle.sides import QUIET, Result, agree, open_ours, open_theirs, our_result, their_result, write_roles

pytest.importorskip("trl", reason="the oracle extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, of deprecated names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import datasets

    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)  # TRL is told to use the CPU
        yield write_roles(tmp_path_factory.mktemp("oracle"))
    datasets.enable_progress_bars()


def ids(length: int, seed: int) -> tuple[int, ...]:
    """Return random letters; 97 ends a response."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(1, 97, (length,), generator=generator).tolist())


ROWS = [
    Labelled(ids(prompt, i), (*ids(response - 1, i + 10), 97), desirable)
    for i, (prompt, response, desirable) in enumerate([(3, 4, True), (6, 2, False), (2, 9, False), (5, 3, True)])
]


def trainer_of(folder: Path, **config: Any) -> Any:
    """Return TRL's trainer of the saved policy and reference; no loss sees the data set that it asks for."""
    from datasets import Dataset
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoTokenizer
    from trl import KTOConfig as TheirConfig
    from trl import KTOTrainer

    trainer = KTOTrainer(
        open_theirs(folder),
        args=TheirConfig(output_dir=str(folder / "out"), **QUIET, **config),
        train_dataset=Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 2),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    saved = load_file(folder / "reference" / "adapter_model.safetensors")  # TRL's is a copy of the policy
    set_peft_model_state_dict(trainer.model, saved, adapter_name="ref")
    trainer.model.train()
    return trainer


def their_kto(
    folder: Path, rows: list[Labelled], pairs: list[Example], *, size: int = len(ROWS), **config: Any
) -> tuple[Result, float]:
    """Return TRL's result on batches of a size with given mismatched pairs, and its last reference point."""
    trainer = trainer_of(folder, **config)
    columns = [
        {
            "prompt_ids": list(row.prompt),
            "completion_ids": list(row.response),
            "KL_completion_ids": list(pair.response),
            "label": row.desirable,
        }
        for row, pair in zip(rows, pairs, strict=True)
    ]
    batches = [trainer.data_collator(columns[i : i + size]) for i in range(0, len(rows), size)]
    result = their_result(trainer, batches)
    return result, trainer._metrics["train"]["kl"][-1]


def our_kto(
    folder: Path, rows: list[Labelled], pairs: list[Example], config: KTOConfig, parts: list[list[int]]
) -> tuple[Result, float]:
    """Return our result on the same rows in some micro-batches, and our reference point."""
    models = open_ours(folder)
    point = reference_point(_logps(models, "policy", pairs), _logps(models, "reference", pairs))
    own = [Example(row.prompt, row.response) for row in rows]
    whole = KTOBatch(
        collate(own),
        _logps(models, "reference", own),
        torch.tensor([row.desirable for row in rows]),
        point.expand(len(rows)),
    )
    algorithm = build(models, config)
    return our_result(models, [take_rows(whole, part) for part in parts], algorithm.step, algorithm.count), float(point)


@torch.no_grad()
def _logps(models: SharedBase, role: str, examples: list[Example]) -> Tensor:
    sequences = collate(examples)
    return masked_sum(models.logprobs(role, sequences)[0], sequences.response_mask[:, 1:])


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[0, 3], [1, 2]], [[0], [1], [2], [3]]])
@pytest.mark.parametrize(("beta", "up", "down"), [(0.05, 1.0, 1.0), (0.5, 1.3, 0.7)])
def test_kto_agrees(folder: Path, beta: float, up: float, down: float, parts: list[list[int]]):
    """On pairs that lift the reference point above 0; TRL sees all rows at once."""
    pairs = far(folder, 1)
    mine, point = our_kto(folder, ROWS, pairs, KTOConfig(beta, up, down), parts)
    expected, theirs = their_kto(folder, ROWS, pairs, beta=beta, desirable_weight=up, undesirable_weight=down)
    assert theirs > 0.01
    close(point, theirs)
    agree(mine, expected)


def far(folder: Path, sign: int) -> list[Example]:
    """Return each prompt with that response of another row whose log-ratio is the largest, or the smallest."""
    models = open_ours(folder)
    pairs = []
    for row in ROWS:
        others = [Example(row.prompt, other.response) for other in ROWS if other is not row]
        ratios = _logps(models, "policy", others) - _logps(models, "reference", others)
        pairs.append(others[int((sign * ratios).argmax())])
    return pairs


@pytest.mark.parametrize("label", [True, False])
def test_a_batch_of_one_kind_agrees(folder: Path, label: bool):
    rows = [row._replace(desirable=label) for row in ROWS]
    mine, _ = our_kto(folder, rows, mismatched(rows), KTOConfig(0.3, 1.3, 0.7), [[0, 1, 2, 3]])
    keys = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    agree(mine, their_kto(folder, rows, mismatched(rows), **keys)[0])


def test_a_negative_estimate_is_zero_on_both_sides(folder: Path):
    pairs = far(folder, -1)
    models = open_ours(folder)
    assert (_logps(models, "policy", pairs) - _logps(models, "reference", pairs)).mean() < -0.01
    mine, point = our_kto(folder, ROWS, pairs, KTOConfig(0.3, 1.0, 1.0), [[0, 1], [2, 3]])
    expected, theirs = their_kto(folder, ROWS, pairs, beta=0.3)
    assert point == theirs == 0.0
    agree(mine, expected)


def test_micro_batches_change_the_result_of_trl_and_not_ours(folder: Path):
    """The same rows and pairs, two a batch: TRL takes a reference point of each."""
    pairs, keys = far(folder, 1), {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    whole, parts = (their_kto(folder, ROWS, pairs, size=size, **keys)[0] for size in (4, 2))
    assert abs(whole[0] - parts[0]) > 1e-4
    agree(our_kto(folder, ROWS, pairs, KTOConfig(0.5, 1.3, 0.7), [[0, 1], [2, 3]])[0], whole)


def test_trl_pairs_two_rows_as_we_do_and_turns_more_the_other_way(folder: Path):
    """TRL's own preparation of texts; one letter is one token here."""
    from datasets import Dataset

    for size, by in ((2, 1), (3, 2)):
        rows = [{"prompt": "abc"[i], "completion": "xyz"[i], "label": True} for i in range(size)]
        trainer = trainer_of(folder, per_device_train_batch_size=size)
        found = trainer._prepare_dataset(Dataset.from_list(rows), trainer.processing_class, trainer.args, "train")
        data = [Labelled(tuple(row["prompt_ids"]), tuple(row["completion_ids"]), True) for row in found]
        theirs = [tuple(row["KL_completion_ids"]) for row in found]
        assert theirs == [data[(i + by) % size].response for i in range(size)]
        ours = [pair.response for pair in mismatched(data)]
        assert (ours == theirs) is (size == 2)
