"""Stage ``base``: find the base model, convert it if need be, look at its chat template, write down its identity."""

from collections.abc import Mapping

from tasks.paths import CONVERTED, IDENTITY
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Identify the base model and its chat template; any change in them makes all stages run again."""
    from alignflow.data.encoding import template_notes
    from alignflow.models.base import identify, save_identity
    from alignflow.models.load import load_tokenizer

    base = stage.params.base
    identity = identify(base.model, base.revision, converted=CONVERTED, chat_template=base.chat_template)
    notes = template_notes(load_tokenizer(identity))
    save_identity(identity, IDENTITY)
    stage.say(f"{identity.model}: {identity.weight_bytes / 2**20:.0f} MiB of weights, sha256 {identity.sha256[:12]}")
    for note in notes:
        stage.say(note)
    return {"weight_gib": identity.weight_bytes / 2**30}
