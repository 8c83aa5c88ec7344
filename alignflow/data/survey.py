"""Measures rows while they are read, in batches and optionally in several processes.

Only a row's numbers (hashes, lengths, flags: 150 bytes) stay in memory; its text is written to a file.
"""

import hashlib
import json
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignflow.data.encoding import RefusedConversation, control_tokens_in, encode_prompts, encode_responses
from alignflow.data.gate import REASONS, reason_of
from alignflow.data.near import BANDS, sketches, words_of
from alignflow.data.rows import Message, Row
from alignflow.data.sources import Fault
from alignflow.data.split import draw

BATCH = 1000
"""Number of rows in a batch; affects speed only."""
COLUMNS = np.dtype(
    [
        ("source", "u2"),
        ("number", "u4"),
        ("reason", "u1"),  # index in Survey.faults
        ("has_chosen", "?"),
        ("has_rejected", "?"),
        ("control", "?"),  # a text contains the spelling of a control token
        ("system", "?"),
        ("step", "?"),  # a step pair
        ("within_line", "?"),  # its steps begin within a line
        ("turns", "u2"),
        ("prompt", "u8"),
        ("draw", "u8"),
        ("chosen", "u8"),
        ("rejected", "u8"),
        ("prompt_length", "u4"),
        ("chosen_length", "u4"),
        ("rejected_length", "u4"),
        ("bands", "u4", (BANDS,)),
        ("offset", "u8"),
        ("size", "u4"),
    ]
)
"""Numbers of a row. Offset and size give the place of its text in the spool; size 0 means no text."""
Columns = NDArray[np.void]
Item = TypeVar("Item")
NO_FAULT = ("", "")


@dataclass(frozen=True)
class Ruler:
    """Measures texts, with the limits above which they are too long."""

    tokenizer: Any | None
    """None: lengths are in words, and no text is too long."""
    max_prompt_length: int
    max_response_length: int
    seed: int
    """Seed of the split."""

    @property
    def unit(self) -> str:
        """The unit of lengths."""
        return "words" if self.tokenizer is None else "tokens"

    def prompt_lengths(self, conversations: Sequence[Sequence[Message]]) -> list[int | None]:
        """Return the lengths of conversations including the chat template; None if the template refuses one."""
        if self.tokenizer is None:
            return [sum(len(m["content"].split()) for m in messages) for messages in conversations]
        prompts = encode_prompts(self.tokenizer, conversations)
        return [None if isinstance(prompt, RefusedConversation) else len(prompt) for prompt in prompts]

    def response_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the lengths of answers including the end token."""
        if self.tokenizer is None:
            return [len(text.split()) for text in texts]
        return [len(ids) for ids in encode_responses(self.tokenizer, texts)]

    def spells_control(self, messages: Sequence[Message]) -> bool:
        """Return whether a conversation contains the spelling of a control token; it is encoded as ordinary text."""
        return self.tokenizer is not None and any(control_tokens_in(self.tokenizer, m["content"]) for m in messages)


@dataclass(frozen=True)
class Survey:
    """All rows that were read."""

    columns: Columns
    """Numbers of each row, in the order of reading. (N,)"""
    faults: list[tuple[str, str]]
    """Key of ``gate.REASONS`` and the fault in words, indexed by the column ``reason``; index 0 means no fault."""
    sources: list[str]
    """Names of sources, indexed by the column ``source``."""
    spool: Path
    """Rows as they will be written, one JSON object per line."""

    def line(self, row: int) -> bytes:
        """Return a row as it will be written."""
        (line,) = self.lines(np.array([row]))
        return line

    def lines(self, rows: NDArray[np.intp]) -> Iterator[bytes]:
        """Yield rows as they will be written."""
        with self.spool.open("rb") as file:
            for offset, size in zip(self.columns["offset"][rows], self.columns["size"][rows], strict=True):
                file.seek(int(offset))
                yield file.read(int(size))

    def fault(self, reason: str) -> int:
        """Return the index of the fault whose text is that of its reason."""
        return _place(self.faults, _named(reason))


@dataclass(frozen=True)
class Measured:
    """A batch of rows; indices of reasons and sources, and offsets, are those within the batch."""

    columns: Columns
    faults: list[tuple[str, str]]
    sources: list[str]
    text: bytes


def survey(rows: Iterable[Row | Fault], ruler: Ruler, folder: Path, *, workers: int) -> Survey:
    """Read all rows once; the result does not depend on the number of workers.

    Args:
        rows: rows of all sources, in order.
        ruler: measures them.
        folder: folder for their texts and numbers.
        workers: number of processes that measure; 1: this process does.
    """
    spool, numbers = folder / "rows.jsonl", folder / "columns"
    faults, sources = [NO_FAULT], list[str]()
    written = 0
    with spool.open("wb") as texts, numbers.open("wb") as table:
        for part in _measured(_batches(rows), ruler, workers):
            columns = part.columns
            columns["reason"] = np.array([_place(faults, fault) for fault in part.faults], np.uint8)[columns["reason"]]
            columns["source"] = np.array([_place(sources, name) for name in part.sources])[columns["source"]]
            columns["offset"] += written
            written += len(part.text)
            texts.write(part.text)
            table.write(columns.tobytes())
    return Survey(np.fromfile(numbers, COLUMNS), faults, sources, spool)


def measure(batch: Sequence[Row | Fault], ruler: Ruler) -> Measured:
    """Measure a batch of rows: find the faults of each single row, and write its text as a line."""
    columns = np.zeros(len(batch), COLUMNS)
    faults, sources, texts, words = [NO_FAULT], list[str](), list[bytes](), list[str]()
    wrong = [(reason_of(row), row.reason) if isinstance(row, Fault) else _wrong(row) for row in batch]
    sound = [row for row, fault in zip(batch, wrong, strict=True) if isinstance(row, Row) and fault == NO_FAULT]
    prompt_lengths = iter(ruler.prompt_lengths([row.messages for row in sound]))
    lengths = iter(ruler.response_lengths([text for row in sound for text in _answers(row) if text]))
    offset = 0
    for row, fault, column in zip(batch, wrong, columns, strict=True):
        column["source"], column["number"] = _place(sources, row.source), row.number
        column["reason"] = _place(faults, fault)
        words.append("")
        if isinstance(row, Fault) or fault != NO_FAULT:
            continue
        column["chosen_length"] = next(lengths) if row.chosen else 0
        column["rejected_length"] = next(lengths) if row.rejected else 0
        prompt_length = next(prompt_lengths)
        if prompt_length is None:
            column["reason"] = _place(faults, _named("refused"))
            continue
        column["prompt_length"] = prompt_length
        column["reason"] = _place(faults, _too_long(column, ruler))
        _describe(column, row, ruler)
        line = as_line(row)
        column["offset"], column["size"] = offset, len(line)
        offset += len(line)
        texts.append(line)
        words[-1] = words_of(row.messages)
    columns["bands"] = sketches(words)
    return Measured(columns, faults, sources, b"".join(texts))


def as_line(row: Row) -> bytes:
    """Return a row as the prepared files hold it."""
    fields = {
        "prompt_id": row.prompt_id,
        "messages": row.messages,
        "prompt": row.prompt,
        "chosen": row.chosen,
        "rejected": row.rejected,
        "margin": row.margin,
        "answer": row.answer,
        "prefix": row.prefix,
        "source": row.source,
        "number": row.number,
    }
    return (json.dumps(fields, ensure_ascii=False) + "\n").encode()


def _describe(column: Any, row: Row, ruler: Ruler) -> None:
    column["has_chosen"], column["has_rejected"] = row.chosen is not None, row.rejected is not None
    column["prompt"] = int(row.prompt_id, 16)
    column["draw"] = draw(row.opening, ruler.seed)
    column["chosen"], column["rejected"] = map(_hash, _answers(row))
    column["turns"] = sum(m["role"] == "user" for m in row.messages)
    column["system"] = row.messages[0]["role"] == "system"
    column["control"] = ruler.spells_control(row.messages)
    column["step"] = row.prefix is not None
    column["within_line"] = not (row.prefix or "\n").endswith("\n")


def _answers(row: Row) -> tuple[str | None, str | None]:
    """Return a row's answers; of a step pair, the two beginnings of an answer that end with its steps."""
    if row.prefix is None or row.chosen is None or row.rejected is None:
        return row.chosen, row.rejected
    return row.prefix + row.chosen, row.prefix + row.rejected


def _wrong(row: Row) -> tuple[str, str]:
    """Return the fault of a single row; the reader has already checked texts and turns."""
    return _named("identical") if row.chosen is not None and row.chosen == row.rejected else NO_FAULT


def _too_long(column: Any, ruler: Ruler) -> tuple[str, str]:
    if ruler.tokenizer is None:
        return NO_FAULT
    if column["prompt_length"] > ruler.max_prompt_length:
        return _named("prompt_too_long")
    longest = max(column["chosen_length"], column["rejected_length"])
    return _named("response_too_long") if longest > ruler.max_response_length else NO_FAULT


def _named(reason: str) -> tuple[str, str]:
    return reason, REASONS[reason]


def _hash(text: str | None) -> int:
    if text is None:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _place(known: list[Item], item: Item) -> int:
    if item not in known:
        known.append(item)
    return known.index(item)


def _batches(rows: Iterable[Row | Fault]) -> Iterator[list[Row | Fault]]:
    waiting = iter(rows)
    while batch := list(islice(waiting, BATCH)):
        yield batch


def _measured(batches: Iterable[Sequence[Row | Fault]], ruler: Ruler, workers: int) -> Iterator[Measured]:
    """Yield the measured batches in order; only as many are queued as keep the workers busy."""
    if workers == 1:
        yield from (measure(batch, ruler) for batch in batches)
        return
    spawn = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(ruler,)) as pool:
        waiting: deque[Future[Measured]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_measure_here, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_ruler: list[Ruler] = []  # the ruler of a worker process: sent once, not with every batch


def _begin(ruler: Ruler) -> None:
    _ruler[:] = [ruler]


def _measure_here(batch: Sequence[Row | Fault]) -> Measured:
    return measure(batch, _ruler[0])
