"""Measures how costs grow with response length, group size, shards of iterative DPO and rows of the data."""

from dataclasses import replace
from typing import Any

from benchmarks.frame import Result, measure
from benchmarks.setting import Setting

LENGTHS = (48, 128, 256, 512)
GROUPS = (2, 4, 8, 16)
SHARDS = (1, 2, 4)
ROWS = (100, 1_000, 10_000, 100_000)
MILLION = 1_000_000


def scaling(setting: Setting, _repeats: int) -> Result:
    """Measure all except the largest data set. Lengths and groups: the second of two GRPO steps."""
    small = replace(setting, prompts=2, group=4, steps=2)
    lengths = {n: replace(small, response=n, group=2) for n in LENGTHS if n >= setting.response or n == LENGTHS[0]}
    groups = {n: replace(small, group=n) for n in GROUPS}
    # two prompts in the smallest shard, four answers each: a pair needs two answers with different rewards
    shards = {n: replace(small, prompts=2 * max(SHARDS), group=4, number=n, steps=max(SHARDS)) for n in SHARDS}
    return {
        "response_length": {
            n: _step(measure("ours:grpo", replace(s, label=f"{n} tokens"))) for n, s in lengths.items()
        },
        "group_size": {n: _step(measure("ours:grpo", replace(s, label=f"groups of {n}"))) for n, s in groups.items()},
        "shards": {n: measure("ours:round_of_a_shard", replace(s, label=f"a shard of {n}")) for n, s in shards.items()},
        "rows": {n: rows(setting, n) for n in ROWS},
    }


def million(setting: Setting, _repeats: int) -> Result:
    """Prepare a million rows."""
    return {"rows": {MILLION: rows(setting, MILLION)}}


def rows(setting: Setting, count: int) -> Result:
    """Measure ``prepare`` on the given numbers of rows."""
    return measure("prepare:measured", replace(setting, number=count, label=f"{count} rows"))


def _step(run: dict[str, Any]) -> Result:
    seconds, tokens = run["seconds"][-1], run["tokens"][-1]
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "peak_memory_gib": run["peak_memory_gib"]}
