"""Rules of the code base that are checked by reading and importing it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import ROOT, read_yaml

FOLDERS = ("alignflow", "tasks", "flows")
FILES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
MATHS = sorted(p.stem for p in (ROOT / "alignflow/algorithms").glob("*.py") if p.stem != "__init__")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def in_a_fresh_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_module_imports_and_nothing_happens_then():
    """No seed, no flag, no environment, no log handler, no thread, no output changes on import."""
    flows = [name_of(p) for p in FILES if p.is_relative_to(ROOT / "flows")]
    names = [name_of(p) for p in FILES if name_of(p) not in flows]
    code = f"""
import importlib, json, logging, os, random, signal, threading
import numpy, torch, transformers, prefect, rich, typer, mlflow, matplotlib  # what they do is not ours
def state():
    return [dict(os.environ), repr(random.getstate()), torch.initial_seed(), str(torch.get_rng_state().sum()),
            torch.is_grad_enabled(), str(torch.get_default_dtype()), torch.get_num_threads(),
            torch.backends.cuda.matmul.allow_tf32, len(logging.getLogger().handlers), logging.getLogger().level,
            threading.active_count(), str(signal.getsignal(signal.SIGTERM)), os.getcwd()]
before = state()
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps([a == b for a, b in zip(before, state())]))
for name in {flows!r}:  # defining a flow lets Prefect set up its logging
    importlib.import_module(name)
"""
    assert all(json.loads(in_a_fresh_python(code)))


def test_the_maths_imports_torch_and_nothing_else():
    modules = ["alignflow.ops", "alignflow.advantages", "alignflow.types", "alignflow.algorithms"]
    modules += [f"alignflow.algorithms.{name}" for name in MATHS]
    code = f"""
import sys, torch
before = set(sys.modules)
for name in {modules!r}:
    __import__(name)
print("\\n".join(sorted({{m.split(".")[0] for m in set(sys.modules) - before}})))
"""
    loaded = set(in_a_fresh_python(code).split())
    assert "alignflow" in loaded
    assert not loaded & {"transformers", "peft", "bitsandbytes", "datasets", "accelerate", "mlflow", "prefect", "dvc"}
    assert {m for m in loaded if m not in sys.stdlib_module_names} == {"alignflow"}


def test_no_maths_file_names_another_library():
    for path in [
        ROOT / "alignflow/ops.py",
        ROOT / "alignflow/advantages.py",
        *(ROOT / "alignflow/algorithms").iterdir(),
    ]:
        if path.suffix == ".py":
            roots = {name.split(".")[0] for name in _imports(path)}
            assert roots <= {"torch", "alignflow", "dataclasses", "typing", "collections", "random", "math"}, path


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def _type_name(node: ast.stmt) -> str:
    """Return the public class or type that a statement defines; a TypeVar means what it does in its own file alone."""
    name = ""
    if isinstance(node, ast.ClassDef):
        name = node.name
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        made = ast.unparse(node.value)
        name = "" if node.targets[0].id.isupper() or made.startswith("TypeVar(") else node.targets[0].id
    return name if name[:1].isupper() else ""


def test_a_word_has_one_meaning():
    """Every public class and every name of a type is defined once, whatever module it is in."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if name := _type_name(node):
                places.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert not twice


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_keeps_the_rules_of_the_house(path: Path):
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            assert ast.unparse(node.left).rpartition(".")[2] not in {"algorithm", "method"}, (
                f"{path}:{node.lineno} chooses by the name of an algorithm"
            )
    for node in tree.body:  # a call at the top level happens at import
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            pytest.fail(f"{path}:{node.lineno} does something at import")
    if path.is_relative_to(ROOT / "alignflow"):
        roots = {name.split(".")[0] for name in _imports(path)}
        assert not roots & {"prefect", "mlflow", "dvc", "yaml", "ruamel", "argparse", "typer", "tasks", "flows"}
        assert "environ" not in path.read_text()


def test_the_core_names_no_key_of_the_settings():
    """Neither in a message nor in a docstring: advice that names keys is in tasks/running/advice.py."""
    keys = {f"{section}.{key}" for section, keys in read_yaml("params.yaml").items() for key in keys}
    named = re.compile("|".join([r"params\.yaml", *(rf"(?<![\w.]){re.escape(key)}\b" for key in sorted(keys))]))
    for path in (ROOT / "alignflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = named.search(node.value)
                assert not found, f"{path}:{node.lineno} names {found[0]}"
