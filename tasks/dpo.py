"""Stage ``dpo``: direct preference optimisation on the stored pairs."""

from collections.abc import Mapping

from tasks.running.stage import Stage, run


def work(stage: Stage) -> Mapping[str, float]:
    """Train a policy from the SFT adapter; the reference is a frozen copy of it."""
    from tasks.training.models import SFT, encode_pairs, open_models, read_pairs
    from tasks.training.pairs import train_dpo

    models = open_models(stage.params)
    models.add("reference", start=SFT)
    models.add("policy", start=SFT, trained=True)
    pairs = encode_pairs(models.base.tokenizer, read_pairs("train"))
    section = stage.params.dpo
    return train_dpo(stage, models, pairs, section, starts_at_reference=True, snapshots=section.snapshots)


if __name__ == "__main__":
    run(
        "dpo",
        work,
        sections=["base", "lora", "memory", "dpo"],
        inputs=["artifacts/base", "artifacts/sft", "data/prepared"],
        outs=["artifacts/dpo"],
        shared=True,
    )
