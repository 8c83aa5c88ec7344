"""Well-known data sets of the Hugging Face Hub: where they lie, what their columns hold and what their cards say."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """A data set of the Hub."""

    hub: str
    """``owner/name``."""
    licence: str
    """As its card names it; empty: look at the card."""
    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    """As in ``Source``."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    """The commit whose card was read; None: any commit has to be named."""


PRESETS: Mapping[str, Preset] = {
    "ultrafeedback": Preset(
        "HuggingFaceH4/ultrafeedback_binarized",
        "MIT",
        {
            **{role: role for role in ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")},
            "ignore": ["messages"],  # the chosen conversation once more
        },
        split="train_prefs",
        revision="2a3fb934ee563e5441bf211adaf5215c3fa508dd",
    ),
    "helpsteer3": Preset(
        "nvidia/HelpSteer3",
        "CC-BY-4.0",
        {
            "prompt": "context",
            "responses": ["response1", "response2"],
            "winner": "overall_preference",
            "ignore": ["individual_preference"],
        },
        subset="preference",
        revision="cbdb0038e8bd4a6733e975d760ae376b139b8826",
    ),
    "hh": Preset(
        "Anthropic/hh-rlhf",
        "MIT",
        {"chosen": "chosen", "rejected": "rejected"},
        revision="53bb19af48e3dc246069b4a2e757a5ee5caeb549",
    ),
    "pku-saferlhf": Preset(
        "PKU-Alignment/PKU-SafeRLHF",
        "CC-BY-NC-4.0",
        {
            "prompt": "prompt",
            "responses": ["response_0", "response_1"],
            "winner": "better_response_id",
            "ignore": ["safer_response_id"],  # where the two differ, the more helpful answer is the better one
        },
        revision="8b87c3304fe428df5ae84a5a00f9d3ef9e4f135e",
    ),
    "nectar": Preset(
        "berkeley-nest/Nectar",
        "CC-BY-NC-4.0",
        {"prompt": "prompt", "responses": "answers[].answer", "ranks": "answers[].rank"},
        revision="b544887d5d0b5c4f629ad7891c6fa1aca39be9a5",
    ),
    "shp": Preset(
        "stanfordnlp/SHP",
        "MIT",
        {
            "prompt": "history",
            "responses": ["human_ref_A", "human_ref_B"],
            "scores": ["score_A", "score_B"],
            "ignore": ["labels"],  # says the same as the scores
        },
        revision="acbac73a37f98e37ab260e70bbba3dd0ec67bd1b",
    ),
    "orca-dpo": Preset(
        "Intel/orca_dpo_pairs",
        "",
        {"system": "system", "prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    ),
    "openassistant": Preset("OpenAssistant/oasst1", ""),  # only its files of whole trees have ranked replies
    "gsm8k": Preset("openai/gsm8k", "MIT", {"prompt": "question", "answer": "answer"}, subset="main"),
    "math": Preset("EleutherAI/hendrycks_math", "", {"prompt": "problem", "answer": "solution"}, subset="algebra"),
}
"""By name."""
