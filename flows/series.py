"""Which runs a run over several training seeds consists of."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows import workspace
from flows.git import git, tree_of
from tasks.params.sections import Params
from tasks.params.seeds import over_seeds


@dataclass(frozen=True)
class Series:
    """A run over several seeds."""

    name: str
    """Of its report; its experiments are NAME-seed-1 and so on."""
    key: str
    """The same for the same command on the same files, so that it continues its own experiments."""
    overrides: tuple[tuple[str, ...], ...]
    """``section.key=value`` changes of params.yaml for each seed's run."""

    @property
    def experiments(self) -> tuple[str, ...]:
        """The names of the experiments, one a seed."""
        return tuple(f"{self.name}-seed-{i}" for i in range(1, len(self.overrides) + 1))


def plan(checkout: Path, params: Params, overrides: Sequence[str], seeds: int, name: str | None) -> Series:
    """Return the runs of a series, after a check that their experiments can have their names.

    Args:
        checkout: root of the checkout.
        params: the settings with the overrides applied.
        overrides: of the user.
        seeds: how many.
        name: of the series; by default made of its key.

    Raises:
        UserError: an experiment's name is not usable, or another run has it.
        tasks.params.read.ParamsError: an override sets a seed that varies.
    """
    each = over_seeds(params, seeds, overrides)
    began = [git(checkout, "rev-parse", "HEAD"), tree_of(checkout), *overrides]
    key = hashlib.sha256("\n".join(began).encode()).hexdigest()[:12]
    series = Series(name or f"run-{key[:6]}", key, tuple((*overrides, *varied) for varied in each))
    for experiment in series.experiments:
        workspace.check_name(checkout, experiment, key)
    return series
