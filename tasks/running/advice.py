"""What a user can change in ``params.yaml`` after an error of the core, which knows no keys."""

from collections.abc import Mapping

ADVICE: Mapping[str, str] = {
    "alignflow.data.encoding.UnsupportedTemplate": "set base.chat_template to another one, e.g. plain",
    "alignflow.memory.DoesNotFit": (
        "set memory.gradient_checkpointing: true if this is training, or lower data.max_prompt_length or a "
        "max_response_length"
    ),
    "alignflow.models.adapters.AdaptsOutput": "leave it out of lora.target_modules",
    "alignflow.models.adapters.UnlikeAdapter": "set the section lora as it was trained, or train it again",
    "alignflow.models.base.BaseChanged": "run `dvc repro -f -s base` to start again with this one",
    "alignflow.models.base.BaseModelError": "check base.model and base.revision",
    "alignflow.models.base.ChatTemplateError": "check base.chat_template",
    "alignflow.models.checkpointing.CannotCheckpoint": "set memory.gradient_checkpointing: false",
    "alignflow.models.load.TemplateMismatch": "set base.chat_template to a template that fits",
    "alignflow.models.load.TooLong": (
        "lower data.max_prompt_length or a max_response_length, or take another base.model"
    ),
    "alignflow.models.sharing.CannotShare": "set memory.share_base: false",
    "alignflow.sampling.vllm.RankTooLarge": "lower lora.rank, or set sampling.engine: own",
    "alignflow.sampling.vllm.VLLMTooShort": "raise sampling.vllm_max_length",
    "alignflow.sampling.vllm.VLLMUnavailable": "set sampling.engine: own to do without it",
}
"""By the name of the error's type, so that this module imports none of these types."""


def explained(error: Exception) -> str:
    """Return the message of an error, with what to change where that is known."""
    for kind in type(error).__mro__:
        if advice := ADVICE.get(f"{kind.__module__}.{kind.__qualname__}"):
            return f"{error}; {advice}"
    return str(error)
