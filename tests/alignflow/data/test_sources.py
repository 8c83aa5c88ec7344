"""Records from every container, with valid files and with broken ones."""

import contextlib
import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from alignflow.data.rows import DataError
from alignflow.data.sources import Fault, Record, Source, dataset_records, records

ROWS: list[dict[str, Any]] = [
    {"prompt": "größer als \u2028 eins?", "chosen": 'ja, "zwei"\nund drei', "rejected": "nein", "margin": 0.5},
    {"prompt": "b", "chosen": "{", "rejected": "[1, 2]", "margin": 2.0},
    {"prompt": "c" * 300, "chosen": "\\", "rejected": "\t,;", "margin": 0.0},
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def as_bytes(encode: Callable[[list[dict[str, Any]]], bytes]) -> Callable[[Path, list[dict[str, Any]]], None]:
    return lambda path, rows: path.write_bytes(encode(rows)) and None


def as_csv(delimiter: str) -> Callable[[Path, list[dict[str, Any]]], None]:
    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(rows[0])
            for row in rows:
                writer.writerow([c if isinstance(c, str) else json.dumps(c) for c in row.values()])

    return write


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def as_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)  # rows of a batch, as the `datasets` library writes them


def as_saved(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(path, num_shards=min(2, len(rows)))


def as_folder(path: Path, rows: list[dict[str, Any]]) -> None:
    (path / "data").mkdir(parents=True)
    (path / ".cache").mkdir()
    (path / ".cache" / "old.jsonl").write_text("{}")
    (path / "README.md").write_text("{}")
    (path / "dataset_info.json").write_text("{}")
    (path / "data" / "part-0.jsonl").write_bytes(jsonl(rows[:1]))
    as_parquet(path / "data" / "part-1.parquet", rows[1:] or rows[:0])


CONTAINERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "rows.jsonl": as_bytes(jsonl),
    "bom.jsonl": as_bytes(lambda rows: b"\xef\xbb\xbf" + jsonl(rows)),
    "windows.jsonl": as_bytes(lambda rows: jsonl(rows).replace(b"\n", b"\r\n")),
    "rows.jsonl.gz": as_bytes(lambda rows: gzip.compress(jsonl(rows))),
    "rows.jsonl.zst": as_bytes(lambda rows: zstd(jsonl(rows))),
    "two_frames.jsonl.zst": as_bytes(lambda rows: zstd(jsonl(rows[:1])) + zstd(jsonl(rows[1:]))),
    "compressed_without_saying.jsonl": as_bytes(lambda rows: gzip.compress(jsonl(rows))),
    "lines_called.json": as_bytes(jsonl),
    "no_ending": as_bytes(jsonl),
    "rows.json": as_bytes(lambda rows: json.dumps(rows).encode()),
    "dense.json": as_bytes(lambda rows: json.dumps(rows, separators=(",", ":")).encode()),
    "indented.json": as_bytes(lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode()),
    "array_called.jsonl": as_bytes(lambda rows: json.dumps(rows).encode() + b"\n"),
    "array_by_lines.json": as_bytes(lambda rows: b"[\n" + b",\n".join(jsonl(rows).splitlines()) + b"\n]\n"),
    "object.json": as_bytes(lambda rows: json.dumps({"version": [{"a": 1}], "data": rows, "more": 1}).encode()),
    "object_indented.json": as_bytes(lambda rows: json.dumps({"rows": rows}, indent=1).encode()),
    "rows.json.gz": as_bytes(lambda rows: gzip.compress(json.dumps(rows, indent=1).encode())),
    "rows.json.zst": as_bytes(lambda rows: zstd(json.dumps({"examples": rows}).encode())),
    "rows.parquet": as_parquet,
    "parquet_by_content": as_parquet,
    "rows.arrow": as_arrow,
    "saved": as_saved,
    "folder": as_folder,
}


def contents(path: Path, **choice: Any) -> list[Any]:
    return [r.content if isinstance(r, Record) else r.reason for r in records(Source(str(path), **choice))]


def numbers(path: Path) -> list[int]:
    return [record.number for record in records(Source(str(path)))]


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_records(name: str, tmp_path: Path):
    CONTAINERS[name](tmp_path / name, ROWS)
    assert contents(tmp_path / name) == ROWS
    # a file of a folder counts for itself, all else from 1
    assert numbers(tmp_path / name) == ([1, 1, 2] if name == "folder" else [1, 2, 3])


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("b.csv", "\t")])
def test_a_table_gives_texts(name: str, delimiter: str, tmp_path: Path):
    as_csv(delimiter)(tmp_path / name, ROWS)
    assert contents(tmp_path / name) == [{**row, "margin": str(row["margin"])} for row in ROWS]
    assert numbers(tmp_path / name) == [1, 2, 3]


def test_a_compressed_table_is_read(tmp_path: Path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfprompt,chosen\nhi,yes\n"))
    assert contents(tmp_path / "a.csv.gz") == [{"prompt": "hi", "chosen": "yes"}]


def test_a_cell_is_a_text_whatever_it_spells_and_an_empty_one_is_missing(tmp_path: Path):
    """What a column means by it, the forms find out."""
    cells = {"prompt": '[{"role": "user", "content": "hi"}]', "scores": "[1, 2]", "margin": "3", "empty": ""}
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, cells)
        writer.writeheader()
        writer.writerow(cells)
    assert contents(tmp_path / "a.csv") == [{**cells, "empty": None}]


PAIRS = [{"prompt": "p", "chosen": "a"}, {"prompt": "q", "chosen": "b"}]
TABLES = {
    "pandas columns": {"prompt": {"0": "p", "1": "q"}, "chosen": {"0": "a", "1": "b"}},
    "pandas index": {"0": PAIRS[0], "1": PAIRS[1]},
    "pandas split": {"columns": ["prompt", "chosen"], "index": [0, 1], "data": [["p", "a"], ["q", "b"]]},
    "pandas table": {"schema": {"fields": []}, "data": PAIRS},
    "pandas records": PAIRS,
    "lists of a column": {"prompt": ["p", "q"], "chosen": ["a", "b"]},
    "viewer": {
        "features": [{"name": "prompt"}],
        "rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(PAIRS)],
        "num_rows_total": 2,
    },
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_document_that_is_a_table_gives_its_rows(name: str, indent: int | None, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(TABLES[name], indent=indent))
    assert contents(path) == PAIRS
    assert numbers(path) == [1, 2]


def test_a_single_record_is_no_table(tmp_path: Path):
    """One line may be the whole file: lists of equal length, and objects, are its values."""
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    for record in (
        {"chosen": turns, "rejected": turns},
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]},
        {"prompt": {"role": "user", "content": "p"}, "chosen": turns[1]},
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
        assert contents(tmp_path / "a.jsonl") == [record]


def test_rows_that_the_viewer_cut_off_are_faults(tmp_path: Path):
    rows = [{"row_idx": 0, "row": PAIRS[0], "truncated_cells": ["chosen"]}, {"row_idx": 1, "row": PAIRS[1]}]
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows}))
    found = list(records(Source(str(tmp_path / "a.json"))))
    assert [getattr(one, "reason", None) for one in found] == ["cells cut off by the data set viewer", None]


@pytest.mark.parametrize("size", [1, 65_530, 65_536, 200_000, 1_100_000])
def test_rows_longer_than_what_is_read_at_once_are_whole(size: int, tmp_path: Path):
    """Sizes about the 2¹⁶ characters of a read and the 2²⁰ bytes by which a kind of file is recognised."""
    rows = [{"a": "ä" * size, "n": 12}, {"a": "\\" * 10, "n": -1.5e3}, {"a": "🙂" * size, "n": 3}]
    for ascii_only in (True, False):
        (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=ascii_only), encoding="utf-8")
        assert contents(tmp_path / "a.json") == rows
        lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
        assert contents(tmp_path / "a.jsonl") == rows


def test_csv_rows_that_are_broken_are_faults(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,chosen\n"a"b,c\nd\n\ne,\xff\n"f\ng",h\n')
    assert list(records(Source(str(path)))) == [
        Fault(str(path), 1, "broken CSV row"),
        Fault(str(path), 2, "row has more or fewer cells than the header"),
        Fault(str(path), 3, "not UTF-8"),
        Record(str(path), 4, {"prompt": "f\ng", "chosen": "h"}),
    ]


BROKEN: dict[str, tuple[bytes, str]] = {
    "a.parquet": (b"not at all", r"a\.parquet: not a readable Parquet"),
    "b.parquet": (b"PAR1" + bytes(100), r"b\.parquet: not a readable Parquet"),
    "a.arrow": (b"ARROW1" + bytes(100), r"a\.arrow: not a readable Arrow"),
    "b.arrow": (b"", r"b\.arrow: not a readable Arrow"),
    "a.xlsx": (b"PK\x03\x04 things", r"a\.xlsx: unknown kind of file.*\.jsonl.*\.parquet"),
    "a.txt": (b"some words", r"a\.txt: unknown kind of file"),
    "cut.jsonl.gz": (gzip.compress(jsonl(ROWS))[:-9], r"cut\.jsonl\.gz: cannot be read"),
    "bad.jsonl.gz": (gzip.compress(jsonl(ROWS))[:10] + b"\xff" * 30, r"bad\.jsonl\.gz: cannot be read"),
    "cut.jsonl.zst": (zstd(jsonl(ROWS))[:-5], r"cut\.jsonl\.zst: cannot be read"),
    "cut.json": (json.dumps(ROWS, indent=1).encode()[:-60], r"cut\.json: row 3: broken JSON"),
    "open.json": (b'[{"a": 1}, {"a": 2}', r"open\.json: row 2: broken JSON"),
    "twice.json": (b'[{"a": 1},\n{"a": 2}]\n[{"a": 3}]', r"twice\.json: row 3: broken JSON \(more text"),
    "latin.json": (b'[{"a": 1},\n{"a": "\xff"}]', r"latin\.json: row 1: broken JSON.*utf-8"),
    "quote.csv": (b'prompt,chosen\na,b\n"c,d\ne,f\n', r"quote\.csv: row 2: .*close the quote"),
    "empty.csv": (b"", r"empty\.csv: the first row must name every column"),
    "twice.csv": (b"prompt,prompt\na,b\n", r"twice\.csv: the first row must name every column"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_error_that_names_it(name: str, tmp_path: Path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(records(Source(str(tmp_path / name))))


def test_a_break_far_into_a_large_document_is_found_without_reading_on(tmp_path: Path):
    path = tmp_path / "a.json"
    rows = [json.dumps({"a": "x" * 1000})] * 200
    path.write_text("[" + ",".join([*rows, '{"a" 1}', *rows * 10]) + "]")
    with pytest.raises(DataError, match=r"a\.json: row 201: broken JSON \(Expecting ':' delimiter"):
        list(records(Source(str(path))))


def test_a_missing_path_is_told(tmp_path: Path):
    for name in ("none.jsonl", "a/b/c", "none"):
        with pytest.raises(DataError, match=f"{name}: not found"):
            list(records(Source(str(tmp_path / name))))
    with pytest.raises(DataError, match=r"data/none\.jsonl: not found"):
        list(records(Source("data/none.jsonl")))


def test_a_folder_without_data_is_told(tmp_path: Path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match=r"no file of data in this folder; known endings: \.json"):
        list(records(Source(str(tmp_path))))


def test_a_split_of_a_folder_is_taken_by_name(tmp_path: Path):
    for name in ("train-00000.jsonl", "test-00000.jsonl"):
        (tmp_path / name).write_text(json.dumps({"from": name[:4]}))
    assert contents(tmp_path, split="test") == [{"from": "test"}]
    assert contents(tmp_path) == [{"from": "test"}, {"from": "trai"}]
    with pytest.raises(DataError, match="named after the split 'dev'"):
        contents(tmp_path, split="dev")


def test_a_saved_data_set_of_several_splits_wants_one(tmp_path: Path):
    splits = {"train": datasets.Dataset.from_list(ROWS[:2]), "test": datasets.Dataset.from_list(ROWS[2:])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    assert contents(tmp_path, split="train") == ROWS[:2]
    assert contents(tmp_path, split="test") == ROWS[2:]
    with pytest.raises(DataError, match="several splits; set `split` to one of: train, test"):
        contents(tmp_path)
    with pytest.raises(DataError, match="no split 'dev'; set `split` to one of: train, test"):
        contents(tmp_path, split="dev")


def test_a_damaged_saved_data_set_is_told(tmp_path: Path):
    as_saved(tmp_path / "saved", ROWS)
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: not a readable Arrow file"):
        contents(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: not what `save_to_disk` writes"):
        contents(tmp_path / "saved")


def test_a_streamed_data_set_gives_records():
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    found = list(dataset_records("owner/name", stream, "train"))
    assert found == [Record("owner/name", i, row) for i, row in enumerate(ROWS, start=1)]
    assert list(dataset_records("owner/name", datasets.IterableDatasetDict({"only": stream}), None)) == found
    with pytest.raises(DataError, match="owner/name: several splits; set `split` to one of: a, b"):
        list(dataset_records("owner/name", datasets.IterableDatasetDict({"a": stream, "b": stream}), None))


def test_a_stream_that_breaks_off_is_told_with_its_row():
    def broken() -> Any:
        yield ROWS[0]
        raise ConnectionError("the line is dead")

    with pytest.raises(DataError, match=r"owner/name: row 2 cannot be read \(the line is dead\)"):
        list(dataset_records("owner/name", broken(), "train"))


def test_a_hub_out_of_reach_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"owner/name: neither a file or folder here.*check the name, `subset`"):
        list(records(Source("owner/name", split="train", revision="main")))


LINES = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" ")), max_size=8)


@settings(max_examples=100, deadline=None)
@given(lines=LINES, name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz", "a"]))
def test_random_bytes_raise_nothing_but_a_data_error(
    lines: list[bytes], name: str, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("random") / name
    path.write_bytes(b"\n".join(lines))
    with contextlib.suppress(DataError):
        list(records(Source(str(path))))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutated_line_is_named_and_all_others_are_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """A truncated line is not valid JSON."""
    lines = jsonl(ROWS * 3).splitlines()
    broken = data.draw(st.sets(st.integers(0, len(lines) - 1)))
    for at in broken:
        lines[at] = lines[at][: data.draw(st.integers(1, len(lines[at]) - 1))]
    path = tmp_path_factory.mktemp("mutated") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = list(records(Source(str(path))))
    assert [r.number for r in found] == list(range(1, len(lines) + 1))
    assert {r.number - 1 for r in found if isinstance(r, Fault)} == broken
    assert [r.content for r in found if isinstance(r, Record)] == [
        row for at, row in enumerate(ROWS * 3) if at not in broken
    ]


MEASURE = """
import resource, sys
from alignflow.data.sources import Source, records
import pyarrow.parquet
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
count = 0
for path in sys.argv[1:]:
    before = None
    for count, record in enumerate(records(Source(path)), start=1):
        before = before or (peak() if count == 2000 else None)
    print(count, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    """24,000 rows of 2 kB are 48 MB; between the 2,000th and the last the peak may grow by 12 MiB."""
    rows = [{"prompt": f"{i} " + "x" * 1000, "chosen": "y" * 1000} for i in range(24_000)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    as_arrow(tmp_path / "a.arrow", rows)
    for name in ("a.jsonl", "a.json", "a.parquet", "a.arrow"):
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        count, grown = map(int, run.stdout.split())
        assert count == 24_000
        assert grown < 12, name


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_file_of_utf_16_is_named_as_such(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("prompt,chosen,rejected\na,b,c\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"rows\..*UTF-16; save it as UTF-8"):
        list(records(Source(str(path))))
