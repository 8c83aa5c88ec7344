"""Sampling as all stages do it: responses of a role with their texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from alignflow import distributed
from alignflow.models.adapters import dense_bytes
from alignflow.models.load import default_device
from alignflow.models.roles import SharedBase
from alignflow.sampling.own import Response, generate
from tasks.params.sections import Params
from tasks.running.hardware import free_memory
from tasks.running.stage import Stage
from tasks.training.ends import eos_ids


def check_engine(params: Params) -> None:
    """Look before any model is loaded whether ``sampling.engine`` can work here.

    Raises:
        VLLMUnavailable: vLLM or a CUDA device is missing, or several processes want it.
    """
    if params.sampling.engine == "vllm":
        from alignflow.sampling.vllm import require

        require(default_device())


def sample(
    models: SharedBase, role: str, prompts: Sequence[tuple[int, ...]], params: Params, *, seed: int
) -> tuple[list[Response], list[str]]:
    """Sample one response to each prompt as a role, as while training; return tokens and texts."""
    section = params.sampling
    return answer(
        models, role, prompts, params, length=section.max_response_length, temperature=section.temperature, seed=seed
    )


def answer(
    models: SharedBase,
    role: str,
    prompts: Sequence[tuple[int, ...]],
    params: Params,
    *,
    length: int,
    temperature: float,
    seed: int,
) -> tuple[list[Response], list[str]]:
    """Sample one response of up to ``length`` tokens to each prompt as a role; return tokens and texts."""
    with sampler(models, role, params, length=length, temperature=temperature, seed=seed) as draw:
        responses = draw(prompts)
    return responses, decode(models, responses)


class Sampler(Protocol):
    """Samples one response to each prompt."""

    def __call__(
        self,
        prompts: Sequence[tuple[int, ...]],
        streams: Sequence[int] | None = None,
        tell: Callable[[float], None] | None = None,
    ) -> list[Response]:
        """Sample; arguments as in ``alignflow.sampling.own.generate``."""


@contextmanager
def sampler(
    models: SharedBase, role: str, params: Params, *, length: int, temperature: float, seed: int
) -> Iterator[Sampler]:
    """Give a function that samples as a role and can be called several times; merged layers are made once."""
    section, ends = params.sampling, eos_ids(models)
    settings: dict[str, Any] = {
        "eos_ids": ends,
        "max_response_length": length,
        "temperature": temperature,
        "seed": seed,
        "rows": section.rows,
    }
    if section.engine == "vllm":
        from alignflow.sampling import vllm

        settings |= {"longest": section.vllm_max_length, "memory_fraction": section.vllm_memory_fraction}
        yield lambda prompts, streams=None, tell=None: vllm.generate(  # noqa: ARG005  # the engine does not tell
            models, role, prompts, streams=streams, **settings
        )
    else:
        with answering(models, role, section.merged) as model:
            yield lambda prompts, streams=None, tell=None: generate(
                model, prompts, streams=streams, tell=tell, **settings
            )


def settle(stage: Stage, models: SharedBase) -> None:
    """Decide what ``sampling.merged: auto`` means for the whole stage, resumed runs of it too: memory changes."""
    settings = stage.params
    if settings.sampling.merged == "auto":
        plain = stage.once("sampling.merged", lambda: not distributed.agree(not _plain(models, "auto")))
        sampling = settings.sampling.model_copy(update={"merged": plain})
        stage.params = settings.model_copy(update={"sampling": sampling})


@contextmanager
def answering(models: SharedBase, role: str, merged: str | bool) -> Iterator[Any]:
    """Let the model answer as a role: in plain layers where ``sampling.merged`` is true, or auto and they fit."""
    with models.merged(role) if _plain(models, merged) else models.role(role):
        yield models.base.model


def _plain(models: SharedBase, merged: str | bool) -> bool:
    if isinstance(merged, bool):
        return merged
    needed, free = dense_bytes(models.base.model, models.base.compute), free_memory(models.base.device)
    if free is None or needed <= free / 2:  # the other half is for the cache of keys and values
        return True
    _announce(
        f"samples through the adapted layers, slower: plain ones take {needed / 2**30:.1f} GiB of the "
        f"{free / 2**30:.1f} GiB that are free (sampling.merged: auto in params.yaml; true forces them)"
    )
    return False


@cache
def _announce(text: str) -> None:
    print(f"[sampling] {text}", flush=True)


def decode(models: SharedBase, responses: Sequence[Response]) -> list[str]:
    """Return the texts of responses, without special tokens and without the one that ended them."""
    tokens = [list(r.tokens if r.truncated else r.tokens[:-1]) for r in responses]
    texts: list[str] = models.base.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def completions(
    prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float | None], most: int = 16
) -> list[dict[str, object]]:
    """Return the first few samples as rows of a table."""
    rows = zip(prompts[:most], texts[:most], scores[:most], strict=True)
    return [{"prompt": p, "response": t, "reward": None if s is None else round(s, 3)} for p, t, s in rows]
