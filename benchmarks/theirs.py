"""TRL's side of the benchmarks: its trainers and transformers' ``generate``, configured as in their documentation.

The base is loaded as on our side. Differences from TRL's defaults, so that the work is the same: no gradient
checkpointing (it costs time), rows in our order, our optimiser's schedule, and for GRPO answers that do not end early.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignflow.loops.order import rows_of_step
from alignflow.models.base import identify
from alignflow.models.load import load_tokenizer
from benchmarks.ours import ROOT, Watch, optimisation, sampling_prompts, sft_examples, timed_sampling
from benchmarks.setting import Setting, even_share, read_pairs, read_prompts, text_of
from tasks.paths import CONVERTED


def nf4(compute: torch.dtype) -> Any:
    """Return the quantisation of ``alignflow.models.load``."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _load(setting: Setting, role: str) -> tuple[Any, Any, Any]:
    """Return the base model, its tokenizer and the shape of the adapter."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    identity = identify(setting.model, None, converted=ROOT / CONVERTED)
    compute = getattr(torch, setting.dtype)
    kind, more = (AutoModelForCausalLM, {})
    if role == "reward_model":
        kind, more = AutoModelForSequenceClassification, {"num_labels": 1}
    model = kind.from_pretrained(
        identity.load_from,
        dtype=compute,
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
        quantization_config=nf4(compute) if setting.quantization == "nf4" else None,
        **more,
    )
    # on CPUs bitsandbytes repacks weights in a forward pass in eval mode, after which gradients are lost
    model.train()
    adapter = LoraConfig.from_pretrained(Path(setting.start, role))
    adapter.inference_mode = False
    return model, load_tokenizer(identity), adapter


def _start(model: Any, setting: Setting, role: str) -> None:
    """Set a trainer's new adapter to the weights from which both sides start."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result = set_peft_model_state_dict(model, load_file(Path(setting.start, role, "adapter_model.safetensors")))
    if result.unexpected_keys:
        raise ValueError(f"the start adapter does not fit TRL's model: {result.unexpected_keys[:3]}")


def _train(
    name: str,
    setting: Setting,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch: int,
    accumulate: int = 1,
    role: str = "policy",
    config: Mapping[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, dict[str, Any]]:
    """Run one of TRL's trainers and return the times and losses of its steps."""
    import datasets
    import trl
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
            if "loss" in logs:
                watch.log(0, {"loss": logs["loss"], "tokens": 0.0})

    datasets.disable_progress_bars()
    model, tokenizer, adapter = _load(setting, role)
    watch = Watch()
    optimiser = optimisation(setting, batch)
    with tempfile.TemporaryDirectory() as folder:
        args = getattr(trl, f"{name}Config")(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=setting.dtype == "bfloat16",  # TRL's default
            gradient_checkpointing=False,
            per_device_train_batch_size=batch // accumulate,
            gradient_accumulation_steps=accumulate,
            max_steps=setting.steps,
            learning_rate=optimiser.learning_rate,
            weight_decay=optimiser.weight_decay,
            max_grad_norm=optimiser.max_grad_norm,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            warmup_steps=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=setting.seed,
            **(config or {}),
        )
        trainer = getattr(trl, f"{name}Trainer")(
            model,
            args=args,
            train_dataset=datasets.Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[Clock()],
            **more,
        )
        if setting.dtype == "float32":  # TRL casts trained weights over a quantised base to bfloat16
            for parameter in trainer.model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        _start(trainer.model, setting, role)
        trainer.train()
    said = {key: getattr(args, key) for key in SAID if hasattr(args, key)}
    return trainer, {**watch.result, "configured": {key: str(value) for key, value in said.items()}}


SAID = (
    "use_cpu",
    "bf16",
    "gradient_checkpointing",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "torch_compile",
    "precompute_ref_log_probs",
    "loss_type",
    "beta",
    "num_generations",
    "max_completion_length",
    "num_iterations",
    "steps_per_generation",
    "generation_kwargs",
    "use_vllm",
)
SEQUENTIAL = {"train_sampling_strategy": "sequential"}


def _ordered(setting: Setting, count: int) -> list[int]:
    config = optimisation(setting, setting.pairs)
    return [row for step in range(setting.steps) for row in rows_of_step(count, config, step)]


def _tokens(rows: Sequence[int], setting: Setting) -> list[float]:
    """Return the number of tokens of each step, from the lengths of the pairs' rows in order."""
    size = setting.pairs
    return [float(sum(rows[i : i + size])) for i in range(0, len(rows), size)]


def dpo(setting: Setting) -> dict[str, Any]:
    """Measure TRL's DPO; the reference is the base model."""
    tokenizer = tokenizer_of(setting)
    pairs = read_pairs(setting, tokenizer, setting.pairs * setting.steps)
    order = [pairs[i] for i in _ordered(setting, len(pairs))]
    rows = [{key: text_of(tokenizer, getattr(pair, key)) for key in ("prompt", "chosen", "rejected")} for pair in order]
    trainer, result = _train(
        "DPO",
        setting,
        rows,
        batch=setting.pairs,
        config={"beta": setting.beta, "precompute_ref_log_probs": setting.precompute, **SEQUENTIAL},
    )
    seen = trainer.train_dataset
    if [tuple(map(tuple, (r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]))) for r in seen] != [
        pair[:3] for pair in order
    ]:
        raise ValueError("TRL tokenised the pairs differently")
    lengths = [2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in seen]
    return {**result, "tokens": _tokens(lengths, setting)}


def reward_model(setting: Setting) -> dict[str, Any]:
    """Measure TRL's reward model."""
    pairs = read_pairs(setting, tokenizer_of(setting), setting.pairs * setting.steps)
    rows = [
        {"chosen_ids": [*p.prompt, *p.chosen], "rejected_ids": [*p.prompt, *p.rejected]}
        for p in (pairs[i] for i in _ordered(setting, len(pairs)))
    ]
    trainer, result = _train("Reward", setting, rows, batch=setting.pairs, role="reward_model", config=SEQUENTIAL)
    lengths = [len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in trainer.train_dataset]
    return {**result, "tokens": _tokens(lengths, setting)}


def sft(setting: Setting) -> dict[str, Any]:
    """TRL's SFT."""
    examples = sft_examples(setting, tokenizer_of(setting))
    rows = [
        {"input_ids": [*e.prompt, *e.response], "labels": [-100] * len(e.prompt) + list(e.response)} for e in examples
    ]
    together = max(1, setting.micro_batch_tokens // max(len(r["input_ids"]) for r in rows))
    accumulate = next(n for n in range(1, len(rows) + 1) if len(rows) % n == 0 and len(rows) // n <= together)
    _, result = _train("SFT", setting, rows, batch=len(rows), accumulate=accumulate, config=SEQUENTIAL)
    return {**result, "tokens": [float(sum(len(r["input_ids"]) for r in rows))] * setting.steps}


def grpo(setting: Setting) -> dict[str, Any]:
    """Measure TRL's GRPO; the reference is the base model. Saves its first rollouts for our side."""
    tokenizer = tokenizer_of(setting)
    prompts = read_prompts(setting, tokenizer, setting.prompts * setting.steps)
    first: list[Any] = []
    tokens: list[float] = []

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        ids = [tokenizer(p)["input_ids"] for p in prompts]
        tokens.append(float(sum(len(p) + len(c) for p, c in zip(ids, completion_ids, strict=True))))
        if not first:
            first.extend(zip(ids, completion_ids, strict=True))
        return [even_share(c) for c in completion_ids]

    _, result = _train(
        "GRPO",
        setting,
        [{"prompt": text_of(tokenizer, p)} for p in prompts],
        batch=setting.prompts * setting.group,
        config={
            "beta": setting.kl,
            "num_generations": setting.group,
            "max_completion_length": setting.response,
            "shuffle_dataset": False,
            "use_bias_correction_kl": False,
            "generation_kwargs": {"min_new_tokens": setting.response},
        },
        reward_funcs=[reward],
    )
    return {**result, "tokens": tokens, "first_rollouts": first}


def sampling(setting: Setting) -> dict[str, Any]:
    """Measure tokens per second of transformers' ``generate`` on the 4-bit model with its adapter."""
    from peft import get_peft_model

    base, tokenizer, adapter = _load(setting, "policy")
    model = get_peft_model(base, adapter)
    _start(model, setting, "policy")
    model.eval()
    tokenizer.padding_side = "left"
    result: dict[str, Any] = {}
    for rows in setting.rows:
        prompts = sampling_prompts(setting, tokenizer, rows)
        batch = tokenizer.pad({"input_ids": [list(p) for p in prompts]}, return_tensors="pt").to(model.device)

        def draw(length: int, batch: Any = batch) -> None:
            model.generate(
                **batch,
                min_new_tokens=length,
                max_new_tokens=length,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
            )

        result[str(rows)] = timed_sampling(draw, rows, setting)
    return result


def tokenizer_of(setting: Setting) -> Any:
    """Return the tokenizer of both sides."""
    return load_tokenizer(identify(setting.model, None, converted=ROOT / CONVERTED))


def version() -> str:
    """Return TRL's version.

    Raises:
        PeerMissing: it is not installed.
    """
    try:
        import trl
    except ImportError as error:
        raise PeerMissing(
            "TRL is not installed: `pip install -e '.[oracle]'` installs it, or leave out the parts that use it"
        ) from error
    found: str = trl.__version__
    return found


class PeerMissing(RuntimeError):
    """The library to compare with is not installed."""
