"""The source files of a rule: a stage that depends on them depends on that rule alone."""

import ast
from collections.abc import Iterable
from pathlib import Path

from alignflow.rewards import SHIPPED, RuleError, rule_file
from tasks.paths import RULES
from tasks.running.provenance import sha256

CODE = SHIPPED.parents[1]


def source_hashes(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the source files of each rule with their hashes."""
    return {name: {_shown(f): sha256(f) for f in sources(rule_file(name, RULES))} for name in sorted(names)}


def sources(rule: Path) -> list[Path]:
    """Return the file of a rule and those in alignflow/rules that it imports, directly or not.

    Raises:
        RuleError: one of them imports other code of this project, whose changes this stage would not notice.
    """
    waiting, seen = [rule], list[Path]()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.append(path)
            waiting += _imports(path)
    return sorted(seen)


def _imports(path: Path) -> list[Path]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [[alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            modules = [[f"{package}.{alias.name}", package] for alias in node.names]
        else:
            continue
        for names in modules:
            if names[-1].partition(".")[0] in {"", "alignflow", "tasks", "flows", RULES.name}:
                files = [CODE / f"{name.replace('.', '/')}.py" for name in names]
                inside = [file for file in files if file.is_relative_to(SHIPPED) and file.exists()]
                if not inside:
                    raise RuleError(
                        f"{path}:{node.lineno}: a rule imports {names[-1]}, which is not watched for changes; "
                        "import only files of alignflow/rules and installed packages"
                    )
                found.append(inside[0])
    return found


def _shown(path: Path) -> str:
    return (path.relative_to(CODE) if path.is_relative_to(CODE) else path).as_posix()
