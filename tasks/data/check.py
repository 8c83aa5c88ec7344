"""What `alignflow data check` and `alignflow doctor` find in data, in seconds, without training or writing anything."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.params.sections import Data

if TYPE_CHECKING:
    from alignflow.data.forms.layout import Layout

FIRST = 10_000
"""Number of rows that are checked; more would take minutes. The stage itself checks all rows."""


@dataclass(frozen=True)
class Checked:
    """Data as the stage ``prepare`` would find it."""

    layouts: Mapping[str, "Layout | None"]
    """What the columns of each source are, by its path; None if none of its rows can be read."""
    report: dict[str, Any]
    """As ``alignflow.data.preparation.report`` returns it."""
    problems: list[str]
    """Reasons that would stop the stage; empty if there are none."""
    whole: bool
    """Whether all rows were checked."""


def check(data: Data) -> Checked:
    """Read the first rows of the data as the stage ``prepare`` reads it.

    Without the base model's tokenizer (artifacts/base, which the stage ``base`` makes) lengths are in words.

    Raises:
        DataError: the data cannot be read, no form fits it, or nothing would read one of its columns.
    """
    from alignflow.data import preparation
    from alignflow.data.formats import mix
    from tasks.data import limits
    from tasks.data.report import empty_sides
    from tasks.data.settings import layouts_of, limits_of, plan_of, ruler_of, sources_of

    sources = sources_of(data)
    layouts = layouts_of(data, sources)
    rows = mix(sources, seed=data.seed, form=data.format, pairs=data.pairs)
    ruler = ruler_of(data, _tokenizer())
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(data)
        found = preparation.prepare(islice(rows, FIRST), ruler, plan, Path(folder), workers=1)
        problems = limits.problems(found.total, found.findings(), limits_of(data))
        report = preparation.report(found)
        return Checked(layouts, report, [*problems, *empty_sides(report, data)], _ended(rows))


def _ended(rows: Iterator[object]) -> bool:
    return next(rows, None) is None


def _tokenizer() -> Any | None:
    from tasks.paths import IDENTITY

    if not IDENTITY.exists():
        return None
    from alignflow.models.base import load_identity
    from alignflow.models.load import load_tokenizer
    from tasks.running.checks import quiet

    quiet()
    return load_tokenizer(load_identity(IDENTITY))
