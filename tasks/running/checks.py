"""What is checked before a stage begins, and how an error is reported; imports no torch."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tasks.paths import PREPARED
from tasks.running import processes
from tasks.running.advice import explained
from tasks.running.provenance import MADE

OWN = ("alignflow", "tasks")  # whose errors are reported in one line


def check_inputs(inputs: Sequence[str]) -> None:
    """Check that all inputs of a stage exist.

    Raises:
        FileNotFoundError: one is missing; the message says how to get it.
    """
    for path in inputs:
        if not Path(path).exists():
            made = path.startswith((*MADE, PREPARED.as_posix()))
            advice = (
                "run the stage that makes it, e.g. with `dvc repro`"
                if made
                else f"add it, or correct its path in params.yaml{_hub(path)}"
            )
            raise FileNotFoundError(f"{path} is missing; {advice}")


def _hub(path: str) -> str:
    """Return how to name a data set of the Hub, if the path looks like one."""
    if path.count("/") != 1 or Path(path).suffix:
        return ""
    source = f"{{path: {path}, revision: COMMIT, split: train, weight: 1}}"
    return f"; a data set of the Hugging Face Hub goes into data.sources: [{source}]"


def is_users(error: Exception) -> bool:
    """Return whether the user can correct an error, so that it is reported in one line."""
    return type(error).__module__.split(".")[0] in OWN and isinstance(error, ValueError)


def failed(title: str, error: Exception) -> NoReturn:
    """End the process: one line if the user can correct the error, else a traceback; only one process reports it."""
    if not processes.tells():
        sys.exit(1)
    if not (isinstance(error, FileNotFoundError) or is_users(error)):
        raise error
    tell(title, error)


def tell(title: str, error: Exception) -> NoReturn:
    """Print the error as one line and end the process."""
    print(f"[{title}] error: {explained(error)}", file=sys.stderr, flush=True)
    sys.exit(1)


def quiet() -> None:
    """Keep the libraries' progress bars and notices out of the stage's output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bar of a GGUF file's conversion
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it suggests an inference kernel that is not used
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
