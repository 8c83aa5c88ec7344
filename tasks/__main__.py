"""Run a stage: ``python -m tasks STAGE [ITEM]``, as dvc.yaml does.

Everything that can be checked without loading a model is checked before torch is imported.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tasks.params.read import load
from tasks.running import processes
from tasks.running.checks import check_inputs, failed, quiet
from tasks.stages import STAGES, resolved, samples, stage_named


def main(words: Sequence[str]) -> None:
    """Check the words, the settings and the inputs, then run the stage; exit as ``tasks.running.stage.run`` does."""
    quiet()
    if not words or words[0].startswith("-"):
        print(f"usage: python -m tasks STAGE [ITEM]; stages: {', '.join(STAGES)}")
        sys.exit(0 if words[:1] in (["-h"], ["--help"]) else 2)
    name, item = (*words, "")[:2]
    title = f"{name}@{item}" if item else name
    try:
        entry = stage_named(name)
        joined = processes.join(shared=entry.shared)
        params = load(Path("params.yaml"))
        entry = resolved(name, " ".join(words[1:]), params)
        check_inputs(entry.inputs)
        count = processes.wanted() if entry.shared and not joined else 1
        if count == 1 and samples(entry):
            from tasks.training.sampling import check_engine

            check_engine(params)
    except (FileNotFoundError, ValueError) as error:
        failed(title, error)
    if count > 1:
        sys.exit(processes.launch(title, count))
    from tasks.running.stage import run  # torch comes with it

    run(title, import_module(f"tasks.{name}").work, params, entry)


if __name__ == "__main__":
    main(sys.argv[1:])
