"""Comparison with TRL: DPO, reward model, GRPO, PPO and sampling."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import theirs
from benchmarks.frame import Result, alternate, measure, ratio, spread, steady
from benchmarks.setting import Setting

NO_PEER = (
    "TRL {version} no longer has a PPO trainer, so its time is a sum of parts measured in this run. The first part is "
    "a GRPO step for the same number of responses (sampling, reference, policy update). The others are computed for "
    "the tokens of these rows at the speed of TRL's reward trainer: scores of the reward model and values of the "
    "critic (one forward pass each, a third of a training step), and the update of the critic (one training step)."
)


def dpo(setting: Setting, repeats: int) -> Result:
    """Compare DPO, with TRL's reference computed during and before training."""
    theirs.version()
    runs = alternate(
        {
            "theirs": ("theirs:dpo", replace(setting, label="reference in the loop")),
            "theirs_precomputed": ("theirs:dpo", replace(setting, label="reference before", precompute=True)),
            "ours": ("ours:dpo", setting),
        },
        repeats,
    )
    found = _compared(runs, setting.pairs)
    # the difference of both times to build a trainer is the time of the reference
    before = {side: found[side]["before_seconds"]["median"] for side in runs}
    reference = {"ours": before["ours"], "theirs_precomputed": before["theirs_precomputed"] - before["theirs"]}
    return {**found, "reference_seconds": reference, "first_loss_in_float32": _evidence("dpo", setting)}


def reward_model(setting: Setting, repeats: int) -> Result:
    """Compare the reward model."""
    theirs.version()
    sides = {"theirs": ("theirs:reward_model", setting), "ours": ("ours:reward_model", setting)}
    found = _compared(alternate(sides, repeats), setting.pairs)
    return {**found, "first_loss_in_float32": _evidence("reward_model", setting)}


def grpo(setting: Setting, repeats: int) -> Result:
    """Compare GRPO; both sides compute the loss in float32 on TRL's first rollouts."""
    theirs.version()
    runs = alternate({"theirs": ("theirs:grpo", setting), "ours": ("ours:grpo", setting)}, repeats)
    found = _compared(runs, setting.prompts * setting.group)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rollouts.json")
        exact = replace(setting, dtype="float32", steps=1, rollouts=str(path), label="evidence, float32")
        other = measure("theirs:grpo", exact)
        path.write_text(json.dumps(other["first_rollouts"]))
        losses = {"theirs": other["losses"][0], "ours": measure("ours:grpo_evidence", exact)["loss"]}
    return {**found, "first_loss_in_float32": losses}


def _evidence(what: str, setting: Setting) -> Result:
    """Return the first losses of both sides in float32, where rounding does not hide differences."""
    exact = replace(setting, dtype="float32", steps=1, label="evidence, float32")
    return {side: measure(f"{side}:{what}", exact)["losses"][0] for side in ("theirs", "ours")}


def ppo(setting: Setting, repeats: int) -> Result:
    """Compare PPO with the sum of TRL's parts."""
    version = theirs.version()
    runs = alternate(
        {
            "theirs_grpo": ("theirs:grpo", setting),
            "theirs_reward_model": ("theirs:reward_model", setting),
            "ours": ("ours:ppo", setting),
        },
        repeats,
    )
    parts = {side: steady(found) for side, found in runs.items()}
    tokens = spread([t for run in runs["ours"] for t in run["tokens"][1:]])["median"]
    critic = 5 / 3 * tokens / parts["theirs_reward_model"]["tokens_per_second"]
    total = parts["theirs_grpo"]["seconds_per_step"]["median"] + critic
    return {
        **parts,
        "peer": NO_PEER.format(version=version),
        "sum_of_parts_seconds": total,
        "speed": total / parts["ours"]["seconds_per_step"]["median"],
    }


def sampling(setting: Setting, repeats: int) -> Result:
    """Compare sampling at several numbers of rows."""
    runs = alternate({"theirs": ("theirs:sampling", setting), "ours": ("ours:sampling", setting)}, repeats)
    rows = {}
    for count in map(str, setting.rows):
        sides = {side: [run[count] for run in found] for side, found in runs.items()}
        speeds = {side: spread([one["tokens_per_second"] for one in found]) for side, found in sides.items()}
        steps = {side: spread([one["step_seconds"] for one in found]) for side, found in sides.items()}
        faster = speeds["ours"]["median"] / speeds["theirs"]["median"]
        rows[count] = {"tokens_per_second": speeds, "step_seconds": steps, "speed": faster}
    return {
        "rows": rows,
        "merge_seconds": spread([run["merge_seconds"] for run in runs["ours"]]),
        "peak_memory_gib": {side: spread([run["peak_memory_gib"] for run in found]) for side, found in runs.items()},
    }


def _compared(runs: Mapping[str, Sequence[Result]], samples: int) -> Result:
    """Return the cost and the samples per second of each side, and the ratios to each of TRL's variants."""
    found: Result = {side: steady(of) for side, of in runs.items()}
    for side, of in runs.items():
        found[side]["samples_per_second"] = samples / found[side]["seconds_per_step"]["median"]
        if "configured" in of[0]:
            found[side]["configured"] = of[0]["configured"]
    others: dict[str, Any] = {side: ratio(found["ours"], found[side]) for side in runs if side != "ours"}
    return {**found, "ratio": others}
