"""Results that a stage has so far, kept in its checkpoint: a stage that was stopped or killed goes on after them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tasks.running.stage import Stage

Result = TypeVar("Result")


@dataclass
class Kept:
    """Results of a stage by name: numbers, texts, lists and mappings of them."""

    stage: Stage
    _results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take over what an earlier run with the same settings and inputs has left."""
        if self.stage.resume is not None:
            self._results.update(self.stage.resume["results"])

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """Do a part of the work, unless its result is there; all processes ask for the same parts in the same order."""
        if name not in self._results:
            self._results[name] = work()
            done = len(self._results)
            self.stage.keep(done, lambda: {"step": done, "results": self._results})
        found: Result = self._results[name]
        return found
