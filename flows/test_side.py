"""The end of a run: the stage ``test``, which opens the test side.

DVC does not know this stage. A second pipeline file would let `dvc repro --all-pipelines` and `dvc exp run` open the
test side, and until then `dvc status` would not be clean and `dvc checkout` would fail. The present results are those
of dvc.lock, so its hash says whether a test belongs to them.
"""

from pathlib import Path

from flows import graph, stage, summary
from flows.errors import UserError
from tasks.comparison.table import PolicyRow
from tasks.evaluation import openings
from tasks.params.read import load
from tasks.paths import FINAL

NAME = "test"
PAGE = FINAL / summary.PAGE
SHOWN = 3  # stages that a refusal names


def check(root: Path) -> None:
    """Make sure that the test side can be opened.

    Raises:
        UserError: there is none, or the results of the pipeline are not those of its settings, code and data.
    """
    try:
        openings.check(root, load(root / "params.yaml"))
    except openings.NoTestSide as error:
        raise UserError(str(error)) from None
    stale = [name for name, node in graph.read(root).items() if node.stale]
    if stale:
        more = f" and {len(stale) - SHOWN} more" if len(stale) > SHOWN else ""
        raise UserError(f"out of date: {', '.join(stale[:SHOWN])}{more}; `alignflow run` first")


def run(root: Path) -> bool:
    """Run the stage in a checkout, unless its result is there; return whether it ran.

    Raises:
        UserError: the stage failed, or was stopped.
    """
    seen = openings.shown(root)
    if seen and openings.is_present(seen, root):
        return False

    def say(_: str, text: str, _steps: object = ()) -> None:
        print(text, flush=True)

    stop = stage.Stop()
    with stage.stoppable(stop):
        stage.run_alone(NAME, root, say, stop)
    return True


def result(root: Path) -> tuple[list[PolicyRow], list[str]] | None:
    """Return table and verdict of the present results on the test side; None if they were not tested."""
    seen = openings.shown(root)
    if seen is None or not openings.is_present(seen, root):
        return None
    return summary.read(root / FINAL), summary.verdict(root / FINAL)
