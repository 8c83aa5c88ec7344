"""Reads what dvc.yaml says about a stage, and what its code imports; runs neither."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("alignflow", "tasks")
PLUMBING = {  # settings, progress, tracking, checkpoints: they cannot change a result
    f"tasks.{name}"
    for name in (
        "paths",
        "params.sections",
        "params.read",
        "params.edit",
        "params.rounds",
        "params.choice",
        "params.names",
        "running.stage",
        "running.checkpoints",
        "running.advice",
        "running.processes",
        "running.progress",
        "running.hardware",
        "running.checks",
        "running.provenance",
        "stages",
        "tracking.recorder",
        "tracking.outbox",
        "tracking.delivery",
        "tracking.mlflow",
    )
}
READ_AS_TEXT = {"rules": "alignflow/rules"}  # by a stage, which imports none of it


def read_yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load((ROOT / name).read_text())
    return content


def stages() -> dict[str, dict[str, Any]]:
    """Return each stage of dvc.yaml; of a ``foreach``, its body with the templates as they are written."""
    return {name: body.get("do", body) for name, body in read_yaml("dvc.yaml")["stages"].items()}


def paths(entries: list[Any]) -> list[str]:
    """Return the paths of deps, outs or metrics, with options such as ``cache: false`` left out."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def file_of(module: str) -> Path | None:
    """Return the file of a module of this project; None for anything else."""
    base = ROOT / module.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if module.split(".", maxsplit=1)[0] in PACKAGES and path.exists():
            return path
    return None


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Return the project's modules that a file imports, inside functions too, but not for its types alone."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if file_of(inner) else module)
        waiting += ast.iter_child_nodes(node)
    return frozenset(module for module in found if file_of(module))


def is_empty(path: Path) -> bool:
    """Return whether a file is a docstring and nothing else."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def closure(stage: str) -> set[str]:
    """Return the files, relative to the root, that can change what a stage computes."""
    waiting, seen, files = [f"tasks.{stage}"], set[str](), set[str]()
    while waiting:
        module = waiting.pop()
        if module in seen or module in PLUMBING:
            continue
        seen.add(module)
        parts = module.split(".")
        waiting += [".".join(parts[:i]) for i in range(1, len(parts))]  # a package runs before its modules
        path = file_of(module)
        assert path is not None, module
        if not is_empty(path):
            files.add(path.relative_to(ROOT).as_posix())
        waiting += imports_of(path)
    return files
