"""Runs every measurement in a new process, so that its peak memory is its own, and writes results as JSON.

``measure("ours:dpo", setting)`` runs ``benchmarks.ours.dpo(setting)`` in a new process.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate", "datasets")

Result = dict[str, Any]


class MeasurementFailed(RuntimeError):
    """A measuring process failed; the message ends with its last lines of output."""


def measure(what: str, setting: Setting, *, cwd: Path = ROOT) -> Result:
    """Run one measuring function in a new process and return its result with the process's peak memory.

    Args:
        what: ``module:function`` below ``benchmarks``.
        setting: argument of the function.
        cwd: working directory.
    """
    print(f"{time.strftime('%H:%M:%S')} {what} {setting.label}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        command = [sys.executable, "-m", "benchmarks.frame", what, json.dumps(asdict(setting)), str(path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.run(
            command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if process.returncode:
            tail = deque(process.stdout.splitlines(), maxlen=15)
            raise MeasurementFailed("\n  ".join([f"{what} failed with exit status {process.returncode}", *tail]))
        result: Result = json.loads(path.read_text())
    return result


def alternate(sides: Mapping[str, tuple[str, Setting]], repeats: int) -> dict[str, list[Result]]:
    """Measure all sides alternately and repeatedly, so that a slow minute of the machine affects all of them."""
    results: dict[str, list[Result]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (what, setting) in sides.items():
            results[side].append(measure(what, setting))
    return results


def spread(values: Sequence[float]) -> Result:
    """Return median, minimum, maximum and number of measurements."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values), "count": len(values)}


def steady(runs: Sequence[Mapping[str, Any]]) -> Result:
    """Return the cost of training steps over several runs, without the first step of each, which is a warm-up."""
    seconds = [s for run in runs for s in run["seconds"][1:]]
    tokens = [t for run in runs for t in run["tokens"][1:]]
    return {
        "seconds_per_step": spread(seconds),
        "tokens_per_second": sum(tokens) / sum(seconds),
        "tokens_of_steps": runs[0]["tokens"],
        "losses": runs[0]["losses"],
        "peak_memory_gib": spread([run["peak_memory_gib"] for run in runs]),
        "before_seconds": spread([run["before_seconds"] for run in runs]),
    }


def ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Result:
    """Return our speed-up by the medians, and our peak memory divided by the other side's."""
    return {
        "speed": theirs["seconds_per_step"]["median"] / ours["seconds_per_step"]["median"],
        "memory": ours["peak_memory_gib"]["median"] / theirs["peak_memory_gib"]["median"],
    }


def environment() -> Result:
    """Return hardware, versions, commit and date, on which results depend."""
    import torch

    from tasks.running.hardware import describe

    return {
        "hardware": describe(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "date": datetime.now(UTC).date().isoformat(),
    }


def save(part: str, setting: Setting, content: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write the results of a part with setting and environment."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = {"environment": environment(), "setting": asdict(setting), **content}
    (folder / f"{part}.json").write_text(json.dumps(_rounded(everything), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Return content with numbers rounded to six digits: more digits would be noise."""
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _child(what: str, setting: str, path: str) -> None:
    from tasks.running.checks import quiet
    from tasks.running.hardware import peak_memory_gib

    quiet()
    module, _, function = what.partition(":")
    result = getattr(importlib.import_module(f"benchmarks.{module}"), function)(Setting(**json.loads(setting)))
    Path(path).write_text(json.dumps({**result, "peak_memory_gib": peak_memory_gib()}))


if __name__ == "__main__":
    _child(*sys.argv[1:])
