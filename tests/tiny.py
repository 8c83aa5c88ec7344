"""Random models of two layers, of several families, with a tokenizer of characters, written to a folder."""

from pathlib import Path
from typing import Any

import torch

from alignflow.models.adapters import AdapterShape
from alignflow.models.base import identify
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from alignflow.types import Sequences
from tests.toy import rows

EOS, START, PAD = "<|im_end|>", "<|im_start|>", "<pad>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = AdapterShape(rank=4, alpha=8, target_modules="all-linear")


LIMIT = 256
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LIMIT,
    "initializer_range": 0.15,  # large, so that logits differ clearly
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_inner": 128},
    "qwen3": {"head_dim": 16},
    # caps so low that they bend every logit, and a window shorter than the rows
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma": {"head_dim": 16},
    "mistral": {"sliding_window": 5},
    "phi": {"partial_rotary_factor": 0.5},
}
"""What each family, by transformers' name of it, needs besides the common sizes."""


def write_model(folder: Path, family: str = "llama", *, pad: str | None = PAD, **settings: Any) -> Path:
    """Write a random model with its tokenizer; settings go to the family's configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = write_tokenizer(folder, pad)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{**SIZES, **FAMILIES.get(family, {}), **settings},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they start at 0, where forgetting one would change nothing
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, pad: str | None = PAD) -> Any:
    """Write a tokenizer of single characters; it may lack a pad token or share it with end-of-sequence."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "\n", *(chr(i) for i in range(32, 127))]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[], unk_token="<unk>"))
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (EOS, START, PAD)])
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=pad, unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def open_base(
    folder: Path, quantization: str = "none", dtype: str = "float32", compute: torch.dtype | None = None
) -> SharedBase:
    identity = identify(str(folder), None, converted=folder)
    return SharedBase(load_base(identity, quantization=quantization, dtype=dtype, compute=compute), SHAPE)


def four_roles(
    folder: Path, quantization: str = "none", dtype: str = "float32", compute: torch.dtype | None = None
) -> SharedBase:
    """Open a model with the four roles of PPO, all different; the critic's head has a bias."""
    models = open_base(folder, quantization, dtype, compute)
    for seed, role in enumerate(("policy", "reference", "reward_model", "critic")):
        models.add(role, trained=role in {"policy", "critic"})
        disturb(models, role, seed)
    models.add_head("reward_model", seed=1)
    models.add_head("critic", seed=2, bias=0.4)
    return models


def disturb(models: SharedBase, role: str, seed: int = 0, scale: float = 0.1) -> None:
    """Give a role's adapter random weights, so that it differs from the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in models.parameters(role, heads=False):
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise)


def some_rows(seed: int = 0) -> Sequences:
    """Return four rows of different prompt and response lengths with random ids."""
    batch = rows([(3, 4), (6, 2), (2, 9), (5, 1)])
    ids = torch.randint(1, 250, batch.input_ids.shape, generator=torch.Generator().manual_seed(seed))
    return Sequences(torch.where(batch.attention_mask, ids, 0), batch.attention_mask, batch.response_mask)
