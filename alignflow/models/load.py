"""Loads the base model, 4-bit or not, and its tokenizer; handles differences between architectures."""

import re
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from alignflow.matmul import matmul_dtype
from alignflow.models.base import BaseIdentity, BaseModelError, template_names
from alignflow.models.linear import compute_in


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base model, to which adapters can be attached."""

    model: Any
    """A transformers causal language model."""
    tokenizer: Any
    identity: BaseIdentity
    quantization: str
    device: torch.device
    dtype: torch.dtype
    compute: torch.dtype
    """Dtype in which products of matrices are computed; their operands and results are of ``dtype``."""


class UnsupportedModel(ValueError):
    """The architecture computes logits in a way that the fast log-probs do not support."""


class TemplateMismatch(UnsupportedModel):
    """The base model has no chat template, or its tokenizer lacks tokens of the chosen one."""


class TooLong(ValueError):
    """A sequence is longer than the model has positions."""


def load_tokenizer(identity: BaseIdentity) -> Any:
    """Return the base model's tokenizer with the chat template of the identity.

    A named template starts with the beginning-of-sequence token if the tokenizer starts a text with it.

    Raises:
        UnsupportedModel: it has no end-of-sequence token.
        TemplateMismatch: it has no chat template, or lacks control tokens of the chosen one.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(identity.load_from, revision=identity.revision)
    tokenizer.init_kwargs.pop("local_files_only", None)  # saved files must not depend on whether the Hub was reachable
    if tokenizer.eos_token_id is None:
        raise UnsupportedModel(f"{identity.model} has no end-of-sequence token")
    if identity.chat_template_text is not None:
        _set_template(tokenizer, identity.chat_template_text, identity)
    if tokenizer.chat_template is None:
        raise TemplateMismatch(
            f"{identity.model} has no chat template; choose one of {', '.join(template_names())} (plain fits every "
            "tokenizer), or a .jinja file"
        )
    return tokenizer


def _set_template(tokenizer: Any, text: str, identity: BaseIdentity) -> None:
    """Set a tokenizer's template; a comment ``{# needs: TOKENS #}`` in it names the control tokens that it writes."""
    needed = " ".join(re.findall(r"\{#-?\s*needs:(.*?)-?#\}", text, re.DOTALL)).split()
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    missing = [token for token in needed if token not in added]
    if missing:
        raise TemplateMismatch(
            f"chat template {identity.chat_template} writes {', '.join(missing)}, which the tokenizer of "
            f"{identity.model} does not have as control tokens; take plain, or a .jinja file without them"
        )
    tokenizer.chat_template = text
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if starts and identity.chat_template in template_names() and tokenizer.bos_token not in text:
        tokenizer.chat_template = "{{- bos_token -}}\n" + text


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU; with several processes, each must have chosen its GPU before."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_base(
    identity: BaseIdentity, *, quantization: str, dtype: str, compute: torch.dtype | None = None
) -> LoadedBase:
    """Load the frozen base on the default device.

    Args:
        identity: identity of the model.
        quantization: ``nf4`` (4-bit, double quantisation; Dettmers et al. 2023, arXiv:2305.14314) or ``none``.
        dtype: dtype of activations and unquantised weights, e.g. ``bfloat16``.
        compute: dtype in which products are computed, at least as exact as ``dtype``; None: the one that is fastest
            on the device.

    Raises:
        BaseModelError: its weights are broken, or their file holds more than tensors.
        UnsupportedModel: its logits are not head(hidden states) in a form that this project supports.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device, kept = default_device(), getattr(torch, dtype)
    compute = compute or matmul_dtype(kept, device)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=kept,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            identity.load_from,
            revision=identity.revision,
            dtype=kept,
            device_map={"": device},
            quantization_config=nf4 if quantization == "nf4" else None,
        )
    except (SafetensorError, UnpicklingError) as error:
        broken = "are broken" if isinstance(error, SafetensorError) else "are broken or hold more than tensors"
        raise BaseModelError(f"the weights of {identity.model} {broken}, and nothing of them was loaded") from error
    model.eval()  # no dropout: policy and reference must differ only by their weights
    model.requires_grad_(False)
    if quantization == "nf4":
        _keep_trainable_layout(model)
    if compute != kept:
        compute_in(model, compute)
    base = LoadedBase(model, load_tokenizer(identity), identity, quantization, device, kept, compute)
    _check_logits(base)
    return base


def decoder_of(model: Any) -> Any:
    """Return the part of a causal language model that computes hidden states, without the output embedding."""
    return getattr(model, model.base_model_prefix)


def softcap_of(model: Any) -> float:
    """Return the cap of c·tanh(logits / c) that some models apply, or 0."""
    return float(getattr(model.config, "final_logit_softcapping", None) or 0.0)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return each real token's index among its row's real tokens, for padding on any side. (B, S) int64

    Padding gets the index of a neighbour, so that all indices are in the model's table.
    """
    positions: Tensor = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return positions


def learned_positions(model: Any) -> int | None:
    """Return the number of learned positions of a model; None if positions are computed (e.g. rotary) and unlimited."""
    count = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = set(model.get_input_embeddings().modules())
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m not in words]
    # some tables have up to two extra rows before the first position
    return count if count and any(count <= rows <= count + 2 for rows in tables) else None


def check_length(length: int, limit: int | None) -> None:
    """Refuse a sequence that is too long, before the model fails in a lookup, which a GPU process does not survive.

    Args:
        length: number of tokens of the sequence.
        limit: result of ``learned_positions``.

    Raises:
        TooLong: it is longer than the limit.
    """
    if limit is not None and length > limit:
        raise TooLong(
            f"a sequence of up to {length} tokens does not fit the base model, which has learned {limit} positions"
        )


def _keep_trainable_layout(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking weights for inference on CPUs with AVX-512 bf16.

    Its 4-bit layer does so in place on the first forward pass without gradients. After that no gradient flows through
    the layer, and its numbers differ from those of training.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _check_logits(base: LoadedBase) -> None:
    """Compare the model's own logits with head(hidden states) on a few tokens."""
    ids: Tensor = torch.arange(4, device=base.device)[None]
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits.float()
        hidden = decoder_of(base.model)(input_ids=ids).last_hidden_state
        logits = base.model.get_output_embeddings()(hidden).float()
    cap = softcap_of(base.model)
    found = cap * torch.tanh(logits / cap) if cap else logits
    if not torch.allclose(expected, found, atol=1e-2 * float(expected.abs().max())):
        raise UnsupportedModel(
            f"{base.identity.model} ({type(base.model).__name__}) changes its logits after the output embedding "
            "in a way that this project does not support"
        )
