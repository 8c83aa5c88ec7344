"""Streams raw records from files, folders and data sets of the Hub, in any of the known containers.

Containers are recognised by content: compression, Parquet and Arrow by their first bytes, a JSON document or JSON lines
by their beginning. The file ending matters only for CSV and TSV. Memory does not grow with the number of rows, except
for a JSON document that is one table, as pandas writes it.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from alignflow.data.documents import CUT_CELLS, row_of, table_of
from alignflow.data.rows import DataError

BROKEN_JSON = "broken JSON"
BROKEN_CSV = "broken CSV row"
CELLS = "row has more or fewer cells than the header"
NOT_UTF8 = "not UTF-8"
NOT_AN_OBJECT = "not an object"

WRAPPERS = ("data", "rows", "examples", "instances", "records")
"""Keys of a JSON document that may hold its list of rows."""

GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
JSON_ENDINGS, CSV_ENDINGS = (".json", ".jsonl", ".ndjson"), (".csv", ".tsv")
BINARY_ENDINGS = (".parquet", ".arrow")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of a folder that describe its data but contain no rows."""

UTF16 = (b"\xff\xfe", b"\xfe\xff")

SNIFF = 1 << 20  # bytes that are read to recognise a container
CHUNK = 1 << 16  # characters of a JSON document per read
BATCH = 1024  # rows of a Parquet or Arrow file in memory
LONGEST_CELL = 1 << 24  # characters; a longer cell means that a quote in the CSV file is never closed
PROBE_SECONDS = 10.0  # a Hub that does not answer within this time counts as unreachable


@dataclass(frozen=True)
class Source:
    """A source of rows: a file, a folder, or a data set of the Hugging Face Hub."""

    path: str
    """File or folder; if no such path exists, ``owner/name`` on the Hub."""
    subset: str | None = None
    """Hub only: the configuration, if a data set has several."""
    revision: str | None = None
    """Hub only: branch, tag or commit."""
    split: str | None = None
    """Hub or folder: the split; needed if there are several."""
    weight: float = 1.0
    """Sampling share relative to the source with the greatest weight; see ``formats.mix``."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Paths of columns by their role, where names do not tell it; see ``alignflow.data.forms``."""
    setting: str = "columns"
    """What messages call the setting of these paths."""


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used."""

    source: str
    number: int
    reason: str
    """One of a fixed set of texts, so that faults can be counted by reason."""


class Record(NamedTuple):
    """A row as it is in its source."""

    source: str
    """File, folder or data set."""
    number: int
    """Line of a JSONL file; in other files the row, counted from 1 without a header."""
    content: Mapping[str, Any]


def records(source: Source) -> Iterator[Record | Fault]:
    """Stream the records of a source in order; a broken row becomes a Fault, and reading continues.

    Raises:
        DataError: the source is missing, unreachable, of an unknown kind, or broken so that no later row can be found.
    """
    path = Path(source.path)
    if path.is_dir():
        yield from _folder(path, source.split)
    elif path.exists():
        yield from _file(path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source.path) and not _ending(path):
        yield from _hub(source)
    else:
        raise DataError(f"{source.path}: not found; give a file, a folder, or owner/name of a data set of the Hub")


def _folder(folder: Path, split: str | None) -> Iterator[Record | Fault]:
    """Read what ``save_to_disk`` wrote, or all data files in a folder and its subfolders, sorted by name."""
    if (folder / "dataset_dict.json").exists():
        splits = _described(folder / "dataset_dict.json", "splits")
        yield from _folder(folder / _choose(str(folder), splits, split), None)
        return
    if (folder / "state.json").exists():
        number = 0
        for shard in _described(folder / "state.json", "_data_files"):
            for record in _arrow(folder / shard["filename"]):
                number += 1
                yield Record(str(folder), number, record.content)
        return
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and _ending(p) and not _is_aside(p, folder)]
    if not files:
        raise DataError(f"{folder}: no file of data in this folder; known endings: {_endings()}")
    if split is not None:
        files = [p for p in files if split in re.split(r"[-_./]", str(p.relative_to(folder)))]
        if not files:
            raise DataError(f"{folder}: no file of data is named after the split {split!r}; name another split or none")
    for file in files:
        yield from _file(file)


def _is_aside(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return hidden or path.name in ABOUT


def _described(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text())[key]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not what `save_to_disk` writes (no {key!r}); write the data set again") from None


def _choose(name: str, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        asked = "several splits" if split is None else f"no split {split!r}"
        raise DataError(f"{name}: {asked}; set `split` to one of: {', '.join(splits)}")
    return split


def _file(path: Path) -> Iterator[Record | Fault]:
    ending = _ending(path)
    try:
        with _open(path) as stream:
            head = stream.read(SNIFF)
        if head.startswith(UTF16) and not head.startswith(ARROW_STREAM):
            raise DataError(f"{path}: written as UTF-16; save it as UTF-8")
        if head.startswith(PARQUET) or ending == ".parquet":
            yield from _parquet(path)
        elif head.startswith((ARROW_FILE, ARROW_STREAM)) or ending == ".arrow":
            yield from _arrow(path)
        elif ending in CSV_ENDINGS:
            yield from _table(path, _delimiter(head, ending))
        else:
            yield from _json(path, head, ending)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or write the file again") from error


def _ending(path: Path) -> str:
    """Return a file's known ending without that of the compression, or an empty text."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return next((e for e in (*JSON_ENDINGS, *CSV_ENDINGS, *BINARY_ENDINGS) if name.endswith(e)), "")


def _endings() -> str:
    return f"{', '.join(JSON_ENDINGS + CSV_ENDINGS)} (also with .gz or .zst), {', '.join(BINARY_ENDINGS)}"


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(GZIP):
        return cast(IO[bytes], gzip.open(path))
    if magic == ZSTD:
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


def _json(path: Path, head: bytes, ending: str) -> Iterator[Record | Fault]:
    # an incomplete character at the end of the head is ignored
    start = head.decode("utf-8-sig", errors="ignore")
    if not start.lstrip().startswith(("{", "[")) and head.strip() and ending not in JSON_ENDINGS:
        raise DataError(f"{path}: unknown kind of file; known endings: {_endings()}")
    at = _list_start(start, complete=len(head) < SNIFF)
    rows = _table_of(path, start) if at is None or start[_after_space(start, at) :][:1] == "[" else None
    if rows is not None:
        yield from (_record(str(path), number, row) for number, row in enumerate(rows, start=1))
        return
    with _open(path) as stream:
        yield from _lines(str(path), stream) if at is None else _document(str(path), stream, at)


def _table_of(path: Path, start: str) -> list[Any] | None:
    """Return the rows of a document that is one table, which is read whole; None for JSON lines and other documents."""
    first, _, rest = start.lstrip().partition("\n")
    if not first.startswith("{") or (_whole(first) and rest.strip()):
        return None
    try:
        with _open(path) as stream:
            return table_of(json.loads(stream.read().decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return None


def _lines(name: str, stream: IO[bytes]) -> Iterator[Record | Fault]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield Fault(name, number, NOT_UTF8)
        except (ValueError, RecursionError):  # ValueError also for a number with thousands of digits
            yield Fault(name, number, BROKEN_JSON)
        else:
            yield _record(name, number, content)


def _record(name: str, number: int, content: Any) -> Record | Fault:
    if not isinstance(content, dict):
        return Fault(name, number, NOT_AN_OBJECT)
    row = row_of(content)
    return Fault(name, number, CUT_CELLS) if row is None else Record(name, number, row)


def _list_start(start: str, *, complete: bool) -> int | None:
    """Return the position of the first row in a JSON document's list, or None for JSON lines."""
    first, _, rest = start.lstrip().partition("\n")
    alone = _whole(first)
    if alone and rest.strip():
        return None  # the first line is a complete row and others follow
    at = _after_space(start, 0)
    if start[at : at + 1] == "[":
        return at + 1 if _begins_list(start, at + 1, complete=complete) else None
    decoder = json.JSONDecoder()
    try:
        at = _after_space(start, at + 1)
        while True:
            key, at = decoder.raw_decode(start, at)
            at = _after_space(start, _after_space(start, at) + 1)  # the colon
            if key in WRAPPERS and start[at : at + 1] == "[":
                return at + 1
            _, at = decoder.raw_decode(start, at)
            at = _after_space(start, _after_space(start, at) + 1)  # the comma
    except (ValueError, RecursionError):
        return None


def _whole(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _begins_list(text: str, at: int, *, complete: bool) -> bool:
    """Return whether a list's first element can be read, or may continue after an incomplete text."""
    at = _after_space(text, at)
    try:
        if text[at : at + 1] != "]":
            _element(text, at, ended=complete)
    except (ValueError, RecursionError):
        return False
    return True


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] in {" ", "\t", "\n", "\r"}:
        at += 1
    return at


def _document(name: str, stream: IO[bytes], at: int) -> Iterator[Record | Fault]:
    """Stream the elements of a JSON list, given the position of the first one.

    Reading cannot continue after a broken row as in JSON lines: it is unknown where the next row begins.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    number = 0
    try:
        bare = text.read(at).lstrip().startswith("[")
        for number, content in enumerate(_elements(text, bare=bare), start=1):
            yield _record(name, number, content)
    except (ValueError, RecursionError) as error:  # ValueError: broken JSON, and bytes that are not UTF-8
        raise DataError(
            f"{name}: row {number + 1}: broken JSON ({error}); repair it, or write a row a line (JSONL), where a "
            "broken row is left out and counted"
        ) from None


def _elements(text: io.TextIOBase, *, bare: bool) -> Iterator[Any]:
    """Yield the elements of the list; if the list is the whole document (bare), no text may follow it.

    Raises:
        ValueError: the JSON is broken.
    """
    buffer, place, ended = "", 0, False
    while True:
        place = _after_space(buffer, place)
        if buffer[place : place + 1] == "]":
            if bare and (buffer[place + 1 :] + text.read(CHUNK)).strip():
                raise ValueError("more text after the end of the list")
            return
        found = _element(buffer, place, ended=ended)
        if found is not None:
            content, place = found
            yield content
        else:  # read as many characters as are buffered, so that the cost of a long row is linear in its length
            buffer, place = buffer[place:], 0
            more = text.read(max(CHUNK, len(buffer)))
            ended, buffer = not more, buffer + more


def _element(text: str, at: int, *, ended: bool) -> tuple[Any, int] | None:
    """Return the list element at a position and the position after it, or None if the text ends too early.

    Raises:
        ValueError: the JSON is broken, or the text ends inside it although it is complete (``ended``).
    """
    try:
        content, end = json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        # apart from texts, the longest token whose start an error names is an escaped surrogate pair: \\ud83d\\ude00
        if ended or not (error.msg.startswith("Unterminated string") or error.pos > len(text) - 12):
            raise
        return None
    end = _after_space(text, end)
    follows = text[end : end + 1]
    if follows == "]":
        return content, end
    if follows == ",":
        return content, end + 1
    if follows or ended:
        raise ValueError("no comma after it, and no end of the list")
    return None


def _delimiter(head: bytes, ending: str) -> str:
    first = head.split(b"\n", 1)[0].decode(errors="replace")
    return "\t" if ending == ".tsv" else max((",", ";", "\t"), key=first.count)


def _table(path: Path, delimiter: str) -> Iterator[Record | Fault]:
    """Read CSV: a header, then one record per row; an empty cell is a missing key."""
    name = str(path)
    csv.field_size_limit(LONGEST_CELL)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = _cells(name, csv.reader(text, delimiter=delimiter, strict=True))
        header = _header(name, next(rows, None))
        for number, cells in enumerate(rows, start=1):
            if cells is None:
                yield Fault(name, number, BROKEN_CSV)
            elif len(cells) != len(header):
                yield Fault(name, number, CELLS)
            elif not _is_utf8(cells):
                yield Fault(name, number, NOT_UTF8)
            else:
                yield Record(name, number, {k: c or None for k, c in zip(header, cells, strict=True)})


def _cells(name: str, rows: Iterator[list[str]]) -> Iterator[list[str] | None]:
    """Yield the cells of each row that is not blank, or None for a broken one."""
    number = -1  # the header is row 0
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error):  # an unclosed quote contains all later rows
                raise DataError(f"{name}: row {number + 1}: {error}; close the quote that it opens") from None
            number += 1
            yield None
        else:
            if cells:
                number += 1
                yield cells


def _header(name: str, cells: list[str] | None) -> list[str]:
    names = [cell.strip() for cell in cells or []]
    if not names or not all(names) or len(set(names)) < len(names):
        raise DataError(f"{name}: the first row must name every column, each by its own name; add such a header")
    return names


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, buffer_size=SNIFF, pre_buffer=False) as file:
            yield from _batches(str(path), file.iter_batches(batch_size=BATCH, use_threads=False))
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_line(error)}); write it again") from error


def _arrow(path: Path) -> Iterator[Record]:
    import pyarrow

    try:
        # not memory-mapped: pages of a map that were read count as memory of this process and grow with the file
        with pyarrow.OSFile(str(path)) as file:
            magic = file.read(len(ARROW_FILE))
            file.seek(0)
            if magic == ARROW_FILE:
                whole = pyarrow.ipc.open_file(file)
                batches = (whole.get_batch(i) for i in range(whole.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(file))
            parts = (batch.slice(at, BATCH) for batch in batches for at in range(0, batch.num_rows, BATCH))
            yield from _batches(str(path), parts)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Arrow file ({_line(error)}); write it again") from error


def _batches(name: str, batches: Iterator[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for content in batch.to_pylist():
            number += 1
            yield Record(name, number, content)


def _hub(source: Source) -> Iterator[Record]:
    from datasets import load_dataset
    from huggingface_hub import HfApi

    name = source.path
    try:
        # asked first, because `datasets` retries an unreachable Hub for half a minute
        HfApi().dataset_info(name, revision=source.revision, timeout=PROBE_SECONDS)
        data = load_dataset(name, source.subset, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:  # from several libraries, without a common class
        raise DataError(
            f"{name}: neither a file or folder here, nor a data set that the Hugging Face Hub gives ({_line(error)}); "
            "check the name, `subset`, `split` and `revision`, or download it and give the folder"
        ) from error
    yield from dataset_records(name, data, source.split)


def dataset_records(name: str, data: Any, split: str | None) -> Iterator[Record]:
    """Stream a data set of the ``datasets`` library, or one split of a mapping of them.

    Raises:
        DataError: there are several splits and none is chosen, or the stream stops with an error.
    """
    if isinstance(data, Mapping):
        data = data[_choose(name, list(data), split)]
    rows = iter(data)
    number = 0
    while True:
        try:
            content = next(rows, None)
        except Exception as error:  # network, file system or a broken shard, raised by several libraries
            raise DataError(f"{name}: row {number + 1} cannot be read ({_line(error)}); try again") from error
        if content is None:
            return
        number += 1
        yield Record(name, number, content)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
