"""The same model, adapters and batch on our side and on TRL's: losses and gradients of both."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignflow.models.roles import SharedBase
from alignflow.types import StepOutput
from tests.close import close
from tests.tiny import disturb, open_base, write_model
from tests.toy import update

QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
ROLES = ("policy", "reference", "reward_model")
Result = tuple[float, dict[str, Tensor]]
"""A loss, and the gradients of the trained adapter and head by names that both sides share."""


def write_roles(folder: Path) -> Path:
    """Write a model with an adapter folder for each role in it, all different."""
    write_model(folder)
    models = open_base(folder)
    for seed, role in enumerate(ROLES):
        models.add(role)
        disturb(models, role, seed)
        if role == "reward_model":
            models.add_head(role, seed=3)
        models.save(role, folder / role)
    return folder


def open_ours(folder: Path, trained: str = "policy") -> SharedBase:
    models = open_base(folder)
    for role in ROLES:
        models.add(role, start=folder / role, trained=role == trained)
    return models


def open_theirs(folder: Path, trained: str = "policy") -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if trained == "reward_model":
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    else:
        base = AutoModelForCausalLM.from_pretrained(folder)
    return PeftModel.from_pretrained(base, folder / trained, is_trainable=True)


def trainer_of(name: str, folder: Path, config: dict[str, Any], *, trained: str = "policy", **kwargs: Any) -> Any:
    """Return a TRL trainer of the saved policy, with the saved reference where the trainer keeps one."""
    import trl.experimental.cpo
    from datasets import Dataset
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    module = trl.experimental.cpo if name == "CPO" else trl
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]  # trainers want a dataset; no loss sees this one
    if name == "SFT":
        rows = [{"prompt": "a", "completion": "b"}]
    trainer = getattr(module, f"{name}Trainer")(
        open_theirs(folder, trained),
        args=getattr(module, f"{name}Config")(output_dir=str(folder / "out"), **QUIET, **config),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **kwargs,
    )
    if "ref" in trainer.model.peft_config:  # TRL's is a copy of the policy
        saved = load_file(folder / "reference" / "adapter_model.safetensors")
        set_peft_model_state_dict(trainer.model, saved, adapter_name="ref")
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # what the training loop would set
    return trainer


class Kept:
    """An optimiser that does not change weights and gradients."""

    def step(self, *, factor: float, max_grad_norm: float) -> float:
        return 0.0

    def drop_gradients(self) -> None:
        pass


def our_result(
    models: SharedBase,
    parts: Sequence[Any],
    step: Callable[[Any], StepOutput],
    count: Callable[[Any], float],
    role: str = "policy",
) -> Result:
    loss = update(parts, [step], count, Kept())["loss"]  # type: ignore[arg-type]
    adapter = {name: p for name, p in models._peft.named_parameters() if f".{role}." in name}
    gradients = {name.replace(f".{role}.", "."): p.grad for name, p in adapter.items()}
    if role in models.heads:
        gradients["score"] = models.heads[role].weight.grad
    return loss, gradients


def their_result(trainer: Any, batches: Sequence[Any]) -> Result:
    """Return the mean of TRL's loss over batches, and its gradients."""
    total = sum(trainer.compute_loss(trainer.model, batch) for batch in batches) / len(batches)
    total.backward()
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    names = {name: "score" if ".score." in name else name.replace(".default.", ".") for name in trained}
    return float(total), {names[name]: p.grad for name, p in trained.items()}


def agree(mine: Result, expected: Result, factor: float = 1.0) -> None:
    """Check loss and gradients, these relative to their largest entry; ours are ``factor`` times TRL's."""
    close(mine[0], factor * expected[0])
    assert mine[1].keys() == expected[1].keys()
    flat = [torch.cat([gradients[name].flatten() for name in sorted(gradients)]) for _, gradients in (mine, expected)]
    scale = factor * flat[1].abs().max()
    assert scale > 0
    close(flat[0] / scale, factor * flat[1] / scale)


def ids(length: int, seed: int) -> tuple[int, ...]:
    """Return random letters; 97 ends a response."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(1, 97, (length,), generator=generator).tolist())
