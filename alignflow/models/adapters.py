"""PEFT adapters: attaches them to a base, and saves and loads them as plain PEFT folders."""

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignflow.matmul import matmul
from alignflow.models.base import BaseIdentity
from alignflow.models.linear import frozen_linear
from alignflow.models.sharing import weight_of

HEAD = "score"  # name of a sequence classifier's scalar head in transformers
HEAD_KEY = f"base_model.model.{HEAD}."


@dataclass(frozen=True)
class AdapterShape:
    """Shape of all adapters of a run (LoRA; Hu et al. 2021, arXiv:2106.09685)."""

    rank: int
    alpha: float
    target_modules: str | tuple[str, ...]


def saved_shape(folder: Path) -> AdapterShape:
    """Return the shape of the adapter in a folder.

    Raises:
        UnlikeAdapter: the folder holds no adapter.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        raise UnlikeAdapter(f"{folder} holds no adapter ({path.name} is missing)")
    saved = json.loads(path.read_text())
    return AdapterShape(saved["r"], saved["lora_alpha"], tuple(saved["target_modules"]))


class Head(NamedTuple):
    """A saved scalar head."""

    weight: Tensor
    bias: float | None


class AdaptsOutput(ValueError):
    """An adapter's shape includes the output embedding."""


class UnlikeAdapter(ValueError):
    """A folder contains no adapter, or one that does not fit the model or the expected shape."""


def attach(model: Any, name: str, shape: AdapterShape, *, seed: int) -> Any:
    """Return the PEFT model with a new adapter. Its B is 0, so that it does not change the model's output.

    There is no dropout, because the ratio of policy to reference must not be random.

    Raises:
        AdaptsOutput: the shape adapts the output embedding.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = shape.target_modules
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # PEFT samples A with the global generator
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise AdaptsOutput(
            f"an adapter of {targets} includes the output embedding, but log-probs take the base model's own"
        )
    return model


def belongs(key: str, name: str) -> bool:
    """Return whether a parameter is part of an adapter; of adapted tables, its name is the last part."""
    return f".{name}." in f"{key}."


def lora_layers(model: Any) -> list[Any]:
    """Return all layers that have adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def dense(layer: Any, name: str, compute: torch.dtype) -> nn.Module | None:
    """Return an adapted layer as one plain linear layer, or None for a kind of layer that has no plain form.

    Args:
        layer: a PEFT layer.
        name: adapter to merge; if the layer has none of this name, the result is the base layer.
        compute: dtype of its products, in which the plain layer holds its weight.
    """
    import bitsandbytes as bnb

    base = layer.get_base_layer()
    if isinstance(base, bnb.nn.Linear4bit):
        weight = bnb.functional.dequantize_4bit(weight_of(base), base.weight.quant_state)
    elif isinstance(base, nn.Linear):
        weight = weight_of(base)
    else:
        return None
    if name in layer.lora_A:
        weight = (weight.float() + _delta(layer, name, weight.dtype, compute).float()).to(weight.dtype)
    return frozen_linear(weight, base.bias, compute)


def _delta(layer: Any, name: str, dtype: torch.dtype, compute: torch.dtype) -> Tensor:
    """Return (α/r)·B·A, as PEFT computes it; it knows no other dtype for the product than that of the weights."""
    delta: Tensor
    if compute == dtype:
        delta = layer.get_delta_weight(name)
    else:
        delta = matmul(layer.lora_B[name].weight, layer.lora_A[name].weight, compute, dtype) * layer.scaling[name]
    return delta


def dense_bytes(model: Any, compute: torch.dtype) -> int:
    """Return the size of the plain forms of all adapted layers, in bytes; their weights are of the given dtype."""
    bases = [layer.get_base_layer() for layer in lora_layers(model)]
    return sum(base.in_features * base.out_features for base in bases if isinstance(base, nn.Linear)) * compute.itemsize


def save(model: Any, name: str, folder: Path, *, identity: BaseIdentity, head: nn.Linear | None) -> None:
    """Write one adapter as a PEFT folder; with a head, as a sequence classifier that plain PEFT loads.

    Such a classifier has no bias: plain PEFT ignores the head's bias, ``load_weights`` returns it.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    config = deepcopy(model.peft_config[name])
    config.base_model_name_or_path = identity.load_from
    config.revision = identity.revision
    config.inference_mode = True
    if head is not None:
        weights |= {HEAD_KEY + key: value for key, value in head.state_dict().items()}
        config.task_type, config.modules_to_save = "SEQ_CLS", [HEAD]
    config.target_modules = sorted(config.target_modules)  # sets have no order, and the file's hash must not change
    contiguous = {key: value.detach().cpu().contiguous() for key, value in sorted(weights.items())}
    save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def load_weights(model: Any, name: str, folder: Path) -> Head | None:
    """Load a folder into an attached adapter of the same shape, and return the head if there is one.

    Raises:
        UnlikeAdapter: the folder contains no adapter, or one of another shape.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise UnlikeAdapter(f"{folder} holds no adapter (adapter_model.safetensors is missing)")
    saved, mine = json.loads((folder / "adapter_config.json").read_text()), model.peft_config[name]
    if (saved["r"], saved["lora_alpha"]) != (mine.r, mine.lora_alpha):
        raise UnlikeAdapter(
            f"{folder} holds an adapter of rank {saved['r']} and alpha {saved['lora_alpha']}, "
            f"but rank {mine.r} and alpha {mine.lora_alpha} are expected"
        )
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UnlikeAdapter(f"{path} is broken: {error}") from error
    head, bias = (weights.pop(HEAD_KEY + key, None) for key in ("weight", "bias"))
    try:
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except RuntimeError as error:
        raise UnlikeAdapter(f"{folder} holds an adapter of another shape than expected: {error}") from error
    missing = [key for key in result.missing_keys if belongs(key, name)]
    if missing or result.unexpected_keys:
        raise UnlikeAdapter(
            f"{folder} does not fit this base model or the target modules: "
            f"{len(missing)} tensors missing, {len(result.unexpected_keys)} unknown"
        )
    return None if head is None else Head(head, None if bias is None else float(bias))


def fingerprint(parameters: Sequence[Tensor]) -> str:
    """Return a hash of the tensors' contents."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
