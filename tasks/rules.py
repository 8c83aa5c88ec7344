"""Stage ``rules``: write down the source files of each rule in use, so that stages depend on the rules they name."""

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.running.rule_sources import source_hashes
from tasks.running.stage import Stage

OUT = Path("artifacts/rules")


def work(stage: Stage) -> Mapping[str, float]:
    """Write a file for the training rewards and one for the judges: the source files of each rule, with hashes.

    After an edit of a rule, only stages that train or judge by that file run again.
    """
    used = {"rewards": list(stage.params.rewards.rules), "judges": stage.params.evaluate.judges}
    OUT.mkdir(parents=True)
    for purpose, names in used.items():
        (OUT / f"{purpose}.json").write_text(json.dumps(source_hashes(names), indent=2) + "\n")
    return {f"rules/{purpose}": float(len(names)) for purpose, names in used.items()}
