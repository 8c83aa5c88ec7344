"""One frozen base in memory for several processes of one machine.

FSDP (Zhao et al. 2023, arXiv:2304.11277) gathers each layer from all processes before it runs, so all processes must
run the same passes. Here each process cuts its own rows into micro-batches. But a frozen base is read only, so it can
be in memory that all processes map, without synchronisation. On CPUs the weights themselves are there. On GPUs the
weight of a linear layer is copied to the device while the layer computes, forward or backward, and then freed, as in
FSDP. Tests do this on a CPU; it has not run on a GPU yet.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from alignflow import distributed

ALIGNMENT = 64  # bytes, as in torch's allocator


class CannotShare(ValueError):
    """The processes cannot share memory."""


def share_base(model: Any) -> None:
    """Move the frozen weights of a causal language model to shared memory. All processes must call it.

    Call it before adapters are attached. With a single process it does nothing. The memory is freed when the processes
    end, also when they crash.

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
        head = model.get_output_embeddings()  # log-probs use its weight without a forward pass of the layer
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        for layer, common in zip(layers, _in_common([layer.weight for layer in layers]), strict=True):
            fetch_around(layer, common)
    distributed.barrier()  # the main process has copied all weights


def fetch_around(layer: nn.Linear, common: Tensor) -> None:
    """Keep the weight of a frozen layer on its device only while the layer computes, forward or backward.

    Its storage is filled and emptied in place, so references that a forward pass saved for the gradient stay valid.

    Args:
        layer: a linear layer, 4-bit or not; it gets the attribute ``common``, for ``weight_of``.
        common: the permanent copy of its weight.
    """
    weight, users = layer.weight, 0
    weight.data = torch.empty_like(weight.data)  # loaders may return storages that cannot be resized
    weight.untyped_storage().resize_(0)

    def fetch(*_: object) -> None:
        nonlocal users
        if torch._C._current_graph_task_id() < 0:  # no backward pass runs; a failed one did not drop
            users = 0
        users += 1
        if weight.untyped_storage().nbytes() == 0:
            weight.untyped_storage().resize_(common.nbytes)
            weight.data.copy_(common, non_blocking=True)

    def drop(*_: object) -> None:
        nonlocal users
        users -= 1  # a layer may be recomputed between the start and the end of its backward pass
        if users == 0:
            weight.untyped_storage().resize_(0)

    layer.common = common
    layer.register_forward_pre_hook(fetch)
    layer.register_forward_hook(drop, always_call=True)
    layer.register_full_backward_pre_hook(fetch)
    layer.register_full_backward_hook(drop)


def weight_of(layer: nn.Linear) -> Tensor:
    """Return the weight of a frozen layer, also if it is on its device only while the layer computes."""
    common = getattr(layer, "common", None)
    return layer.weight.data if common is None else common.to(layer.weight.device)


def _in_common(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield each tensor in memory that all processes map; the main process copies it there first."""
    *starts, size = accumulate((-(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in tensors), initial=0)
    memory = _map(size)
    if tensors[0].is_cuda:  # pinned memory can be read asynchronously
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(runtime.cudaHostRegister(memory.data_ptr(), size, 0))
    for tensor, start in zip(tensors, starts, strict=True):
        common = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        if distributed.is_main():
            common.copy_(tensor)
        yield common


def _map(size: int) -> Tensor:
    """Return new memory that all processes map. It has no name and is freed with the last process."""
    machines = sorted(set(distributed.gather(socket.gethostname())))
    if len(machines) > 1 or not hasattr(os, "memfd_create"):
        where = f"these run on {', '.join(machines)}" if len(machines) > 1 else "this is not Linux"
        raise CannotShare(f"a base can be shared by the processes of one Linux machine, but {where}")
    file = os.memfd_create("alignflow") if distributed.is_main() else -1
    if distributed.is_main():
        os.ftruncate(file, size)
    path = distributed.gather(f"/proc/{os.getpid()}/fd/{file}")[0]
    memory = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    distributed.barrier()
    if distributed.is_main():
        os.close(file)
    return memory
