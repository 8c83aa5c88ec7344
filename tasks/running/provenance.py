"""Where a stage's results come from: hashes of its inputs, the commit, the base model, the data sets."""

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks.paths import IDENTITY, TEST, VALIDATION

MADE = ("artifacts", "answers", "evaluations", "metrics", "plots", "dvc.lock")  # by other stages, so not data sets


def fingerprint(name: str, used: object, inputs: Sequence[str]) -> str:
    """Return a short hash of everything that a checkpoint depends on, so that other settings never resume from it."""
    digest = hashlib.sha256(json.dumps([name, used], sort_keys=True, default=str).encode())
    for path in map(Path, inputs):
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(file.as_posix().encode())
            digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()[:16]


def sha256(path: Path) -> str:
    """Return a file's SHA-256 without loading the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def datasets(inputs: Sequence[str]) -> list[dict[str, str]]:
    """Return the data files among the inputs, in the form that tracking takes."""
    found = [Path(p) for p in inputs if not p.startswith(MADE)]
    files = [file for p in found for file in (sorted(p.rglob("*")) if p.is_dir() else [p]) if file.is_file()]
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
