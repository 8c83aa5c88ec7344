"""The checks behind ``alignflow doctor``: what runs where, and whether it can."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.running.advice import explained

DoctorResult = tuple[str, bool, str]
"""What was checked, whether it is usable, and what was found."""

Look = Callable[[], tuple[bool, str]]
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "prefect", "fastapi", "mlflow", "dvc")


def diagnose(services: Mapping[str, Look]) -> list[DoctorResult]:
    """Check hardware, versions, settings, base model, data, tracking and other services; nothing is changed."""
    return [_guard(name, look) for name, look in {**LOOKS, **services}.items()]


def _guard(name: str, look: Look) -> DoctorResult:
    try:
        well, found = look()
    except Exception as error:  # a diagnosis reports whatever goes wrong
        return name, False, f"{type(error).__name__}: {explained(error)}"
    return name, well, found


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 11), sys.version.split()[0]


def _packages() -> tuple[bool, str]:
    missing, found = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return not missing, f"not installed: {', '.join(missing)}" if missing else ", ".join(found)


def _hardware() -> tuple[bool, str]:
    import torch

    from alignflow.matmul import has_bfloat16
    from tasks.running.hardware import describe, without_bfloat16

    if torch.cuda.is_available():
        return True, f"{describe()}; training runs on the GPU"
    products = "computed by its own instructions" if has_bfloat16() else without_bfloat16()
    return True, f"{describe()}; no GPU: training runs on the CPU; products of bfloat16 numbers are {products}"


def _memory() -> tuple[bool, str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return total >= 6, f"{total:.1f} GiB"


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return free >= 2, f"{free:.1f} GiB free here"


def _params() -> tuple[bool, str]:
    from tasks.params.read import load

    load(Path("params.yaml"))
    return True, "params.yaml is complete and in range"


def _sampling() -> tuple[bool, str]:
    from tasks.params.read import load
    from tasks.training.sampling import check_engine

    params = load(Path("params.yaml"))
    check_engine(params)
    return True, f"sampling.engine: {params.sampling.engine} can work here"


def _base() -> tuple[bool, str]:
    from alignflow.data.encoding import template_notes
    from alignflow.models.base import identify
    from alignflow.models.load import load_tokenizer
    from tasks.params.read import load
    from tasks.paths import CONVERTED

    base = load(Path("params.yaml")).base
    identity = identify(base.model, base.revision, converted=CONVERTED, chat_template=base.chat_template)
    template = f"chat template {base.chat_template or 'of its own'}"
    notes = template_notes(load_tokenizer(identity))
    found = f"{base.model}: {identity.weight_bytes / 2**20:.0f} MiB, {template}, runs as {base.quantization}"
    return True, "; ".join([found, *notes])


def _data() -> tuple[bool, str]:
    from tasks.data.check import FIRST, check
    from tasks.data.report import summary
    from tasks.params.read import load

    data = load(Path("params.yaml")).data
    found = check(data)
    seen = "" if found.whole else f" of the first {FIRST}"
    said = "; ".join(found.problems) or summary(found.report)
    forms = ", ".join(dict.fromkeys(layout.form for layout in found.layouts.values() if layout))
    return not found.problems, f"{data.path} ({forms}){seen}: {said}"


def _tracking() -> tuple[bool, str]:
    from tasks.paths import home
    from tasks.tracking.mlflow import unreachable
    from tasks.tracking.outbox import destination, pending, without_secrets

    uri = destination()
    waiting = pending(home() / "outbox")
    note = f"; {len(waiting)} records are not delivered; `alignflow deliver` sends them" if waiting else ""
    problem = "" if uri.startswith("sqlite:") else unreachable(uri)
    return not problem, f"MLflow at {without_secrets(uri)}{f': {problem}' if problem else ''}{note}"


LOOKS: dict[str, Look] = {
    "python": _python,
    "packages": _packages,
    "hardware": _hardware,
    "memory": _memory,
    "disk": _disk,
    "params": _params,
    "sampling": _sampling,
    "base model": _base,
    "data": _data,
    "tracking": _tracking,
}
