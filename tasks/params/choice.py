"""The choice of policies in ``params.yaml``, and the maps that follow from it."""

from collections.abc import Collection, Mapping

from tasks.params.names import closest
from tasks.policies import POLICIES, REFERENCE, adapter_folder

ALWAYS = ("base", REFERENCE)
"""Policies that are always evaluated and compared."""
ITEM = "policy"
"""The item of a stage that trains its policy in one run. DVC makes one stage for each item, none for an empty list."""


def policies_of(names: Collection[str]) -> dict[str, str]:
    """Return the map ``policies``: the policies to evaluate and compare, each with the folder of its adapter.

    Raises:
        ValueError: a name is not in the table of policies.
    """
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"policies: no policy {name!r}{closest(name, POLICIES)}; there are: {', '.join(POLICIES)}")
    return {name: adapter_folder(name) for name in POLICIES if name in names or name in ALWAYS}


def trained_of(names: Collection[str]) -> dict[str, list[str]]:
    """Return the map ``trained``: an item for each stage that trains a policy, rounds of iterative DPO excepted."""
    return {
        name: [ITEM] if name in names else []
        for name, policy in POLICIES.items()
        if name not in ALWAYS and not policy.in_rounds
    }


def check_choice(
    policies: Mapping[str, str], trained: Mapping[str, Collection[str]], rounds: Mapping[str, object]
) -> None:
    """Check that ``trained`` and the rounds match the chosen policies.

    Raises:
        ValueError: a policy is unknown, or a map does not match the others.
    """
    in_rounds = any(POLICIES[name].in_rounds for name in policies if name in POLICIES)
    fits = policies == policies_of(policies) and trained == trained_of(policies) and bool(rounds) == in_rounds
    if not fits:
        chosen = ",".join(name for name in policies if name not in ALWAYS)
        raise ValueError(
            "policies, trained and iterative_dpo.rounds do not match; "
            f"run `alignflow set policies={chosen}` to rewrite them"
        )
