"""Edit ``params.yaml`` by ``section.key=value`` and read scenarios, which are lists of such edits."""

import json
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from tasks.params.choice import policies_of, trained_of
from tasks.params.names import closest, suggest
from tasks.params.read import ParamsError, read_tree, round_trip, validate
from tasks.params.rounds import last_of, rounds_of
from tasks.policies import POLICIES, REFERENCE


def override(path: Path, assignments: Sequence[str]) -> None:
    """Apply ``section.key=value`` assignments to the file, keeping its comments; nothing is written on error.

    ``policies=dpo,ppo`` chooses what is trained and compared and rewrites everything that follows from it. Setting
    ``iterative_dpo.shards`` also rewrites the map of rounds.

    Of several values for one key the last one holds: a run's own come after those of its scenario.

    Raises:
        ParamsError: an assignment is malformed, names an unknown key, or gives a value out of range.
    """
    tree = read_tree(path)
    for assignment in assignments:
        if assignment.startswith("policies="):
            _choose(tree, assignment.removeprefix("policies="), path)
        else:
            _assign(tree, assignment)
    section = tree.get("iterative_dpo")
    if (
        section
        and isinstance(section["shards"], int)
        and any(a.startswith("iterative_dpo.shards=") for a in assignments)
    ):
        if section["shards"] < 1:
            raise ParamsError(f"{path}: iterative_dpo.shards: must be at least 1, not {section['shards']}")
        if section["rounds"]:
            _refill(section["rounds"], rounds_of(section["shards"]))
        section["last"] = last_of(section["shards"])
    validate(tree, path)
    text = StringIO()
    round_trip().dump(tree, text)
    path.write_text(text.getvalue())


def scenario(path: Path) -> tuple[str, ...]:
    """Return the assignments in a scenario: a file of sections and keys, written as in ``params.yaml``.

    A value replaces the whole old value of its key, so the result does not depend on what was set before.

    Raises:
        ParamsError: the file does not exist (the message lists the known scenarios), or does not consist of sections
            with keys.
    """
    known = sorted(file.stem for file in path.parent.glob("*.yaml"))
    if path.stem not in known:
        there = f"; there are: {', '.join(known)}" if known else f"; {path.parent}/ has no scenarios"
        raise ParamsError(f"no scenario {path.stem!r}{closest(path.stem, known)}{there}")
    tree = read_tree(path)
    for section, keys in tree.items():
        if not isinstance(keys, dict):
            raise ParamsError(f"{path}: {section}: expected keys with values, as in params.yaml, not {keys!r}")
    return tuple(f"{name}.{key}={json.dumps(value)}" for name, keys in tree.items() for key, value in keys.items())


def _choose(tree: Any, names: str, path: Path) -> None:
    chosen = [name.strip() for name in names.strip("[] ").split(",") if name.strip()]
    try:
        policies = policies_of(chosen)
    except ValueError as error:
        raise ParamsError(f"{path}: {error}") from None
    if not any(POLICIES[name].learns and not POLICIES[name].control for name in policies):
        raise ParamsError(
            f"{path}: policies={names} trains nothing to compare with {REFERENCE}; name at least one of "
            f"{', '.join(name for name, policy in POLICIES.items() if policy.learns and not policy.control)}"
        )
    section = tree["iterative_dpo"]
    _refill(tree["policies"], policies)
    _refill(tree["trained"], trained_of(policies))
    in_rounds = any(POLICIES[name].in_rounds for name in policies)
    _refill(section["rounds"], rounds_of(section["shards"]) if in_rounds else {})


def _refill(node: CommentedMap, entries: Mapping[str, object]) -> None:
    """Replace the entries of a map, a line each; comments of entries that stay and the blank line after it remain."""
    after = node.ca.items.pop(next(reversed(node)), None) if node else None
    for key in [key for key in node if key not in entries]:
        del node[key]
    for place, (key, value) in enumerate(entries.items()):
        if node.get(key) != value:
            node.pop(key, None)
            node.insert(place, key, _on_one_line(value))
    if after and node:
        node.ca.items[next(reversed(node))] = after
    (node.fa.set_block_style if node else node.fa.set_flow_style)()


def _on_one_line(value: object) -> object:
    written = (
        CommentedMap(value) if isinstance(value, dict) else CommentedSeq(value) if isinstance(value, list) else value
    )
    if isinstance(written, CommentedMap | CommentedSeq):
        written.fa.set_flow_style()
    return written


def _assign(tree: Any, assignment: str) -> None:
    key, separator, text = (part.strip() for part in assignment.partition("="))
    if not separator or not key:
        raise ParamsError(f"{assignment!r} is not of the form section.key=value, e.g. dpo.beta=0.2")
    *parents, leaf = key.split(".")
    node, seen = tree, ""
    for part in parents:
        node = node[_known(part, node, seen)]
        seen = f"{seen}{part}."
    open_map = seen in {"rewards.rules.", "data.max_fraction.", "data.columns."}  # sections whose keys the user names
    node[leaf if open_map else _known(leaf, node, seen)] = _value(text)


def _known(part: str, node: Any, seen: str) -> str:
    if not isinstance(node, dict):
        raise ParamsError(f"params: {seen.rstrip('.')} is a value, not a section; it has no key {part!r}")
    if part in node:
        return part
    raise ParamsError(f"params: no key {seen}{part}{suggest(part, node, seen)}")


def _value(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):  # YAML 1.2 reads 1e-4 as a string
        return float(text)
    try:
        return YAML(typ="safe").load(text) if text else None
    except YAMLError:
        return text
