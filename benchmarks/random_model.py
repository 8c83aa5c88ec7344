"""Writes random Llama models of real sizes in NF4: speed and memory do not depend on the values of weights.

`python -m benchmarks.random_model SIZE FOLDER` with SIZE one of tiny, 1b, 8b.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {  # as Llama 3.2 1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8b": {  # as Llama 3.1 8B
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 128256,
    },
}


def write(size: str, folder: Path) -> Path:
    """Write a random model with the default base's tokenizer, quantised layer by layer."""
    import bitsandbytes as bnb
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from benchmarks.theirs import nf4, tokenizer_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tokenizer_of(Setting())
    config = LlamaConfig(
        **{"vocab_size": len(tokenizer), **SIZES[size]},
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 4,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and module is not head:
            small = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            weight = module.weight.data.cpu()  # moving it to a device quantises it
            small.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, small.to(device))
    model.config.quantization_config = nf4(torch.bfloat16).to_dict()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
