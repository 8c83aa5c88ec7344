"""One KTO training on single responses with a thumb up or down."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from alignflow.algorithms import kto
from alignflow.data.collate import collate
from alignflow.data.encoding import encode_prompt, encode_response
from alignflow.loops.order import micro_batches, rows_of_step
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig
from alignflow.types import Example
from tasks.data.prepared import LacksRows, read_lines, read_prepared, whole_answers
from tasks.params.sections import Kto
from tasks.paths import PREPARED, UNPAIRED
from tasks.running.stage import Stage
from tasks.training.models import config_of, finish, keep_snapshots
from tasks.training.offline import train_offline
from tasks.training.reference_logps import check_start, reference_logps, summed_logps


def read_labelled(tokenizer: Any) -> list[kto.Labelled]:
    """Return all judged responses of the training side as token ids: chosen ones are desirable, rejected ones are not.

    Those are the responses of all rows, in pairs or alone, and the bad answers that no other method uses.

    Raises:
        LacksRows: there are fewer than two, and KTO compares each with another.
    """
    rows = whole_answers(read_prepared("train")) + read_lines(UNPAIRED)
    found = [labelled for row in rows for labelled in _labelled(tokenizer, row)]
    if len(found) < 2:
        raise LacksRows(
            f"{PREPARED / 'train.jsonl'} has {len(found)} judged responses and kto needs at least two; add rows with "
            "chosen, rejected or both"
        )
    return found


def _labelled(tokenizer: Any, row: Mapping[str, Any]) -> list[kto.Labelled]:
    return [
        kto.Labelled(encode_prompt(tokenizer, row["messages"]), encode_response(tokenizer, row[key]), key == "chosen")
        for key in ("chosen", "rejected")
        if row[key] is not None
    ]


def train_kto(
    stage: Stage, models: SharedBase, rows: Sequence[kto.Labelled], section: Kto, *, snapshots: int
) -> dict[str, float]:
    """Train the policy on labelled responses against the reference, both already in place; save and return metrics.

    Args:
        stage: the running stage.
        models: with the roles ``policy`` and ``reference``, which must answer alike.
        rows: to train on.
        section: settings.
        snapshots: policies to keep along the way.

    Raises:
        NotAtReference: policy and reference differ before the first update.
    """
    config, device = config_of(section, OptimisationConfig), models.base.device
    budget = stage.budget("passes", config.micro_batch_tokens)
    frozen = {"reference": models.fingerprint("reference")}
    steps = [[rows[i] for i in rows_of_step(len(rows), config, step)] for step in range(max(1, config.steps))]
    pairs = [kto.mismatched(taken) for taken in steps]
    examples = list(dict.fromkeys(example for taken in (*map(_examples, steps), *pairs) for example in taken))
    check_start(models, examples[:1], Budget(1, stage.announce))
    ref_logps = stage.once(  # for all steps
        "reference log-probs", lambda: reference_logps(models, examples, budget, say=stage.say)
    ).to(device)
    places = {example: place for place, example in enumerate(examples)}

    def reference(of: Sequence[Example]) -> Tensor:
        return ref_logps[[places[example] for example in of]]

    @lru_cache(maxsize=1)  # of the policy before the step, by all processes together, however often rows are cut
    def reference_point(step: int) -> Tensor:
        return kto.reference_point(summed_logps(models, "policy", pairs[step], budget), reference(pairs[step]))

    def batches(step: int, most: int) -> list[kto.KTOBatch]:
        point, examples = reference_point(step), _examples(steps[step])
        lengths = [len(example.prompt) + len(example.response) for example in examples]
        prompts = [example.prompt for example in examples]
        return [
            kto.KTOBatch(
                collate([examples[i] for i in group]).to(device),
                reference([examples[i] for i in group]),
                torch.tensor([steps[step][i].desirable for i in group], device=device),
                point.expand(len(group)),
            )
            for group in micro_batches(lengths, range(len(examples)), most, prompts)
        ]

    stage.total_steps = config.steps  # the snapshots' places follow from it
    keep = keep_snapshots(stage, models, snapshots)
    algorithm = kto.build(models, config_of(section, kto.KTOConfig))
    train_offline(stage, models, "policy", algorithm, batches, config, keep=keep)
    return finish(stage, models, "policy", frozen=frozen)


def _examples(rows: Sequence[kto.Labelled]) -> list[Example]:
    return [Example(row.prompt, row.response) for row in rows]
