"""A frozen base that several processes of one machine hold once between them.

FSDP (Zhao et al. 2023, arXiv:2304.11277) collects each layer from all processes before it runs, so all must run the
same passes; here each cuts its own rows into micro-batches. But nobody writes to a frozen base: it can lie in memory
that all processes map, and each reads it when it likes. On CPUs the weights themselves lie there. On GPUs, those of
linear layers come over when their layer computes, forward or backward, and leave again, as FSDP's do; tests do so on
a CPU, on a GPU it has not run yet.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from alignflow import distributed

ALIGNMENT = 64  # bytes, as torch's own allocator


class CannotShare(ValueError):
    """The processes have no memory in common."""


def share_base(model: Any) -> None:
    """Let all processes, which must all call this, hold the frozen weights of a causal language model once.

    Call it before adapters are attached. A single process is left as it is. Once the processes have ended, however they
    did, nothing is left behind.

    Raises:
        CannotShare: they are on several machines, or not on Linux.
    """
    if distributed.world() == 1:
        return
    if model.device.type == "cpu":
        parameters = list(model.parameters())
        for parameter, common in zip(parameters, _in_common(parameters), strict=True):
            parameter.data = common
    else:
        head = model.get_output_embeddings()  # log-probs take its weight without running it
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        for layer, common in zip(layers, _in_common([layer.weight for layer in layers]), strict=True):
            fetch_around(layer, common)
    distributed.barrier()  # the main process has copied all


def fetch_around(layer: nn.Linear, common: Tensor) -> None:
    """Let the weight of a frozen layer take memory of its own only while the layer computes, forward or backward.

    Its storage is filled and emptied in place: what a forward pass keeps of it for the gradient stays valid.

    Args:
        layer: 4-bit or not; it then carries ``common``, for ``weight_of``.
        common: where its weight lies for good.
    """
    weight, users = layer.weight, 0
    weight.data = torch.empty_like(weight.data)  # loaders may hand out storages that cannot be resized
    weight.untyped_storage().resize_(0)

    def fetch(*_: object) -> None:
        nonlocal users
        if torch._C._current_graph_task_id() < 0:  # outside of backward passes: one that broke off drops nothing
            users = 0
        users += 1
        if weight.untyped_storage().nbytes() == 0:
            weight.untyped_storage().resize_(common.nbytes)
            weight.data.copy_(common, non_blocking=True)

    def drop(*_: object) -> None:
        nonlocal users
        users -= 1  # a layer may be computed again between the two ends of its backward pass
        if users == 0:
            weight.untyped_storage().resize_(0)

    layer.common = common
    layer.register_forward_pre_hook(fetch)
    layer.register_forward_hook(drop, always_call=True)
    layer.register_full_backward_pre_hook(fetch)
    layer.register_full_backward_hook(drop)


def weight_of(layer: nn.Linear) -> Tensor:
    """Return the weight of a frozen layer, also where it is elsewhere while the layer does not compute."""
    common = getattr(layer, "common", None)
    return layer.weight.data if common is None else common.to(layer.weight.device)


def _in_common(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield each tensor as it lies in memory that all processes map; the main one copies it there just before."""
    *starts, size = accumulate((-(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in tensors), initial=0)
    memory = _map(size)
    if tensors[0].is_cuda:  # pinned, it can be read without waiting
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(runtime.cudaHostRegister(memory.data_ptr(), size, 0))
    for tensor, start in zip(tensors, starts, strict=True):
        common = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        if distributed.is_main():
            common.copy_(tensor)
        yield common


def _map(size: int) -> Tensor:
    """Return new memory that all processes map, in bytes. It has no name and goes with the last of them."""
    machines = sorted(set(distributed.gather(socket.gethostname())))
    if len(machines) > 1 or not hasattr(os, "memfd_create"):
        where = f"these run on {', '.join(machines)}" if len(machines) > 1 else "this is not Linux"
        raise CannotShare(f"a base can be shared by the processes of one machine with Linux, but {where}")
    file = os.memfd_create("alignflow") if distributed.is_main() else -1
    if distributed.is_main():
        os.ftruncate(file, size)
    path = distributed.gather(f"/proc/{os.getpid()}/fd/{file}")[0]
    memory = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    distributed.barrier()
    if distributed.is_main():
        os.close(file)
    return memory
