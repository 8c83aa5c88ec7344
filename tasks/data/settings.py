"""Settings and files of the stage ``prepare``, as the stage itself and `alignflow data check` use them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from alignflow.data.formats import layout_of
from alignflow.data.forms.layout import Layout
from alignflow.data.forms.presets import PRESETS
from alignflow.data.forms.table import FORMS
from alignflow.data.gate import Limits
from alignflow.data.preparation import Plan
from alignflow.data.sources import Source
from alignflow.data.survey import Ruler
from tasks.params.sections import Data
from tasks.running.provenance import sha256

Item = TypeVar("Item")

SETTING = "data.columns"
SAY_SECONDS = 10.0  # between two lines of progress


def sources_of(data: Data) -> list[Source]:
    """Return the sources to read, those of ``data.sources`` or ``data.path`` alone, with the roles of their columns."""
    columns = data.columns or (PRESETS[data.preset].columns if data.preset else {})
    if not data.sources:
        return [Source(data.path, columns=paths_of(columns), setting=SETTING)]
    return [
        Source(
            *(s.path, s.subset, s.revision, s.split, s.weight),
            *(paths_of(columns if s.columns is None else s.columns), SETTING),
        )
        for s in data.sources
    ]


def licence_of(data: Data) -> str:
    """Return what the card of a well-known data set says on its licence; empty for other data."""
    if data.preset is None:
        return ""
    preset = PRESETS[data.preset]
    return f"{preset.hub}: {preset.licence or 'look at its card'}"


def paths_of(columns: Mapping[str, str | list[str]]) -> dict[str, tuple[str, ...]]:
    """Return the paths of each role's columns."""
    return {role: (found,) if isinstance(found, str) else tuple(found) for role, found in columns.items()}


def layouts_of(data: Data, sources: Iterable[Source]) -> dict[str, Layout | None]:
    """Return what the columns of each source are, by its path; None if none of its rows can be read.

    Raises:
        DataError: a source cannot be read, no form fits it, or nothing would read one of its columns.
    """
    return {source.path: layout_of(source, data.format) for source in sources}


def in_words(layout: Layout | None) -> str:
    """Return a source's form and what its rows hold."""
    return "no row can be read" if layout is None else f"{layout.form} ({FORMS[layout.form].keys})"


def plan_of(data: Data) -> Plan:
    """Return how rows are split and near duplicates found."""
    return Plan(data.validation_fraction, data.judge_fraction, data.test_fraction, data.near_duplicate_threshold)


def limits_of(data: Data) -> Limits:
    """Return how many rows may be dropped."""
    return Limits(data.max_dropped_fraction, data.max_fraction)


def ruler_of(data: Data, tokenizer: Any | None) -> Ruler:
    """Return what rows are measured with; without a tokenizer it counts words."""
    return Ruler(tokenizer, data.max_prompt_length, data.max_response_length, data.seed)


def counted(rows: Iterable[Item], say: Callable[[str], None]) -> Iterator[Item]:
    """Yield rows and report their number from time to time."""
    began = last = time.monotonic()
    for number, row in enumerate(rows, start=1):
        yield row
        if number % 1000 == 0 and (now := time.monotonic()) - last > SAY_SECONDS:
            last = now
            say(f"{number} rows read, {number / (now - began):.0f} a second")


def digests(sources: Iterable[Source]) -> Iterator[dict[str, str]]:
    """Yield name and version of every file of the sources: its SHA-256, or the revision of a data set of the Hub."""
    for source in sources:
        path = Path(source.path)
        if not path.exists():
            yield {"name": source.path, "digest": source.revision or "newest"}
        for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path][: path.exists()]:
            yield {"name": file.as_posix(), "digest": sha256(file)}
