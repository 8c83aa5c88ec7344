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
from alignflow.models.roles import SharedBase
from alignflow.types import Pair
from tasks.paths import home

CODE = Path(alignflow.__file__).parent
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def kept(key: str, compute: Callable[[], Tensor], *, pairs: int, say: Callable[[str], None]) -> Tensor:
    """Return the log-probs kept under a key, or compute them and keep them. (2, pairs) float32

    A file that cannot be read is said, computed again and replaced.

    Args:
        key: of ``key_of``.
        compute: gives the log-probs of chosen and rejected responses. (2, pairs)
        pairs: how many there are.
        say: receives a line for the user.
    """
    from safetensors.torch import save

    path = home() / "reference_logps" / f"{key}.safetensors"
    # one process looks for all: they compute together or not at all
    found = distributed.gather(_read(path, pairs, say) if distributed.is_main() else None)[0]
    if found is not None:
        say(f"reference log-probs of {pairs} pairs: kept from an earlier run")
        return found
    computed = compute()
    if distributed.is_main():
        checkpoint.replace(path, lambda file: file.write(save({"logps": computed.float().cpu().contiguous()})))
    return computed


def _read(path: Path, pairs: int, say: Callable[[str], None]) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        return None
    try:
        found: Tensor = load_file(path)["logps"]
        if (found.shape, found.dtype) != ((2, pairs), torch.float32):
            raise ValueError(f"{tuple(found.shape)} {found.dtype}")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        say(f"{path} is broken ({error}): computes the reference's log-probs again")
        return None
    return found


def key_of(models: SharedBase, pairs: Sequence[Pair], budget: int) -> str:
    """Return a hash of all that the reference's log-probs depend on, to the last bit.

    These are weights, precision, device, token ids with their boundaries, the sizes of the passes and the number of
    processes that share them, the libraries and this project's own core, any edit of which computes them anew.
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
    for file in (*sorted(CODE.rglob("*.py")), Path(__file__).with_name("pairs.py")):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for pair in pairs:
        digest.update(json.dumps([pair.prompt, pair.chosen, pair.rejected]).encode())
    return digest.hexdigest()
