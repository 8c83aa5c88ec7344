"""Where a stage's results come from: hashes of its inputs, the commit, the base model, the data sets."""

import hashlib
import json
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ruamel.yaml import YAML

from tasks.paths import IDENTITY, TEST, VALIDATION

CODE = Path(__file__).resolve().parents[2]
RULES_IN_USE = "artifacts/rules"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
MADE = ("artifacts", "answers", "evaluations", "metrics", "plots", "dvc.lock")  # by other stages, so not data sets


def hashes(paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of every file, and of those inside folders, by path."""
    return {file.as_posix(): sha256(file) for path in map(Path, paths) for file in _files(path)}


def code(stage: str) -> dict[str, str]:
    """Return the SHA-256 of the code and the rules that a stage depends on, by path: those that dvc.yaml lists.

    The stage ``test``, which DVC does not know, depends on all code.
    """
    stages = YAML(typ="safe").load(CODE / "dvc.yaml")["stages"]
    body = stages.get(stage, {"deps": ["alignflow", "tasks", RULES_IN_USE]})
    found: dict[str, str] = {}
    for dep in map(Path, body.get("do", body)["deps"]):
        if dep.parts[0] in {"alignflow", "tasks"}:
            files = [file for file in _files(CODE / dep) if file.parent.name != "__pycache__"]
            found |= {file.relative_to(CODE).as_posix(): sha256(file) for file in files}
        elif dep.is_relative_to(RULES_IN_USE) and dep.exists():
            found |= hashes([dep.as_posix()])
    return found


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    return {name: version(name) for name in LIBRARIES}


def _files(path: Path) -> list[Path]:
    """Return a file, or the files of a folder in order."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def sha256(path: Path) -> str:
    """Return a file's SHA-256 without loading the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def datasets(inputs: Sequence[str]) -> list[dict[str, str]]:
    """Return the data files among the inputs, in the form that tracking takes."""
    files = [file for p in inputs if not p.startswith(MADE) for file in _files(Path(p)) if file.is_file()]
    return [
        {
            "name": f.as_posix(),
            "digest": sha256(f)[:16],
            "source": f.as_posix(),
            "context": "evaluation" if f in (VALIDATION, TEST) else "training",
        }
        for f in files
    ]


def base_tag() -> dict[str, str]:
    """Return name and hash of the base model; empty before the stage ``base`` has run."""
    if not IDENTITY.exists():
        return {}
    content = json.loads(IDENTITY.read_text())
    return {"base": content["model"], "base.sha256": content["sha256"]}


def commit() -> dict[str, str]:
    """Return the commit of the checkout; empty outside git."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"git.commit": found.stdout.strip()} if found.returncode == 0 else {}
