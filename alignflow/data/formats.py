"""Streams the rows of sources of any known form; see ``alignflow.data.forms``."""

import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

from alignflow.data.forms.faults import LATE_COLUMN, LEFT_OUT, Unusable
from alignflow.data.forms.judgements import READERS, Fields
from alignflow.data.forms.kinds import is_empty
from alignflow.data.forms.layout import Layout, understand
from alignflow.data.forms.table import FORMS
from alignflow.data.rows import DataError, Row
from alignflow.data.sources import Fault, Record, Source, records

Pairs = Literal["all", "best_worst"]

SAMPLE = 100
"""Number of records that are read to find out what a source's columns are."""


def read_rows(source: Source, *, form: str = "auto", pairs: Pairs = "all") -> Iterator[Row | Fault]:
    """Stream the rows of a source; an unusable record becomes a Fault with its number and reason.

    Args:
        source: file, folder or data set.
        form: a name in ``FORMS``, or ``auto`` to recognise it by the columns.
        pairs: of scored responses, all pairs with different scores, or only the best with the worst.

    Raises:
        DataError: the source cannot be read, no form fits it, or nothing would read one of its columns.
    """
    _check_form(form, source)
    sample, found = _begin(source)
    layout = _layout(sample, form, source)
    if layout is None:
        yield from (item for item in found if isinstance(item, Fault))
        return
    late: dict[frozenset[str], Layout | None] = {}
    for record in found:
        if isinstance(record, Fault):
            yield record
            continue
        more = frozenset(key for key in record.content if key not in layout.known and not is_empty(record.content[key]))
        if more and more not in late:
            late[more] = _with_late_columns([*sample, record.content], layout, source)
        fits = late[more] if more else layout
        yield from [Fault(*record[:2], LATE_COLUMN)] if fits is None else _rows(record, fits, pairs)


def _rows(record: Record, layout: Layout, pairs: Pairs) -> Iterator[Row | Fault]:
    fields = Fields(record.content, layout)
    try:
        rows = READERS[layout.form](fields)
    except Unusable as error:
        yield Fault(record.source, record.number, str(error))
        return
    if pairs == "best_worst":  # the first pair of each prompt has the largest margin
        rows = list({row.prompt_id: row for row in reversed(rows)}.values())[::-1]
    for row in rows:
        yield replace(row, source=record.source, number=record.number)
    for reason in fields.left_out:
        yield Fault(record.source, record.number, LEFT_OUT + reason)


def layout_of(source: Source, form: str = "auto") -> Layout | None:
    """Return what the columns of a source are, from its first usable records; None if all rows are broken.

    Raises:
        DataError: the source cannot be read, is empty, no form fits it, or nothing would read one of its columns.
    """
    _check_form(form, source)
    return _layout(_begin(source)[0], form, source)


def _begin(source: Source) -> tuple[list[Mapping[str, Any]], Iterator[Record | Fault]]:
    """Return the contents of a source's first usable records, and all its records."""
    found = records(source)
    read: list[Record | Fault] = []
    sample: list[Mapping[str, Any]] = []
    for item in found:
        read.append(item)
        if isinstance(item, Record):
            sample.append(item.content)
        if len(sample) == SAMPLE:
            break
    if not read:
        raise DataError(f"{source.path}: no row in it; write a row a line, e.g. with prompt, chosen and rejected")
    return sample, chain(read, found)


def _check_form(form: str, source: Source) -> None:
    if form != "auto" and form not in FORMS:
        near = difflib.get_close_matches(form, FORMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: auto, {', '.join(FORMS)}"
        raise DataError(f"{source.path}: no form of data is called {form!r}; {hint}")


def _layout(sample: Sequence[Mapping[str, Any]], form: str, source: Source) -> Layout | None:
    return understand(sample, form=form, source=source) if sample else None


def _with_late_columns(sample: Sequence[Mapping[str, Any]], layout: Layout, source: Source) -> Layout | None:
    """Return the layout with columns that only a later record has, or None if nothing would read them."""
    try:
        return understand(sample, form=layout.form, source=source)
    except DataError:
        return None


def mix(sources: Sequence[Source], *, seed: int, form: str = "auto", pairs: Pairs = "all") -> Iterator[Row | Fault]:
    """Stream several sources one after the other, each subsampled by its weight.

    A source of weight w keeps a row with probability w / (greatest weight), by a hash of the seed and the row's prompt.
    So the source with the greatest weight is complete, all rows of a prompt are kept or left out together, and the
    choice does not depend on other rows or their order. A Fault is kept with the same probability, by a hash of its
    number, so that the share of faults does not change.

    Raises:
        DataError: there is no source, a weight is not a number above 0, or a source cannot be read.
    """
    for source in sources:
        if not 0 < source.weight < math.inf:
            raise DataError(f"{source.path}: weight {source.weight} is not a number above 0")
    if not sources:
        raise DataError("no source of data; name at least one file, folder or data set")
    most = max(source.weight for source in sources)
    for source in sources:
        keep = source.weight / most
        for item in read_rows(source, form=form, pairs=pairs):
            if keep == 1 or _share(item, seed) < keep:
                yield item


def _share(item: Row | Fault, seed: int) -> float:
    key = item.prompt_id if isinstance(item, Row) else f"{item.source}:{item.number}"
    # "mix" makes this hash independent of the one that splits prompts: subsampling must not change the split
    return int.from_bytes(hashlib.sha256(f"mix:{seed}:{key}".encode()).digest()[:8], "big") / 2**64
