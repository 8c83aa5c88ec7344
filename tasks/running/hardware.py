"""What this process runs on, and how much memory it has used."""

import os
import platform
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def describe() -> str:
    """Return e.g. ``2 cores, AMD EPYC`` or ``NVIDIA H200, 139.8 GiB``."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"{device.name}, {device.total_memory / 2**30:.1f} GiB"
    return f"{os.cpu_count()} cores, {_processor()}"


def kind() -> str:
    """Return what decides the last digits of a result: the name of the GPU, or the instructions of the processor."""
    import torch

    from alignflow.matmul import has_bfloat16

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}{' and bfloat16' if has_bfloat16() else ''}"


def without_bfloat16() -> str:
    """Return how this processor multiplies bfloat16 numbers if it has no instructions for them."""
    return "computed in float32 and rounded, because this processor has no bfloat16 instructions"


def peak_memory_gib() -> float:
    """Return the peak memory in GiB: of the allocator on a GPU, else of the process (RSS).

    Several processes must all call this; it returns the largest of their peaks.
    """
    import torch

    from alignflow import distributed

    if torch.cuda.is_available():
        return max(distributed.gather(torch.cuda.max_memory_allocated() / 2**30))
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    return max(distributed.gather(kib / 2**20))


def free_memory(device: "torch.device") -> int | None:
    """Return the free memory of a device in bytes, or None where the system does not report it."""
    import torch

    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
