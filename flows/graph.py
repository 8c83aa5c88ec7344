"""The stages and what each needs, from DVC's own index: the pipeline is written down once, in dvc.yaml.

Two keys of a stage's ``meta`` in dvc.yaml matter here:

* ``device: true``: it computes on the accelerator, so it waits for a device slot;
* ``report: true``: it reports on other stages (an evaluation, the comparison), so it also runs when those
  are selected, without being named. ``report: PATH`` also says which output it evaluates; that of another report
  (answers) stands for what that one evaluates.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.errors import UserError
from tasks.params.names import suggest

PIPELINE = "dvc.yaml"


@dataclass(frozen=True)
class Node:
    """One stage of dvc.yaml."""

    name: str
    """As users know it: ``dpo`` for ``dpo@policy``, when that is the only item of its group."""
    target: str
    """As DVC knows it."""
    needs: tuple[str, ...]
    """The stages whose outputs it reads."""
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    metrics: tuple[str, ...]
    device: bool
    report: bool
    evaluates: tuple[str, ...]
    """Of a report: the stages that made the output it evaluates, through other reports as well."""
    stale: bool
    """It, or something it builds on, would have to run again."""

    @property
    def address(self) -> str:
        """Name and file, relative to the root of the project."""
        return self.target if ":" in self.target else f"{PIPELINE}:{self.target}"

    @property
    def group(self) -> str:
        """``iterative_dpo`` for ``iterative_dpo@round-1``; otherwise the name itself."""
        return _group(self.target)

    @property
    def item(self) -> str:
        """``round-1`` for ``iterative_dpo@round-1``; otherwise empty."""
        return self.target.partition("@")[2]


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
            written = {each: place for place, each in enumerate(repo.index.stages)}
            items = Counter(_group(_target(each)) for each in written if isinstance(each, PipelineStage))
            names: dict[object, str] = {}
            # stages without an order in the graph keep that of dvc.yaml
            for each in networkx.lexicographical_topological_sort(index.reverse(), key=written.get):
                if isinstance(each, PipelineStage):
                    target = _target(each)
                    names[each] = _group(target) if items[_group(target)] == 1 else target
                    needs = [stages[names[n]] for n in index.successors(each) if isinstance(n, PipelineStage)]
                    # its address depends on the working folder, as do the keys of the status
                    stale = each.addressing in changed or any(n.stale for n in needs)
                    stages[names[each]] = _describe(each, names[each], needs, stale)
    except DvcException as error:
        raise UserError(f"DVC cannot read the pipeline of {root}: {error}") from error
    return stages


def output_hashes(root: Path) -> dict[str, dict[str, str]]:
    """Return the output hashes of each stage in dvc.lock, by target and path."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo(str(root)) as repo:
        return {
            _target(each): {out.def_path: out.hash_info.value for out in each.outs if out.hash_info}
            for each in repo.index.stages
            if isinstance(each, PipelineStage)
        }


def find(stages: Graph, name: str) -> Node:
    """Return a stage by its name, or by its target.

    Raises:
        UserError: there is no such stage, and the message names the nearest one; or it is a group of several.
    """
    if name in stages:
        return stages[name]
    members = [node for node in stages.values() if name in (node.target, node.group)]
    if not members:
        raise UserError(f"no stage {name}{suggest(name, stages)}")
    if len(members) > 1:
        raise UserError(f"{name} has several stages; name one of {', '.join(node.name for node in members)}")
    return members[0]


def select(stages: Graph, only: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the stages to run for ``--only`` and the reports that have to be left out.

    A name stands for a stage or for all items of a ``foreach`` group. Each is taken with everything it
    needs. A report on a selected stage is added when all stages that it needs are selected or up to date:
    ``--only dpo`` compares DPO with policies trained earlier, but trains no other policy for the comparison and
    never compares with an outdated one. The evaluation of DPO itself also adds what else it needs, such as the
    judge model, but no stage that is evaluated itself, because that is another policy.
    """
    if not only:
        return list(stages), []
    named = {stage for name in only for stage in _members(stages, name)}
    chosen = set(named).union(*(above(stages, name) for name in named))
    policies = {name for node in stages.values() for name in node.evaluates}
    left_out = []
    for name, node in stages.items():
        upstream = above(stages, name)
        if name in chosen or not node.report or not named & upstream:
            continue
        missing = {n for n in upstream if stages[n].stale and n not in chosen}
        work = {n for n in missing if not stages[n].report}
        if not work or (named.intersection(node.evaluates) and not work & policies):
            chosen |= missing | {name}
        else:
            left_out.append(name)
    return [name for name in stages if name in chosen], left_out


def above(stages: Graph, name: str) -> set[str]:
    """Return everything that a stage depends on, directly or not."""
    return set().union(*({n} | above(stages, n) for n in stages[name].needs))


def missing_inputs(stages: Graph, node: Node, root: Path) -> str:
    """Return which input of a stage is missing, and the command that makes it; empty if none is."""
    for path in node.deps:
        if not (root / path).exists():
            maker = next((name for name in node.needs if _makes(stages[name], path)), "")
            hint = f", which stage {maker} makes: `alignflow stage {maker}`" if maker else ""
            return f"{node.name} needs {path}{hint}"
    return ""


def within(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or lies in it."""
    return f"{path}/".startswith(f"{folder}/")


def _members(stages: Graph, name: str) -> list[str]:
    members = [node.name for node in stages.values() if name in (node.name, node.target, node.group)]
    if not members:
        known = dict.fromkeys([node.group for node in stages.values()] + list(stages))
        raise UserError(f"--only: no stage {name}{suggest(name, known)}")
    return members


def _group(target: str) -> str:
    return target.partition("@")[0]


# DVC's objects carry no types
def _target(stage: object) -> str:
    path: str = stage.path_in_repo  # type: ignore[attr-defined]
    name: str = stage.name  # type: ignore[attr-defined]
    return name if path == PIPELINE else f"{path}:{name}"


def _describe(stage: object, name: str, needs: Sequence[Node], stale: bool) -> Node:
    meta = stage.meta or {}  # type: ignore[attr-defined]
    outs = stage.outs  # type: ignore[attr-defined]
    report = meta.get("report")
    evaluated = report if isinstance(report, str) else ""
    return Node(
        name=name,
        target=_target(stage),
        needs=tuple(node.name for node in needs),
        deps=tuple(d.def_path for d in stage.deps if d.hash_name != "params"),  # type: ignore[attr-defined]
        outs=tuple(o.def_path for o in outs),
        metrics=tuple(o.def_path for o in outs if o.metric),
        device=bool(meta.get("device")),
        report=bool(report),
        evaluates=_evaluated(evaluated, needs) if evaluated else (),
        stale=stale,
    )


def _evaluated(path: str, needs: Sequence[Node]) -> tuple[str, ...]:
    """Return the stages that made an output; where that is a report itself, those that it evaluates."""
    makers = [node for node in needs if _makes(node, path)]
    return tuple(dict.fromkeys(name for node in makers for name in node.evaluates or (node.name,)))


def _makes(node: Node, path: str) -> bool:
    return any(within(path, out) or within(out, path) for out in node.outs)
