"""Talk to a trained policy, or to two side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel

from tasks.params.read import load
from tasks.policies import adapter_of

MAX_RESPONSE_LENGTH = 256


def chat(policies: Sequence[str]) -> None:
    """Answer one question a line, from standard input, as each policy; an empty line or end of input stops.

    The caller has checked that the adapters exist.
    """
    params = load(Path("params.yaml"))
    from alignflow.data.encoding import encode_prompt
    from tasks.running.checks import quiet
    from tasks.training import sampling
    from tasks.training.models import open_models

    quiet()
    console = Console()
    with console.status("loading the base model"):
        models = open_models(params)
        for policy in policies:
            folder = adapter_of(policy, params)
            if folder is not None:
                models.add(policy, start=folder)
    turn = 0
    while question := _ask(console):
        panels = []
        for policy in policies:
            with console.status(policy):
                (response,), (text,) = sampling.answer(
                    models,
                    policy,
                    [encode_prompt(models.base.tokenizer, [{"role": "user", "content": question}])],
                    params,
                    length=MAX_RESPONSE_LENGTH,
                    temperature=params.evaluate.temperature,
                    seed=params.evaluate.seed + turn,
                )
            panels.append(Panel(text + (" …" if response.truncated else ""), title=policy, expand=True))
        console.print(Columns(panels, equal=True, expand=True))
        turn += 1


def _ask(console: Console) -> str:
    if sys.stdin.isatty():
        console.print("[bold]you[/] [dim](empty line to leave)[/]")
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
