"""Rewards by rule: a rule is a Python file with a function of the same name.

The function takes a prompt, a response and the data's answer to the prompt (None if there is none), and returns a
number, or None if the rule does not apply. The rule's settings are keyword-only arguments without defaults.
Rules are in ``alignflow/rules`` and in a folder of the user. A rule is loaded when it is first applied.
"""

import ast
import importlib
import math
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

Rule = Callable[..., float | None]
"""(prompt, response, answer, *, numbers) -> reward, or None if the rule does not apply."""
SHIPPED = Path(__file__).with_name("rules")


class RuleError(ValueError):
    """A file does not contain the rule of its name, or two files contain rules of the same name."""


class RuleFailed(ValueError):
    """A rule raised an exception, or returned something other than a finite number."""


def rule_names(own: Path) -> list[str]:
    """Return the names of all rules, including those in the user's folder."""
    found = {file.stem for folder in (SHIPPED, own) for file in folder.glob("*.py")}
    return sorted(found - {"__init__"})


def rule_file(name: str, own: Path) -> Path:
    """Return the file of a rule, one of ``rule_names``.

    Raises:
        RuleError: both folders have a rule of this name.
    """
    shipped, mine = SHIPPED / f"{name}.py", own / f"{name}.py"
    if shipped.exists() and mine.exists():
        raise RuleError(f"{mine}: alignflow/rules has a rule {name}, too; give yours another name")
    return mine if mine.exists() else shipped


def numbers_of(file: Path) -> list[str]:
    """Return the names of a rule's numbers, without running its file.

    Raises:
        RuleError: the file is not Python, or has no function of its name.
    """
    try:
        tree = ast.parse(file.read_text())
    except SyntaxError as error:
        raise RuleError(f"{file}:{error.lineno}: not valid Python: {error.msg}") from None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == file.stem:
            return [argument.arg for argument in node.args.kwonlyargs]
    raise RuleError(f"{file}: has no function {file.stem}; write `def {file.stem}(prompt, response, answer)`")


def apply_rule(
    file: Path, prompt: str, response: str, answer: str | None, numbers: Mapping[str, float]
) -> float | None:
    """Return the reward of a response by a rule, or None if the rule does not apply.

    Args:
        file: the rule's file.
        prompt: text of the prompt.
        response: text of the response.
        answer: the data's answer, if it has one.
        numbers: numbers that the rule takes.

    Raises:
        RuleFailed: the rule raised or its result is not a finite number; the message names rule and prompt.
    """
    try:
        rule: Rule = getattr(_module(file.absolute()), file.stem)
        result = rule(prompt, response, answer, **numbers)
    except Exception as error:
        raise RuleFailed(
            f"rule {file.stem} raised {type(error).__name__} ({error}) on a response to {prompt!r}; mend it in {file}"
        ) from error
    if result is None:
        return None
    if not isinstance(result, int | float) or not math.isfinite(result):
        raise RuleFailed(
            f"rule {file.stem} gave {result!r} for a response to {prompt!r}; it must be a finite number, or None where "
            "it does not apply"
        )
    return float(result)


@cache
def _module(file: Path) -> ModuleType:
    if file.parent == SHIPPED:
        return importlib.import_module(f"{__package__}.{SHIPPED.name}.{file.stem}")
    spec = spec_from_file_location(f"rewards.{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded")
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module
