"""Stage ``base``: find the base model, convert it if need be, and write down its identity."""

from collections.abc import Mapping

from tasks.stage import Stage, run
from tasks.workspace import CONVERTED, IDENTITY


def work(stage: Stage) -> Mapping[str, float]:
    """Identify the base model; another model or revision changes the hash, and so reruns everything."""
    from alignflow.models.base import identify, save_identity

    base = stage.params.base
    identity = identify(base.model, base.revision, converted=CONVERTED)
    save_identity(identity, IDENTITY)
    stage.say(f"{identity.model}: {identity.weight_bytes / 2**20:.0f} MiB of weights, sha256 {identity.sha256[:12]}")
    return {"weight_gib": identity.weight_bytes / 2**30}


if __name__ == "__main__":
    run("base", work, sections=["base"], inputs=[])
