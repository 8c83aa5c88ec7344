"""Log-probs of a frozen reference, kept between runs under a hash of everything that they depend on.

A sweep over beta or the learning rate, a resumed run or another epoch finds the numbers that the first run computed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import alignflow
from alignflow import checkpoint, distributed
from alignflow.data.collate import collate
from alignflow.loops.by_rows import by_rows
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.types import Example, Sequences
from tasks.paths import home

CODE = Path(alignflow.__file__).parent
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
START_DIFFERENCE = 0.01  # nats a response; the same weights on the same rows give the same numbers


def reference_logps(
    models: SharedBase, examples: Sequence[Example], budget: Budget, *, say: Callable[[str], None]
) -> Tensor:
    """Return the summed response log-probs under the reference, kept from an earlier run where there was one. (B,)

    Args:
        models: with the role ``reference``.
        examples: prompts with responses. B
        budget: most tokens of a forward pass.
        say: receives a line for the user.
    """
    found = kept(
        key_of(models, examples, budget.size),
        lambda: summed_logps(models, "reference", examples, budget),
        rows=len(examples),
        say=say,
    )
    return found.to(models.base.device)


def summed_logps(models: SharedBase, role: str, examples: Sequence[Example], budget: Budget) -> Tensor:
    """Return a role's summed response log-probs, without gradient, shared by all processes. (B,)"""

    def logps(batch: Sequences) -> Tensor:
        return masked_sum(models.logprobs(role, batch)[0], batch.response_mask[:, 1:].to(models.base.device))

    return by_rows(logps, collate(examples), budget).to(models.base.device)


def check_start(models: SharedBase, examples: Sequence[Example], budget: Budget) -> None:
    """Check that policy and reference give the same log-probs.

    Raises:
        NotAtReference: they do not.
    """
    mine, other = (summed_logps(models, role, examples, budget) for role in ("policy", "reference"))
    difference = float((mine - other).abs().max())
    if not difference <= START_DIFFERENCE:
        raise NotAtReference(
            f"the policy should start at its reference, but their log-probs of a response differ by {difference:.3g} "
            "nats; they were loaded from different adapters"
        )


class NotAtReference(ValueError):
    """Policy and reference differ before the first update: a defect, never a setting."""


def kept(key: str, compute: Callable[[], Tensor], *, rows: int, say: Callable[[str], None]) -> Tensor:
    """Return the log-probs kept under a key, or compute them and keep them. (B,) float32

    A file that cannot be read is said, computed again and replaced.

    Args:
        key: of ``key_of``.
        compute: gives the log-probs. (B,)
        rows: how many there are.
        say: receives a line for the user.
    """
    from safetensors.torch import save

    path = home() / "reference_logps" / f"{key}.safetensors"
    # one process looks for all: they compute together or not at all
    found = distributed.gather(_read(path, rows, say) if distributed.is_main() else None)[0]
    if found is not None:
        say(f"reference log-probs of {rows} responses: kept from an earlier run")
        return found
    computed = compute()
    if distributed.is_main():
        checkpoint.replace(path, lambda file: file.write(save({"logps": computed.float().cpu().contiguous()})))
    return computed


def _read(path: Path, rows: int, say: Callable[[str], None]) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        return None
    try:
        found: Tensor = load_file(path)["logps"]
        if (found.shape, found.dtype) != ((rows,), torch.float32):
            raise ValueError(f"{tuple(found.shape)} {found.dtype}")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        say(f"{path} is broken ({error}): computes the reference's log-probs again")
        return None
    return found


def key_of(models: SharedBase, examples: Sequence[Example], budget: int) -> str:
    """Return a hash of all that the reference's log-probs depend on, to the last bit.

    These are weights, precision, device, token ids with their boundaries, the sizes of the passes and the number of
    processes that share them, the libraries, this project's own core and this file, any edit of which computes them
    anew.
    """
    base = models.base
    settings = {
        "base": base.identity.sha256,
        "quantization": base.quantization,
        "dtype": str(base.dtype),
        "device": torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else base.device.type,
        "shape": asdict(models.shape),
        "adapter": models.fingerprint("reference"),
        "budget": budget,
        "processes": distributed.world(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in (*sorted(CODE.rglob("*.py")), Path(__file__)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for example in examples:
        digest.update(json.dumps(example).encode())
    return digest.hexdigest()
