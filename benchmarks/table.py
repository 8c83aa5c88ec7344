"""Writes the tables of docs/performance.md from the results: `python -m benchmarks.table`.

It replaces the text between ``<!-- table NAME -->`` and ``<!-- end -->``; all other text is written by hand.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import RESULTS, ROOT

PAGE = ROOT / "docs/performance.md"
SPACE = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SIDES = {"theirs": "TRL", "theirs_precomputed": "TRL, reference precomputed", "ours": "alignflow"}
Results = Mapping[str, Any]


def page(text: str, results: Mapping[str, Results]) -> str:
    """Return the page with all tables written from the results.

    Args:
        text: the page.
        results: content of the JSON files, by file name without ending.
    """

    def fill(found: re.Match[str]) -> str:
        return found[1] + table(found[2], results) + found[3]

    return SPACE.sub(fill, text)


def table(name: str, results: Mapping[str, Results]) -> str:
    """Return one table; its name is that of a file, after a dash with a suffix for other data or another machine."""
    kind, _, suffix = name.partition("-")
    part, draw = TABLES[kind]
    file = part + (f"-{suffix}" if suffix else "")
    if file not in results:
        return f"Not measured: `benchmarks/results/{file}.json` does not exist.\n"
    return draw(results[file]) + f"\n{_where(results[file]['environment'])}\n"


def read(folder: Path = RESULTS) -> dict[str, Results]:
    """Return all results by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def _where(environment: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return (
        f"*{environment['hardware']}, {environment['memory_gib']:g} GiB, {environment['threads']} threads; {versions}; "
        f"commit {environment['commit']}, {environment['date']}.*"
    )


def _rows(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in cells)


def _spread(values: Results, digits: int = 2) -> str:
    """Return e.g. ``1.20 (1.10 to 1.30)``."""
    return f"{values['median']:.{digits}f} ({values['least']:.{digits}f} to {values['greatest']:.{digits}f})"


def _trainings(result: Results) -> str:
    head = ["", "seconds per step", "samples/s", "peak memory, GiB", "alignflow is faster", "alignflow's memory"]
    lines = []
    for side, label in SIDES.items():
        if side in result:
            found, ratio = result[side], result["ratio"].get(side)
            compared = [f"**{ratio['speed']:.2f}×**", f"**{ratio['memory']:.2f}×**"] if ratio else ["", ""]
            costs = [_spread(found["seconds_per_step"]), f"{found['samples_per_second']:.2f}"]
            lines.append([label, *costs, f"{found['peak_memory_gib']['median']:.2f}", *compared])
    return _rows(head, lines)


def _losses(result: Results) -> str:
    sides = [side for side in SIDES if side in result]
    lines = [
        [
            SIDES[side],
            *(f"{loss:.4f}" for loss in result[side]["losses"]),
            f"{sum(result[side]['tokens_of_steps']):.0f}",
        ]
        for side in sides
    ]
    steps = [f"step {i + 1}" for i in range(len(lines[0]) - 2)]
    return _rows(["loss", *steps, "total tokens"], lines)


def _pairs(result: Results) -> str:
    return f"{_trainings(result)}\n{_losses(result)}\n{_exact(result)}"


def _exact(result: Results) -> str:
    first = result["first_loss_in_float32"]
    return f"First loss in float32: {first['theirs']:.6f} by TRL, {first['ours']:.6f} by alignflow.\n"


def _dpo(result: Results) -> str:
    before = result["reference_seconds"]
    pairs = result["setting"]["pairs"] * result["setting"]["steps"]
    said = f"Log-probs of the reference for {pairs} pairs, computed once before training, not part of the steps above: "
    said += ", ".join(f"{SIDES[side]} {before[side]:.1f} s" for side in ("theirs_precomputed", "ours"))
    return _pairs(result) + f"\n{said}.\n"


def _grpo(result: Results) -> str:
    return f"{_trainings(result)}\nBoth sides compute the loss of TRL's first rollouts. {_exact(result)}"


def _ppo(result: Results) -> str:
    head = ["", "seconds per step", "peak memory, GiB"]
    ours = result["ours"]
    lines = [
        ["alignflow, four roles", _spread(ours["seconds_per_step"]), f"{ours['peak_memory_gib']['median']:.2f}"],
        ["sum of TRL's parts", f"{result['sum_of_parts_seconds']:.2f}", ""],
    ]
    return _rows(head, lines) + f"\nalignflow is **{result['speed']:.2f}×** faster. {result['peer']}\n"


def _sampling(result: Results) -> str:
    head = ["rows", "`generate()`, tokens/s", "alignflow, tokens/s", "alignflow is faster"]
    lines = [
        [rows, *(_spread(one["tokens_per_second"][s], 1) for s in ("theirs", "ours")), f"**{one['speed']:.2f}×**"]
        for rows, one in result["rows"].items()
    ]
    merge = _spread(result["merge_seconds"], 1)
    return _rows(head, lines) + f"\nMerging the weights takes {merge} s once per rollout batch and is not included.\n"


def _limit(result: Results) -> str:
    machine, dpo = result["machine"], result["dpo"]
    rate = machine["matmul_flop_per_second"]
    lines: list[Sequence[object]] = [
        ["matmul at the model's layer shapes, bfloat16", f"{rate / 1e9:.0f} GFLOP/s", "1"],
        ["memory bandwidth, the faster of copying and reading", f"{machine['bytes_per_second'] / 1e9:.1f} GB/s", "1"],
    ]
    for form, label in (("two_rows", "two rows per pair"), ("prompt_once", "the prompt once")):
        achieved = f"{dpo['flop_per_second'][form] / 1e9:.0f} GFLOP/s"
        lines.append([f"DPO step, work counted with {label}", achieved, f"{dpo['share_of_matmul_rate'][form]:.2f}"])
    grpo = result["grpo"]
    took = f"{grpo['seconds_per_step']:.1f} s, at least {grpo['least_seconds']:.1f} s"
    lines.append(["GRPO step", took, f"{grpo['share_of_limit']:.2f}"])
    for rows, one in result["decode"].items():
        took = f"{1000 * one['step_seconds']:.1f} ms, at least {1000 * one['least_seconds']:.1f} ms"
        lines.append([f"a decode step of {rows} rows", took, f"{one['share_of_limit']:.2f}"])
    return _rows(["", "measured", "share of the limit"], lines)


def _profile(result: Results) -> str:
    head = ["operator of a DPO step", "share", "operator of a GRPO step", "share"]
    sides = [[(f"`{one['operator']}`", f"{one['share']:.1%}") for one in result[k]["profile"]] for k in ("dpo", "grpo")]
    return _rows(head, [(*a, *b) for a, b in zip(*sides, strict=False)])


def _memory(result: Results) -> str:
    peaks = result["peak_memory_gib"]
    names = {"ours:ppo": "PPO, four roles", "ours:sft": "SFT", "theirs:sft": "SFT by TRL"}
    ratios = {"ours:sft": result["ppo_over_our_sft"], "theirs:sft": result["ppo_over_their_sft"]}
    lines = [[names[k], f"{v:.2f}", f"{ratios[k]:.2f}×" if k in ratios else ""] for k, v in peaks.items()]
    return _rows(["", "peak memory, GiB", "PPO's memory is"], lines)


def _scaling(result: Results) -> str:
    parts = [
        _rows(
            [label, "seconds per GRPO step", "tokens/s", "peak memory, GiB"],
            [
                [n, f"{one['seconds']:.2f}", f"{one['tokens_per_second']:.0f}", f"{one['peak_memory_gib']:.2f}"]
                for n, one in result[key].items()
            ],
        )
        for key, label in (("response_length", "tokens per response"), ("group_size", "responses per prompt"))
    ]
    shards = [
        [n, f"{one['seconds']:.1f}", f"{one['load_seconds']:.1f}", f"{int(n) * one['seconds']:.1f}"]
        for n, one in result["shards"].items()
    ]
    parts.append(_rows(["shards m", "seconds per round", "of which loading", "all rounds"], shards))
    return "\n".join([*parts, _prepare(result)])


def _prepare(result: Results) -> str:
    head = ["rows through `prepare`", "seconds", "rows/s", "peak memory, GiB"]
    lines = [
        [n, f"{one['seconds']:.1f}", f"{one['rows_per_second']:.0f}", f"{one['peak_memory_gib']:.2f}"]
        for n, one in result["rows"].items()
    ]
    return _rows(head, lines)


def _overhead(result: Results) -> str:
    imports = ", ".join(f"{name} {one['median']:.1f} s" for name, one in result["import_seconds"].items())
    lines = [
        ["a flow of all stages", f"{result['flow_seconds']:.0f} s, {len(result['stages'])} stages"],
        ["of which overhead: no stage was running", f"{result['own_seconds']:.0f} s ({result['own_share']:.1%})"],
        ["**overhead per stage**", f"**{result['own_seconds_per_stage']:.1f} s**"],
        ["`alignflow stage` on an unchanged stage", f"{_spread(result['unchanged_stage_seconds'], 1)} s"],
        ["start and imports", imports],
    ]
    return _rows(["", "measured"], lines)


TABLES: Mapping[str, tuple[str, Callable[[Results], str]]] = {
    "dpo": ("dpo", _dpo),
    "reward_model": ("reward_model", _pairs),
    "grpo": ("grpo", _grpo),
    "ppo": ("ppo", _ppo),
    "sampling": ("sampling", _sampling),
    "limit": ("limit", _limit),
    "profile": ("limit", _profile),
    "memory": ("memory", _memory),
    "scaling": ("scaling", _scaling),
    "million": ("million", _prepare),
    "overhead": ("overhead", _overhead),
}

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), read()))
