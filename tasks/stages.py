"""The table of stages: what each reads, writes, and which sections of ``params.yaml`` it uses.

dvc.yaml says the same to DVC, with the code that each depends on; a test compares the two. Names in ``${}`` are filled
in as DVC does: keys of ``params.yaml``, and ``${key}`` and ``${item}`` of a stage that has items.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tasks import paths
from tasks.judges import learned
from tasks.params.names import closest
from tasks.params.sections import Params
from tasks.policies import POLICIES, Learns, Policy

BASE, SFT, REWARD_MODEL, JUDGE_MODEL = map(
    str, (paths.IDENTITY.parent, paths.SFT, paths.REWARD_MODEL, paths.JUDGE_MODEL)
)
TRAIN, JUDGE, VALIDATION, UNPAIRED = map(str, (paths.TRAIN, paths.JUDGE, paths.VALIDATION, paths.UNPAIRED))
"""Sides are named one by one, so that no stage reads the test side by accident."""
TRAINING = "metrics/training"
"""Where the stages that train leave their metrics."""
MODEL = ("base", "lora", "memory")
"""Sections of every stage that trains."""
ONLINE = (*MODEL, "sampling", "rewards")
"""Sections of every stage that trains on the policy's own samples."""

ANSWERING = (
    *(f"sampling.{key}" for key in ("rows", "merged", "engine", "vllm_memory_fraction", "vllm_max_length")),
    *(f"evaluate.{key}" for key in ("prompts", "trajectory_prompts", "samples_per_prompt", "max_response_length")),
    *(f"evaluate.{key}" for key in ("temperature", "capability_path", "capability_texts", "seed")),
    "reward_model.micro_batch_tokens",
)
"""Keys that answers depend on; no judge and no reward is among them."""


@dataclass(frozen=True)
class StageEntry:
    """One stage."""

    sections: tuple[str, ...] = ()
    """Of params.yaml, or single keys of one; its tracking run and its checkpoint's key contain them."""
    inputs: tuple[str, ...] = ()
    """Files and folders that must exist."""
    outs: tuple[str, ...] = ()
    """Folders that it deletes before it starts from the beginning."""
    items: str = ""
    """What one run handles: ``policy`` or ``round``; empty: the stage runs once."""
    shared: bool = False
    """Several processes can do the work together."""
    metrics: str = "metrics"
    """Folder of its metrics file."""


def _trains(name: str, policy: Policy) -> StageEntry:
    """Return the stage that trains a policy, which starts from SFT or from the round before."""
    samples = policy.learns is Learns.SAMPLES
    start = ("${item.previous}",) if policy.in_rounds else ()
    reward = (REWARD_MODEL,) if samples else ()
    more = (UNPAIRED,) if name == "kto" else ()
    return StageEntry(
        sections=(*(ONLINE if samples else MODEL), name),
        inputs=(BASE, SFT, *start, *reward, TRAIN, *more),
        outs=(f"artifacts/{name}/${{key}}" if policy.in_rounds else f"artifacts/{name}",),
        items="round" if policy.in_rounds else "",
        shared=True,
        metrics=TRAINING,
    )


STAGES: Mapping[str, StageEntry] = {
    "base": StageEntry(("base",)),
    "prepare": StageEntry(("data",), (str(paths.IDENTITY), "${data.path}")),
    "rules": StageEntry(outs=("artifacts/rules",)),
    "sft": StageEntry((*MODEL, "sft"), (BASE, TRAIN), (SFT,), shared=True, metrics=TRAINING),
    "reward_model": StageEntry(
        (*MODEL, "sampling", "reward_model"),
        (BASE, SFT, TRAIN, VALIDATION),
        (REWARD_MODEL,),
        shared=True,
        metrics=TRAINING,
    ),
    "judge_model": StageEntry(
        (*MODEL, "sampling", "judge_model"),
        (BASE, SFT, TRAIN, JUDGE, VALIDATION),
        (JUDGE_MODEL,),
        shared=True,
        metrics=TRAINING,
    ),
    **{name: _trains(name, policy) for name, policy in POLICIES.items() if policy.learns},
    "answer": StageEntry(
        ("base", "lora", *ANSWERING),
        (BASE, SFT, VALIDATION, "${evaluate.capability_path}", "${item}"),
        ("answers/${key}",),
        items="policy",
        shared=True,
    ),
    "evaluate": StageEntry(
        ("base", "lora", "rewards", "evaluate"),
        (BASE, REWARD_MODEL, *map(str, learned().values()), VALIDATION, "answers/${key}"),
        ("evaluations/${key}",),
        items="policy",
        shared=True,
    ),
    "llm_judge": StageEntry(("llm_judge",), ("evaluations",), ("judgements",)),
    "compare": StageEntry(("compare",), ("evaluations",), ("reports",)),
    "test": StageEntry(
        ("base", "lora", "rewards", *ANSWERING, "evaluate", "llm_judge", "compare"),
        (
            BASE,
            SFT,
            REWARD_MODEL,
            *map(str, learned().values()),
            "answers",
            "reports",
            str(paths.TEST),
            str(paths.LOCK),
        ),
        tuple(f"{paths.FINAL}/{name}" for name in ("answers", "evaluations", "judgements", "metrics", "reports")),
        shared=True,
        metrics=f"{paths.FINAL}/metrics",
    ),
}
"""By name, in the order of the pipeline. ``python -m tasks NAME [ITEM]`` runs ``work`` of ``tasks/NAME.py``.

All are in dvc.yaml but ``test``: what DVC knows it also runs, and the test side must only open when somebody asks.
"""


class UnknownStage(ValueError):
    """There is no stage, or no item of a stage, of that name."""


def stage_named(name: str) -> StageEntry:
    """Return the entry of a stage.

    Raises:
        UnknownStage: there is none; the message names the nearest.
    """
    if name not in STAGES:
        raise UnknownStage(f"no stage {name!r}{closest(name, list(STAGES))}; there are: {', '.join(STAGES)}")
    return STAGES[name]


def resolved(name: str, item: str, params: Params) -> StageEntry:
    """Return the entry of a stage with its paths filled in for one item.

    Raises:
        UnknownStage: the stage has no such item, or takes none.
    """
    entry, known = stage_named(name), items_of(name, params)
    if item not in known and (item or known):
        if not known:
            raise UnknownStage(f"stage {name} runs once and takes no {item!r}")
        raise UnknownStage(f"usage: python -m tasks {name} {entry.items.upper()}, one of: {', '.join(known)}")

    def fill(text: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda found: _value(found[1], item, known, params), text)

    inputs = tuple(dict.fromkeys(map(fill, entry.inputs)))  # an item can also be a listed input
    return replace(entry, inputs=inputs, outs=tuple(map(fill, entry.outs)))


def samples(entry: StageEntry) -> bool:
    """Return whether a stage samples."""
    return any(name.partition(".")[0] == "sampling" for name in entry.sections)


def settings_of(entry: StageEntry, params: Params) -> dict[str, dict[str, object]]:
    """Return the settings of a stage by section and key."""
    found: dict[str, dict[str, object]] = {}
    for name in entry.sections:
        section, _, key = name.partition(".")
        every = getattr(params, section).model_dump()
        found.setdefault(section, {}).update({key: every[key]} if key else every)
    return found


def items_of(name: str, params: Params) -> Mapping[str, object]:
    """Return the items of a stage as DVC's ``foreach`` has them; none of a stage that runs once."""
    items: dict[str, Mapping[str, object]] = {
        "": {},
        "round": params.iterative_dpo.rounds,
        "policy": params.policies,
    }
    return items[STAGES[name].items]


def _value(path: str, item: str, known: Mapping[str, object], params: Params) -> str:
    first, *rest = path.split(".")
    if first == "key":
        return item
    value: object = known[item] if first == "item" else getattr(params, first)
    for part in rest:
        value = getattr(value, part)
    return str(value)
