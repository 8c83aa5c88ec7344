"""Compares steps with the machine's limits: its matmul rate and memory bandwidth.

Work of a DPO step: 4·P·N + 4·V·H·R FLOP. P: weights of all linear layers except the output embedding; N: tokens; a
frozen weight costs 2 FLOP per token forward and 2 backward, because only the gradient of its input is needed. V·H:
output embedding, needed at the R response positions only. Attention and adapters are not counted. N is counted in two
ways: with two rows per pair, as in the formula of the loss, and with the prompt once, which is all that is necessary.

Minimum time of a decode step: reading 2·(P + V·H) bytes of weights in bfloat16 and the keys and values of all rows; or,
if it takes longer, 2·(P + V·H) FLOP per row at the matmul rate.

Work of a GRPO step: one decode step per response token, 2·P·N + 2·V·H·R FLOP for the reference, 4·P·N + 4·V·H·R for
the update; N: tokens of all responses, and of each prompt once.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from benchmarks.frame import Result, measure, spread
from benchmarks.setting import Setting, read_pairs, read_prompts

TOP = 15  # number of operators in a profile


def limit(setting: Setting, repeats: int) -> Result:
    """Measure the machine, decoding, and a DPO and a GRPO step with their profiles."""
    machine = measure("limit:machine", setting)
    shape = machine["model"]
    dpo, grpo = measure("limit:profiled_dpo", setting), measure("limit:profiled_grpo", setting)
    seconds = spread(dpo["seconds"][1:-1])["median"]
    flop = {
        form: 4 * shape["linear_weights"] * tokens + 4 * shape["embedding_weights"] * dpo["work"]["response_tokens"]
        for form, tokens in (("two_rows", dpo["work"]["two_rows"]), ("prompt_once", dpo["work"]["prompt_once"]))
    }
    rates = {form: amount / seconds for form, amount in flop.items()}
    return {
        "machine": machine,
        "dpo": {
            "seconds_per_step": seconds,
            "work": dpo["work"],
            "flop": flop,
            "flop_per_second": rates,
            "share_of_matmul_rate": {form: rate / machine["matmul_flop_per_second"] for form, rate in rates.items()},
            "profile": dpo["profile"],
        },
        "grpo": {**_grpo(spread(grpo["seconds"][1:-1])["median"], machine, setting), "profile": grpo["profile"]},
        "decode": _decode([measure("ours:sampling", setting) for _ in range(repeats)], machine, setting),
    }


def _grpo(seconds: float, machine: Result, setting: Setting) -> Result:
    shape, rows = machine["model"], setting.prompts * setting.group
    responses = rows * setting.response
    tokens = responses + setting.prompts * shape["prompt_tokens"]
    flop = 6 * (shape["linear_weights"] * tokens + shape["embedding_weights"] * responses)
    sampling = setting.response * _decode_step(rows, machine, setting)[1]
    needed = sampling + flop / machine["matmul_flop_per_second"]
    return {
        "seconds_per_step": seconds,
        "flop_without_sampling": flop,
        "least_seconds": needed,
        "least_seconds_of_sampling": sampling,
        "share_of_limit": needed / seconds,
    }


def _decode_step(rows: int, machine: Result, setting: Setting) -> tuple[float, float]:
    """Return the bytes that a decode step reads, and its minimum time in seconds."""
    shape = machine["model"]
    weights = 2 * (shape["linear_weights"] + shape["embedding_weights"])
    context = shape["prompt_tokens"] + setting.response / 2
    moved = weights + rows * context * shape["cache_bytes_per_token"]
    return moved, max(moved / machine["bytes_per_second"], weights * rows / machine["matmul_flop_per_second"])


def _decode(runs: list[Result], machine: Result, setting: Setting) -> Result:
    found = {}
    for rows in setting.rows:
        moved, needed = _decode_step(rows, machine, setting)
        took = spread([run[str(rows)]["step_seconds"] for run in runs])["median"]
        found[str(rows)] = {
            "bytes": moved,
            "step_seconds": took,
            "least_seconds": needed,
            "share_of_limit": needed / took,
            "share_of_bandwidth": moved / took / machine["bytes_per_second"],
        }
    return found


def machine(setting: Setting) -> Result:
    """Return the matmul rate at the model's layer shapes, and the memory bandwidth, both in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignflow.models.base import identify
    from alignflow.models.load import load_tokenizer
    from benchmarks.ours import ROOT
    from tasks.paths import CONVERTED

    identity = identify(setting.model, None, converted=ROOT / CONVERTED)
    config = AutoConfig.from_pretrained(identity.load_from)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    shapes = Counter((m.in_features, m.out_features) for m in layers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = read_prompts(setting, load_tokenizer(identity), setting.prompts)

    def matmul(inner: int, outer: int) -> float:
        x = torch.randn(1024, inner, dtype=torch.bfloat16, device=device)
        weight = torch.randn(outer, inner, dtype=torch.bfloat16, device=device)
        return _time(lambda: torch.nn.functional.linear(x, weight))

    seconds = {shape: matmul(*shape) for shape in shapes}
    flop = {shape: 2 * 1024 * shape[0] * shape[1] for shape in shapes}
    source = torch.ones(2**28 if device == "cuda" else 2**27, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    matrix, single = source.view(2**13, -1), source.float().view(2**13, -1)
    vector = matrix[:1]
    rates = {
        "copy": 4 * source.numel() / _time(lambda: target.copy_(source)),
        "matrix times vector": 2 * matrix.numel() / _time(lambda: torch.nn.functional.linear(vector, matrix)),
        "matrix times vector, float32": 4 * single.numel() / _time(lambda: single @ single[0]),
    }
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "matmul": {
            f"{a}x{b}": {"flop_per_second": flop[a, b] / seconds[a, b], "layers": n} for (a, b), n in shapes.items()
        },
        "matmul_flop_per_second": sum(flop[s] * n for s, n in shapes.items())
        / sum(seconds[s] * n for s, n in shapes.items()),
        "memory_bytes_per_second": rates,
        "bytes_per_second": max(rates.values()),
        "model": {
            "linear_weights": sum(a * b * n for (a, b), n in shapes.items()),
            "embedding_weights": head.in_features * head.out_features,
            "cache_bytes_per_token": 2 * 2 * config.num_hidden_layers * heads * width,
            "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        },
    }


def _time(run: Callable[[], object]) -> float:
    """Return the minimum time of a call, out of many in about a second."""
    import torch

    times: list[float] = []
    run()
    end = time.monotonic() + 1.0
    while time.monotonic() < end or len(times) < 3:
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def profiled_dpo(setting: Setting) -> Result:
    """Run DPO steps, the last one with the profiler; return the work of one step."""
    from benchmarks import ours
    from benchmarks.theirs import tokenizer_of

    result = _profiled(ours.dpo, setting)
    pairs = read_pairs(setting, tokenizer_of(setting), setting.pairs * setting.steps)
    prompt = sum(len(p.prompt) for p in pairs)
    responses = sum(len(p.chosen) + len(p.rejected) for p in pairs)
    work = {"two_rows": 2 * prompt + responses, "prompt_once": prompt + responses, "response_tokens": responses}
    return {**result, "work": {name: amount / setting.steps for name, amount in work.items()}}


def profiled_grpo(setting: Setting) -> Result:
    """Run GRPO steps, the last one with the profiler."""
    from benchmarks import ours

    return _profiled(ours.grpo, setting)


def _profiled(run: Callable[..., Result], setting: Setting) -> Result:
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    profiler = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
    steps = max(3, setting.steps)

    def each(step: int) -> None:
        if step == steps - 1:
            profiler.start()
        elif step == steps:
            profiler.stop()

    result = run(replace(setting, steps=steps), each)
    seconds = {
        e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 for e in profiler.key_averages()
    }
    calls = {e.key: e.count for e in profiler.key_averages()}
    total = sum(seconds.values())
    top = sorted(seconds, key=lambda name: -seconds[name])[:TOP]
    return {
        **result,
        "profile": [
            {"operator": name, "seconds": seconds[name], "share": seconds[name] / total, "calls": calls[name]}
            for name in top
        ],
    }
