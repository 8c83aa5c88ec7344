"""Program of two processes that share a 4-bit model; each writes its results into a folder."""

import json
import os
import sys
from pathlib import Path

import torch

from alignflow import distributed
from alignflow.models.sharing import share_base
from tests.tiny import open_base, some_rows

if __name__ == "__main__":
    distributed.join(cpu=True)
    models = open_base(Path(sys.argv[1]), "nf4", "bfloat16")
    with torch.no_grad():
        before = models.logprobs("base", some_rows())[0]
        share_base(models.base.model)
        after = models.logprobs("base", some_rows())[0]
    weights = list(models.base.model.parameters())
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:alignflow" in line]
    start, end = (int(address, 16) for address in maps[0][0].split("-"))
    distributed.barrier()
    if distributed.rank() == 1:
        for weight in weights:
            weight.data.view(torch.uint8).flatten()[-1] = 77
    distributed.barrier()
    seen = {
        "equal": before.equal(after),
        "mapped": [" ".join([device, inode]) for _, _, _, device, inode, *_ in maps],
        "inside": [start <= weight.data_ptr() < end for weight in weights],
        "last": [int(weight.data.view(torch.uint8).flatten()[-1]) for weight in weights],
        "open": [path for path in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if "memfd" in path],
    }
    Path(sys.argv[2], f"{distributed.rank()}.json").write_text(json.dumps(seen))
    distributed.barrier()
