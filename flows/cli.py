"""The ``alignflow`` command. Nothing heavy is imported before the user's input has been checked."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import environment
from flows.errors import UserError
from tasks.params.names import suggest

if TYPE_CHECKING:
    from rich.console import Console

    from flows.align import FlowResult
    from flows.seeds import SeedsResult
    from flows.series import Series
    from tasks.comparison.table import PolicyRow
    from tasks.params.sections import Params

app = typer.Typer(
    help="Align a language model from preferences, as versioned, tracked, reproducible stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data = typer.Typer(help="Look at preference data.", no_args_is_help=True, rich_markup_mode=None)

PARAMS = Path("params.yaml")
SCENARIOS = Path("scenarios")
STOPPED = 130  # typer's exit status after Ctrl-C

Assignments = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]


@app.command()
def run(
    overrides: Assignments = None,
    only: Annotated[str | None, typer.Option(help="Stages to run, e.g. dpo,grpo, with all they need.")] = None,
    scenario: Annotated[str, typer.Option(help="Settings of scenarios/NAME.yaml; KEY=VALUE overrides them.")] = "",
    name: Annotated[str | None, typer.Option(help="Name of the DVC experiment that keeps the result.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train with so many seeds and compare over all of them.")] = 1,
    no_compute: Annotated[
        bool, typer.Option("--no-compute", help="Restore results only; stop where something has to be computed.")
    ] = False,
) -> None:
    """Run the pipeline as a Prefect flow; KEY=VALUE (dpo.beta=0.2) changes parameters for this run alone.

    With --only: a method with everything it needs, its evaluation, and the comparison when the other
    policies in it are up to date. With --seeds 3: the reward model and every policy once for each seed, all else
    once; one experiment a seed (NAME-seed-1, …), and the comparison over all seeds in seeds/NAME.html.
    """
    root = _project()
    _check_no_key_twice(overrides or ())
    given, chosen = _settings_of(scenario), _names(only)
    changes = (*given, *(overrides or ()))
    if no_compute and seeds > 1:
        raise UserError("--no-compute: not with --seeds, which computes")
    series = _series(root, changes, chosen, seeds, name) if seeds > 1 else None
    if series is None:
        _check(root, changes, chosen, name)

    from flows import remote

    remote.check(root)
    from rich.console import Console

    from flows.display import watching

    # Prefect hands a SIGTERM on when the stages are gone; as an exit, so that its temporary server goes too
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console()
    console.print("starting Prefect …", style="dim")
    environment.prepare()
    if series:
        from flows.seeds import align_over_seeds

        with watching(console):
            over_seeds = align_over_seeds(series)
        _conclude_seeds(console, over_seeds)
    else:
        from flows.align import align

        with watching(console):
            result = align(changes, chosen, name, compute=not no_compute)
        _conclude(console, result)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="As in `dvc stage list`, or its group if that has one stage, e.g. dpo.")],
) -> None:
    """Run one stage in this checkout, through DVC."""
    root = _project()
    from flows import graph, remote, stage, test_side

    if name == test_side.NAME:
        raise UserError("the stage test opens the test side; `alignflow test` runs it")
    remote.check(root)
    stages = graph.read(root)
    one = graph.find(stages, name)
    if missing := graph.missing_inputs(stages, one, root):
        raise UserError(missing)
    outdated = [n for n in stages if n in graph.above(stages, one.name) and stages[n].stale]
    if outdated:
        print(f"[{one.name}] uses results that are out of date: {', '.join(outdated)}", file=sys.stderr)

    def say(_: str, text: str, _steps: object = ()) -> None:
        print(text if text.startswith("[") else f"[{one.name}] {text}", flush=True)

    stop = stage.Stop()
    with stage.stoppable(stop):
        stage.run(one, root, say, stop)


@app.command()
def test() -> None:
    """Compare the policies on the test side: at the end, when all settings are chosen. Every opening is recorded."""
    root = _project()
    from rich.console import Console

    from flows import test_side
    from tasks.comparison.wording import TEST_SIDE

    with _explained():
        test_side.check(root)
    ran = test_side.run(root)
    if not ran:
        if found := test_side.result(root):
            _show(Console(), *found, TEST_SIDE)
        print("\nunchanged: these results have been tested, so the test side stays closed")
    print(f"\nwith sample answers: {root / test_side.PAGE}")


@app.command("set")
def set_(assignments: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...")]) -> None:
    """Change params.yaml, keeping its comments and the map of iterative-DPO rounds consistent."""
    _project()
    _check_no_key_twice(assignments)
    with _explained():
        from tasks.params.edit import override

        override(PARAMS, assignments)
    print(f"{PARAMS}: {', '.join(assignments)}; `alignflow run` or `dvc repro` computes what changes")


@app.command()
def apply(name: Annotated[str, typer.Argument(help="As in `dvc exp show`.")]) -> None:
    """Bring an experiment into your files: its parameters, code and results."""
    root = _project()
    from flows import workspace

    workspace.apply(root, name)
    print(f"{name} is in your files; `dvc repro` computes what it has not run, `alignflow report` shows its comparison")


@app.command()
def report() -> None:
    """Show the comparison of the policies, on the test side too if it was opened for these results."""
    root = _project()
    from rich.console import Console

    from flows import summary, test_side
    from tasks.comparison.wording import TEST_SIDE, VALIDATION_SIDE

    rows = summary.read(root)
    if not rows:
        raise UserError(f"{root / summary.DATA} is missing; `alignflow run` makes it")
    console = Console()
    _show(console, rows, summary.verdict(root), VALIDATION_SIDE)
    print(f"\nwith sample answers and curves: {root / summary.PAGE}")
    if found := test_side.result(root):
        print()
        _show(console, *found, TEST_SIDE)
        print(f"\nwith sample answers: {root / test_side.PAGE}")


@app.command()
def chat(
    policies: Annotated[list[str] | None, typer.Argument(metavar="[POLICY] [OTHER]")] = None,
) -> None:
    """Talk to a trained policy (by default the best one), or to two side by side."""
    root = _project()
    from flows import graph, summary

    stages = graph.read(root)
    known = {s.item: s for s in stages.values() if s.group == "answer"}
    asked = list(policies or [])
    if not asked and (rows := summary.read(root)):
        asked = [summary.best(rows)]
    if not asked:
        raise UserError(f"which policy? One or two of {', '.join(known)}")
    if len(asked) > 2:
        raise UserError("chat takes one policy, or two side by side")
    for policy in asked:
        if policy not in known:
            raise UserError(f"no policy {policy}{suggest(policy, known)}")
        if missing := graph.missing_inputs(stages, known[policy], root):
            raise UserError(missing)
    from tasks.tools.chat import chat as talk

    talk(asked)


@app.command()
def doctor() -> None:
    """Check hardware, versions, whether model and data can be read, and ask the servers."""
    root = _project()
    from rich.console import Console
    from rich.table import Table

    from flows import remote
    from tasks.tools.doctor import diagnose

    findings = diagnose({"orchestration": environment.look, "results": lambda: remote.look(root)})
    drawn = Table(box=None, pad_edge=False, show_header=False)
    for what, good, detail in findings:
        drawn.add_row("[green]ok[/]" if good else "[bold red]no[/]", what, detail)
    Console().print(drawn)
    if not all(good for _, good, _ in findings):
        raise typer.Exit(1)


@data.command("check")
def check(
    file: Annotated[
        str, typer.Argument(help="File, folder, owner/name of a data set of the Hub, or a preset such as helpsteer3.")
    ],
    format_: Annotated[str, typer.Option("--format", help="The form of its rows, if detected wrongly.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Split of a data set that has several.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a data set of the Hub.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=COLUMN", help="What a column holds, as in data.columns; repeatable."),
    ] = None,
) -> None:
    """Show what a file of preferences holds, what would be dropped and why; exit status 1 if it cannot be used."""
    if not file.strip():
        raise UserError("name a file, a folder, or owner/name of a data set of the Hub")
    asked = Path(file).resolve() if Path(file).exists() else Path(file)
    root = _project()
    name = str(asked.relative_to(root) if asked.is_relative_to(root) else asked)
    with _explained():
        from alignflow.data.forms.presets import PRESETS
        from tasks.params.read import load

        settings = load(PARAMS).data
        preset = PRESETS.get(name, next((p for p in PRESETS.values() if p.hub == name), None))
        if preset and not Path(name).exists():
            name, split, revision = preset.hub, split or preset.split, revision or preset.revision
        one = {"path": name, "revision": revision, "split": split, "weight": 1, "subset": preset and preset.subset}
        changes = {
            "path": name,
            "sources": [one] if split or revision else [],
            "format": format_,
            "columns": _columns(column or []) or (settings.columns if name == settings.path else {}),
            "preset": next((known for known, found in PRESETS.items() if found is preset), None),
        }
        chosen = type(settings).model_validate({**settings.model_dump(), **changes})
    from rich.console import Console

    from flows.data import command, view
    from tasks.data.check import check as look

    with _explained():
        found = look(chosen)
    console = Console()
    console.print(view(found))
    if taken := command(name, found, chosen, settings):
        console.print(f"to use it: {taken}", style="dim", soft_wrap=True, highlight=False, markup=False)
    if found.problems:
        raise typer.Exit(1)


def _columns(told: list[str]) -> dict[str, list[str]]:
    """Return the columns of each role from ROLE=COLUMN or ROLE=[COLUMN,COLUMN]."""
    columns: dict[str, list[str]] = {}
    for text in told:
        role, sign, paths = text.partition("=")
        if not (role and sign and paths):
            raise UserError(f"--column {text}: write ROLE=COLUMN, e.g. --column chosen=reply.best")
        columns.setdefault(role, []).extend(path.strip() for path in paths.strip("[]").split(","))
    return columns


@app.command()
def deliver() -> None:
    """Send tracking records that a slow or dead MLflow server has not taken yet."""
    _project()
    from tasks.paths import home
    from tasks.tracking.mlflow import deliver, pending

    outbox = home() / "outbox"
    waiting = len(pending(outbox))
    left = deliver(outbox)
    for line in left:
        print(line, file=sys.stderr)
    print(f"{waiting - len(left)} of {waiting} records delivered" if waiting else "nothing to deliver")
    if left:
        raise typer.Exit(1)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove the workspaces that failed and cancelled runs have left; results in DVC's cache stay."""
    root = _project()
    from flows import workspace

    found = False
    for name, free in workspace.prune(root, dry_run=dry_run):
        found = True
        print(f"{name}: {'in use, left alone' if not free else 'would be removed' if dry_run else 'removed'}")
    if not found:
        print("nothing to remove")


def main() -> None:
    """Run the command; an error that the user can correct is one message and exit status 1."""
    app.add_typer(data, name="data")
    environment.past_proxies()
    try:
        app()
    except UserError as error:
        print(f"alignflow: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == STOPPED:
            print("alignflow: stopped; the same command continues from the last checkpoint", file=sys.stderr)
        raise


def _names(only: str | None) -> tuple[str, ...]:
    """Return the names in ``--only``; none where it is not given."""
    found = tuple(part.strip() for part in (only or "").split(",") if part.strip())
    if only is not None and not found:
        raise UserError("--only names no stage; name one or several, e.g. --only dpo,grpo, or leave it out")
    return found


def _check_no_key_twice(assignments: Sequence[str]) -> None:
    """Refuse two values for one key, of which the first would be lost without a word."""
    keys = [text.partition("=")[0].strip() for text in assignments]
    if twice := next((key for key in keys if keys.count(key) > 1), ""):
        values = " and ".join(text for text, key in zip(assignments, keys, strict=True) if key == twice)
        raise UserError(f"{twice} is given twice: {values}; a list is one value, e.g. policies=dpo,ppo")


def _project() -> Path:
    """Go to the root of the checkout and return it, so that commands work in any of its folders."""
    from flows.git import checkout_root

    root = checkout_root(Path.cwd())
    os.chdir(root)
    return root


def _settings_of(scenario: str) -> tuple[str, ...]:
    """Return what a scenario sets, after a check of its file."""
    if not scenario:
        return ()
    from tasks.params.edit import scenario as read
    from tasks.params.read import load

    path = SCENARIOS / f"{scenario}.yaml"
    with _explained():
        load(PARAMS)  # its own mistakes are not the scenario's
        given = read(path)
    with _explained(f"{path}: "):
        _try(given)
    return given


def _try(overrides: Sequence[str]) -> "Params":
    """Apply overrides to a copy of params.yaml and return it; errors name the original."""
    from tasks.params.edit import override
    from tasks.params.read import ParamsError, load

    load(PARAMS)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PARAMS
        shutil.copy(PARAMS, copy)
        try:
            override(copy, overrides)
            return load(copy)
        except ParamsError as error:
            raise ParamsError(str(error).replace(str(copy), str(PARAMS))) from None


def _check(root: Path, overrides: Sequence[str], only: Sequence[str], name: str | None) -> None:
    """Find every mistake in a run's arguments before anything starts."""
    from flows import graph, workspace

    with _explained():
        _try(overrides)
    if name:
        workspace.check_name(root, name)
    if only:
        # an override may change how many items a group has: then the flow itself checks the items
        graph.select(graph.read(root), [n.partition("@")[0] for n in only] if overrides else only)


def _series(root: Path, overrides: Sequence[str], only: Sequence[str], seeds: int, name: str | None) -> "Series":
    """Return the runs of a run over seeds, after finding every mistake in its arguments."""
    from flows.series import plan

    if only:
        raise UserError("--only: with --seeds all stages run; choose policies instead, e.g. `policies=dpo,ppo`")
    with _explained():
        return plan(root, _try(overrides), overrides, seeds, name)


@contextmanager
def _explained(source: str = "") -> Iterator[None]:
    from pydantic import ValidationError

    from alignflow.data.rows import DataError
    from tasks.params.read import ParamsError

    try:
        yield
    except ValidationError as error:
        raise UserError("; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())) from None
    except (ParamsError, DataError) as error:
        raise UserError(f"{source}{error}") from None


def _counted(result: "FlowResult") -> str:
    """Say how the stages of a run ended."""
    from flows import stage

    counted = {how: sum(r.how == how for r in result.stages) for how in (stage.RAN, stage.RESTORED, stage.UNCHANGED)}
    return f"{len(result.stages)} stages: {', '.join(f'{n} {how}' for how, n in counted.items() if n)}"


def _conclude_seeds(console: "Console", result: "SeedsResult") -> None:
    """Show the comparison over seeds and the commands that come next."""
    from tasks.seeds.report import table

    console.print()
    for run in result.runs:
        console.print(f"{run.experiment}: {_counted(run)}", highlight=False)
    console.print(table(result.report))
    console.print("\n".join(["", *result.report.lines]), highlight=False, markup=False)
    console.print("\nnext:")
    for what, why in (
        (os.path.relpath(result.page), "the same with the rates of each seed"),
        (
            f"alignflow apply {result.runs[0].experiment}",
            "brings one seed's result into your files, which are unchanged",
        ),
    ):
        console.print(f"  {what}  [dim]# {why}[/]", soft_wrap=True, highlight=False)


def _show(console: "Console", rows: "Sequence[PolicyRow]", verdict: Sequence[str], side: str) -> None:
    """Print table and verdict of a comparison."""
    from tasks.comparison.table import table

    console.print(table(rows, side))
    console.print("\n".join(["", *verdict]), highlight=False, markup=False)


def _conclude(console: "Console", result: "FlowResult") -> None:
    """Show the result of a run and the commands that come next."""
    from flows import summary
    from tasks.comparison.wording import VALIDATION_SIDE
    from tasks.tracking.outbox import destination, without_secrets

    console.print(f"\n{_counted(result)}")
    if result.left_out:
        console.print(f"left out, because they need stages that are not up to date: {', '.join(result.left_out)}")
        reports = {r.stage: r.metrics for r in result.stages if r.stage in result.reports}
        console.print(summary.measured(reports))
    elif result.comparison:
        _show(console, result.comparison, result.verdict, VALIDATION_SIDE)
    best = summary.best(result.comparison) if result.comparison else ""
    tracking = without_secrets(destination())
    here = result.in_checkout
    steps = [
        (f"alignflow apply {result.experiment}", "brings the result into your files, which are unchanged")
        if result.experiment and not here
        else None,
        ("dvc repro", "computes nothing: everything is up to date") if here and not result.left_out else None,
        (str(summary.PAGE), "answers side by side, curves") if here and best else None,
        (f"alignflow chat {best}", "talk to it; two names: side by side") if here and best else None,
        ("alignflow test", "at the end, when all settings are chosen: the same on prompts that nobody has seen")
        if here and best
        else None,
        ("dvc exp show", "experiments, their parameters and metrics"),
        (f"mlflow ui --backend-store-uri {tracking}", "curves, completions, models")
        if tracking.startswith("sqlite:")
        else (tracking, "MLflow: curves, completions, models"),
    ]
    console.print("\nnext:")
    for what, why in filter(None, steps):
        console.print(f"  {what}  [dim]# {why}[/]", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
