"""Table of the judges of answers. Any other name is that of a rule."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tasks.paths import JUDGE_MODEL, REWARD_MODEL


class Kind(Enum):
    """How a judge judges."""

    PROXY = "proxy"
    """The score that training maximised; it scores single answers and is not independent."""
    REWARD_MODEL = "reward model"
    """A reward model that scores single answers and that no training used."""
    RULE = "rule"
    """A rule of ``alignflow/rules`` or ``rewards``; scores single answers."""
    LLM = "llm"
    """Compares an answer with the reference's answer; its judgements are in ``judgements/<name>.jsonl``."""


@dataclass(frozen=True)
class Judge:
    """One judge."""

    title: str
    """As a reader sees it."""
    kind: Kind
    folder: Path | None = None
    """Of the reward model behind it, with the ``report.json`` on that model."""
    model_title: str = ""
    """That reward model as a reader sees it."""


PROXY = "score"
"""The judge that training maximised; every other one is independent of it."""
JUDGES: Mapping[str, Judge] = {
    PROXY: Judge("training reward", Kind.PROXY, REWARD_MODEL, "The reward model of training"),
    "judge_model": Judge("second reward model", Kind.REWARD_MODEL, JUDGE_MODEL, "The second reward model"),
    "llm": Judge("LLM judge", Kind.LLM),
}
"""By the name in files and metrics, in the order of tables; rules stand before an LLM."""


def judge_of(name: str) -> Judge:
    """Return the judge of that name; one that is not in the table is a rule."""
    return JUDGES.get(name) or Judge(f"rule {name}", Kind.RULE)


def judge_title(name: str) -> str:
    """Return a judge's name as a reader sees it."""
    return judge_of(name).title


def of_kind(kind: Kind) -> tuple[str, ...]:
    """Return the judges of a kind in the order of the table."""
    return tuple(name for name, judge in JUDGES.items() if judge.kind is kind)


def learned() -> dict[str, Path]:
    """Return the folders of the reward models that judge and are not maximised, by judge."""
    return {name: judge.folder for name, judge in JUDGES.items() if judge.kind is Kind.REWARD_MODEL and judge.folder}


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return judges in the order of the table, those that are not in it (rules) last, as they came."""
    table = list(JUDGES)
    return tuple(sorted(names, key=lambda name: table.index(name) if name in table else len(table)))
