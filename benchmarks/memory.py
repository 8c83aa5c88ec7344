"""Peak memory of PPO with four roles, compared with supervised fine-tuning on the same rows."""

from dataclasses import replace

from benchmarks import theirs
from benchmarks.frame import Result, measure
from benchmarks.setting import Setting


def memory(setting: Setting, _repeats: int) -> Result:
    """Measure one step of each in a new process."""
    theirs.version()
    once = replace(setting, steps=1)
    peaks = {what: measure(what, once)["peak_memory_gib"] for what in ("ours:ppo", "ours:sft", "theirs:sft")}
    return {
        "peak_memory_gib": peaks,
        "ppo_over_our_sft": peaks["ours:ppo"] / peaks["ours:sft"],
        "ppo_over_their_sft": peaks["ours:ppo"] / peaks["theirs:sft"],
    }
