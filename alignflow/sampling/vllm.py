"""Samples responses with vLLM on a CUDA device: the optional engine behind ``tasks/training/sampling.py``.

Written for the documented interface of vLLM 0.11 and newer, and tested with a fake engine; it has not run on a GPU yet.

vLLM has its own copy of the base (in NF4 if the base is), and gets a role as an adapter folder. Its kernels round
differently from those of training, and rounding depends on the rest of the batch. So each response comes with its
log-probs, for ``ops.importance_weights``, and a seed gives the same response only for the same batch.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from alignflow import distributed
from alignflow.models.roles import BASE, SharedBase
from alignflow.sampling.own import Response, row_seed

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks of vLLM's kernels; an adapter takes the next larger one
_versions = count(1)  # each adapter gets a new id: vLLM caches adapters and prefixes by id


class VLLMError(ValueError):
    """The engine's output is not a valid response."""


class VLLMUnavailable(VLLMError):
    """The engine cannot work on this machine."""


class VLLMTooShort(VLLMError):
    """A prompt with its response is longer than the engine's limit."""


class RankTooLarge(VLLMError):
    """The engine has no kernels for adapters of this rank."""


def generate(
    models: SharedBase,
    role: str,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Sequence[int],
    max_response_length: int,
    temperature: float,
    seed: int,
    rows: int,
    longest: int,
    memory_fraction: float,
    streams: Sequence[int] | None = None,
) -> list[Response]:
    """Sample one response to each prompt as a role (the base without adapter), as ``own.generate`` does.

    Additional arguments: ``longest`` is the maximum number of tokens of a prompt with its response,
    ``memory_fraction`` the share of the device's memory that the engine takes.

    Raises:
        VLLMUnavailable: vLLM or a CUDA device is missing.
        VLLMTooShort: a prompt with its response is too long.
        RankTooLarge: the adapter's rank is too large.
        VLLMError: a response has no end.
    """
    require(models.base.device)
    needed = max(map(len, prompts), default=0) + max_response_length
    if needed > longest:
        raise VLLMTooShort(f"vLLM takes {longest} tokens, but a prompt with its response needs {needed}")
    from vllm import SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    engine = _engine(models, rows, longest, memory_fraction)
    common = {"temperature": temperature, "max_tokens": max_response_length, "stop_token_ids": list(eos_ids)}
    numbers = range(len(prompts)) if streams is None else streams
    settings = [  # logprobs=0: only that of the sampled token
        SamplingParams(**common, seed=row_seed(seed, number), logprobs=0, detokenize=False) for number in numbers
    ]
    texts = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
    with TemporaryDirectory() as folder:
        adapter = None
        if role != BASE:
            models.save_adapter(role, Path(folder))
            version = next(_versions)
            adapter = LoRARequest(f"{role}-{version}", version, folder)
        outputs = engine.generate(texts, settings, lora_request=adapter, use_tqdm=False)
    return [response(output.outputs[0], eos_ids) for output in outputs]


def require(device: torch.device) -> None:
    """Check that the engine can run on a device; raises ``VLLMUnavailable`` if it cannot."""
    if device.type != "cuda":
        raise VLLMUnavailable(f"vLLM needs a CUDA device, but models are on {device.type} here")
    if distributed.world() > 1:
        raise VLLMUnavailable("vLLM works in a single process, but several run")
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise VLLMUnavailable(
            f"vLLM cannot be imported ({error}); `pip install 'alignflow[vllm]'` installs it"
        ) from error


def adapter_rank(rank: int) -> int:
    """Return the smallest rank of vLLM's kernels that an adapter's rank fits."""
    if rank > RANKS[-1]:
        raise RankTooLarge(f"an adapter has rank {rank}, but vLLM supports at most {RANKS[-1]}")
    return next(known for known in RANKS if known >= rank)


def response(output: Any, eos_ids: Sequence[int]) -> Response:
    """Return a vLLM completion as a response; its log-probs are those at the sampling temperature."""
    tokens = tuple(output.token_ids)
    ended = bool(tokens) and tokens[-1] in eos_ids
    if not (output.finish_reason == "length" or (output.finish_reason == "stop" and ended)):
        raise VLLMError(f"vLLM returned a response of {len(tokens)} tokens without an end ({output.finish_reason})")
    logprobs = tuple(found[token].logprob for token, found in zip(tokens, output.logprobs, strict=True))
    return Response(tokens, not ended, logprobs)


@cache
def _engine(models: SharedBase, rows: int, longest: int, memory_fraction: float) -> Any:
    """Return the engine of this process; the first call starts it."""
    from vllm import LLM

    base = models.base
    return LLM(
        model=base.identity.load_from,
        revision=base.identity.revision,
        dtype=str(base.dtype).removeprefix("torch."),
        quantization="bitsandbytes" if base.quantization == "nf4" else None,
        enable_lora=True,
        max_lora_rank=adapter_rank(models.shape.rank),
        max_num_seqs=rows,
        max_model_len=longest,
        gpu_memory_utilization=memory_fraction,
        logprobs_mode="processed_logprobs",
    )
