"""Runs measurements: `python -m benchmarks.run [PART ...]`; default: all except `million`. See docs/performance.md."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import limit, memory, scaling, versus
from benchmarks.frame import RESULTS, MeasurementFailed, Result, measure, save
from benchmarks.setting import Setting
from benchmarks.theirs import PeerMissing

PARTS: Mapping[str, Callable[[Setting, int], Result]] = {
    "dpo": versus.dpo,
    "reward_model": versus.reward_model,
    "grpo": versus.grpo,
    "ppo": versus.ppo,
    "sampling": versus.sampling,
    "limit": limit.limit,
    "memory": memory.memory,
    "scaling": scaling.scaling,
    "million": scaling.million,
}
LONG = {"million"}
TINY: Mapping[str, Any] = {
    "longest": 200,
    "pairs": 2,
    "prompts": 2,
    "group": 2,
    "response": 4,
    "rows": (1, 2),
    "steps": 2,
}


def run(parts: Sequence[str], setting: Setting, *, repeats: int, name: str, results: Path) -> None:
    """Measure parts one after the other and write one file per part."""
    with tempfile.TemporaryDirectory() as folder:
        started = replace(setting, start=folder)
        measure("ours:write_start", replace(started, label="start adapters"))
        for part in parts:
            began = time.monotonic()
            content = PARTS[part](started, repeats)
            save(f"{part}{name}", setting, {**content, "repeats": repeats}, results)
            print(f"{part}: {time.monotonic() - began:.0f} s, written to {results / f'{part}{name}.json'}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=2, help="number of processes of each side, alternating")
    parser.add_argument("--tiny", action="store_true", help="very small sizes, to check that everything runs")
    parser.add_argument("--model", default=Setting.model, help="folder, Hub id or package:NAME")
    parser.add_argument("--data", default=Setting.data, help="file of preference pairs, in any form that prepare reads")
    parser.add_argument("--longest", type=int, default=Setting.longest, help="longest prompt with a response, tokens")
    parser.add_argument("--response", type=int, default=Setting.response, help="number of tokens of a sampled response")
    parser.add_argument("--steps", type=int, default=Setting.steps, help="steps of a process; the first is a warm-up")
    parser.add_argument("--name", default="", help="suffix of the files' names, e.g. -sharegpt for other data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    given = parser.parse_args(arguments)
    parts = given.parts or [part for part in PARTS if part not in LONG]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    setting = replace(
        Setting(),
        model=given.model,
        data=given.data,
        longest=given.longest,
        response=given.response,
        steps=given.steps,
    )
    if given.tiny:
        setting = replace(setting, **TINY)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything that is measured is on this machine
    try:
        run(parts, setting, repeats=given.repeats, name=given.name, results=given.results)
    except (PeerMissing, MeasurementFailed, ValueError) as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
