"""A random Llama of two layers with a tokenizer of characters, written to a folder."""

from pathlib import Path

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


def write_model(folder: Path) -> Path:
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<unk>", "\n", *(chr(i) for i in range(32, 127))]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[], unk_token="<unk>"))
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (EOS, START, PAD)])
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=PAD, unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,  # large, so that logits differ clearly
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def open_base(folder: Path, quantization: str = "none", dtype: str = "float32") -> SharedBase:
    base = load_base(identify(str(folder), None, converted=folder), quantization=quantization, dtype=dtype)
    return SharedBase(base, SHAPE)


def disturb(models: SharedBase, role: str, seed: int = 0, scale: float = 0.1) -> None:
    """Give a role's adapter random weights, so that it differs from the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in models.parameters(role, heads=False):
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise)


def some_rows(seed: int = 0) -> Sequences:
    """Return four rows of unlike prompt and response lengths with random ids."""
    batch = rows([(3, 4), (6, 2), (2, 9), (5, 1)])
    ids = torch.randint(1, 250, batch.input_ids.shape, generator=torch.Generator().manual_seed(seed))
    return Sequences(torch.where(batch.attention_mask, ids, 0), batch.attention_mask, batch.response_mask)
