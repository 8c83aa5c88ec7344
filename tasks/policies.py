"""The policies that are evaluated and compared: the one place that lists them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.params.sections import Params


class Learns(Enum):
    """What the stage of a policy learns from."""

    DATA = "stored data"
    SAMPLES = "its own samples and their rewards"


@dataclass(frozen=True)
class Policy:
    """One policy of the comparison."""

    title: str
    """As a reader sees it."""
    stage: str | None
    """The stage that trained it; its adapter lies in ``artifacts/<stage>``. None: the base model itself."""
    learns: Learns | None = None
    """None for a policy that every other one starts from."""
    in_rounds: bool = False
    """The stage runs once a round, each starting from the one before; the last round's adapter counts."""
    control: bool = False
    """Learns no preference: the others have to be better than it, and it is never the policy to take."""


REFERENCE = "reference"
"""The policy that all others started from and are compared with."""
POLICIES: Mapping[str, Policy] = {
    "base": Policy("Base", None),
    REFERENCE: Policy("Reference", "sft"),
    "dpo": Policy("DPO", "dpo", Learns.DATA),
    "iterative_dpo": Policy("Iterative DPO", "iterative_dpo", Learns.SAMPLES, in_rounds=True),
    "step_dpo": Policy("Step-DPO", "step_dpo", Learns.SAMPLES),
    "mcts_dpo": Policy("MCTS-DPO", "mcts_dpo", Learns.SAMPLES),
    "ppo": Policy("PPO", "ppo", Learns.SAMPLES),
    "grpo": Policy("GRPO", "grpo", Learns.SAMPLES),
    "rloo": Policy("RLOO", "rloo", Learns.SAMPLES),
    "kto": Policy("KTO", "kto", Learns.DATA),
    "sft_more": Policy("More SFT", "sft_more", Learns.DATA, control=True),
}
"""By name, in the order of tables, charts and samples."""
TITLES: Mapping[str, str] = {name: policy.title for name, policy in POLICIES.items()}


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Return policies in the order of the table."""
    return tuple(name for name in POLICIES if name in names)


def training_stages(policies: Sequence[str], rounds: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the stages that trained each policy, those of iterative DPO by round; none for the base model."""
    found: dict[str, tuple[str, ...]] = {}
    for name in policies:
        policy = POLICIES[name]
        if policy.stage:
            found[name] = tuple(f"{policy.stage}@{each}" for each in rounds) if policy.in_rounds else (policy.stage,)
    return found


def adapter_folder(name: str) -> str:
    """Return the folder of all that a policy's stage made; that of the base model where no stage trained it."""
    return f"artifacts/{POLICIES[name].stage or 'base'}"


def adapter_of(name: str, params: "Params") -> Path | None:
    """Return the adapter folder of a policy; None for the base model itself."""
    policy = POLICIES[name]
    if policy.stage is None:
        return None
    folder = Path(adapter_folder(name))
    return folder / params.iterative_dpo.last if policy.in_rounds else folder
