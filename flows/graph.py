"""The stages and what each needs, from DVC's own index: the pipeline is written down once, in dvc.yaml.

Two keys of a stage's ``meta`` in dvc.yaml matter here:

* ``device: true``: it computes on the accelerator, so it waits for a device slot;
* ``report: true``: it looks at other stages (an evaluation, the comparison), so it runs along when those
  were selected, without being named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import UserError, nearest

PIPELINE = "dvc.yaml"


@dataclass(frozen=True)
class Node:
    """One stage of dvc.yaml."""

    name: str
    needs: tuple[str, ...]
    """The stages whose outputs it reads."""
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    metrics: tuple[str, ...]
    device: bool
    report: bool
    stale: bool
    """It, or something it builds on, would have to run again."""

    @property
    def address(self) -> str:
        """Name and file, relative to the root of the project."""
        return self.name if ":" in self.name else f"{PIPELINE}:{self.name}"

    @property
    def group(self) -> str:
        """``iterative_dpo`` for ``iterative_dpo@round-1``; otherwise the name itself."""
        return self.name.partition("@")[0]

    @property
    def item(self) -> str:
        """``round-1`` for ``iterative_dpo@round-1``; otherwise empty."""
        return self.name.partition("@")[2]


Graph = Mapping[str, Node]


def read(root: Path) -> Graph:
    """Return the stages of a checkout by name, each after everything it needs."""
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    stages: dict[str, Node] = {}
    try:
        with Repo(str(root)) as repo:
            index = repo.index.graph
            changed = repo.status()
            written = {node: place for place, node in enumerate(repo.index.stages)}
            # where the graph leaves a choice, the order of dvc.yaml
            for node in networkx.lexicographical_topological_sort(index.reverse(), key=written.get):
                if isinstance(node, PipelineStage):
                    needs = tuple(_name(n) for n in index.successors(node) if isinstance(n, PipelineStage))
                    # its address depends on the working folder, as do the keys of the status
                    stale = node.addressing in changed or any(stages[n].stale for n in needs)
                    stages[_name(node)] = _describe(node, needs, stale)
    except DvcException as error:
        raise UserError(f"DVC cannot read the pipeline of {root}: {error}") from error
    return stages


def output_hashes(root: Path) -> dict[str, dict[str, str]]:
    """Return what dvc.lock says of each stage's outputs: their hashes by path."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo(str(root)) as repo:
        return {
            _name(node): {out.def_path: out.hash_info.value for out in node.outs if out.hash_info}
            for node in repo.index.stages
            if isinstance(node, PipelineStage)
        }


def find(stages: Graph, name: str) -> Node:
    """Return a stage by name.

    Raises:
        UserError: there is no such stage; the message names the nearest one.
    """
    if name not in stages:
        raise UserError(f"no stage {name}; {nearest(name, stages)}")
    return stages[name]


def select(stages: Graph, only: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the stages to run for ``--only`` and the reports that have to be left out.

    A name stands for a stage or for all items of a ``foreach`` group. Each is taken with everything it
    needs. A report on a selected stage comes along when all the work it looks at is selected or up to date:
    ``--only dpo`` evaluates DPO, and compares it with policies trained earlier, but trains no other policy
    for the sake of the comparison, and never compares with an outdated one.
    """
    if not only:
        return list(stages), []
    named = {stage for name in only for stage in _members(stages, name)}
    chosen = set(named).union(*(above(stages, name) for name in named))
    left_out = []
    for name, stage in stages.items():
        upstream = above(stages, name)
        if name in chosen or not stage.report or not named & upstream:
            continue
        missing = {n for n in upstream if stages[n].stale and n not in chosen}
        if all(stages[n].report for n in missing):
            chosen |= missing | {name}
        else:
            left_out.append(name)
    return [name for name in stages if name in chosen], left_out


def above(stages: Graph, name: str) -> set[str]:
    """Return everything that a stage builds on, directly or not."""
    return set().union(*({n} | above(stages, n) for n in stages[name].needs))


def missing_inputs(stages: Graph, stage: Node, root: Path) -> str:
    """Return which input keeps a stage from running here, and the command that makes it; empty if none."""
    makers = {out: name for name in stage.needs for out in stages[name].outs}
    for path in stage.deps:
        if not (root / path).exists():
            maker = next((m for out, m in makers.items() if within(path, out) or within(out, path)), "")
            hint = f", which stage {maker} makes: `alignflow stage {maker}`" if maker else ""
            return f"{stage.name} needs {path}{hint}"
    return ""


def within(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or lies in it."""
    return f"{path}/".startswith(f"{folder}/")


def _members(stages: Graph, name: str) -> list[str]:
    members = [s.name for s in stages.values() if name in (s.name, s.group)]
    if not members:
        known = dict.fromkeys([s.group for s in stages.values()] + list(stages))
        raise UserError(f"--only: no stage {name}; {nearest(name, known)}")
    return members


# DVC's objects carry no types
def _name(node: object) -> str:
    path: str = node.path_in_repo  # type: ignore[attr-defined]
    name: str = node.name  # type: ignore[attr-defined]
    return name if path == PIPELINE else f"{path}:{name}"


def _describe(node: object, needs: tuple[str, ...], stale: bool) -> Node:
    meta = node.meta or {}  # type: ignore[attr-defined]
    outs = node.outs  # type: ignore[attr-defined]
    return Node(
        name=_name(node),
        needs=needs,
        deps=tuple(d.def_path for d in node.deps if d.hash_name != "params"),  # type: ignore[attr-defined]
        outs=tuple(o.def_path for o in outs),
        metrics=tuple(o.def_path for o in outs if o.metric),
        device=bool(meta.get("device")),
        report=bool(meta.get("report")),
        stale=stale,
    )
