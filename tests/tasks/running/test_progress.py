"""The progress of a stage: the line for people, and the same step for programs."""

import json
import os
import subprocess
import sys

import pytest

from tasks.running.progress import Reader, StepProgress, clock, number, write

STEP = StepProgress(
    step=12,
    steps=40,
    values={"kl/reference": 0.03, "loss": 0.61234, "grad_norm": 2.5, "tokens_per_second": 412.4},
    left_seconds=92.9,
)


def test_people_read_the_metrics_that_matter_in_one_order():
    assert STEP.text == "step 12/40 | loss 0.612 | kl/reference 0.03 | tokens_per_second 412 | left 1:32"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.61234, "0.612"),
        (-0.00012345, "-0.000123"),
        (99.94, "99.9"),
        (412.4, "412"),
        (-123456.0, "-123456"),
    ],
)
def test_a_number_takes_few_characters(value: float, text: str):
    assert number(value) == text


def test_time_is_minutes_and_seconds():
    assert [clock(0.0), clock(59.9), clock(61), clock(6000)] == ["0:00", "0:59", "1:01", "100:00"]


def test_a_program_reads_every_metric_of_a_step_before_people_read_its_line(tmp_path, monkeypatch):
    file, seen = tmp_path / "progress", []
    monkeypatch.setenv("ALIGNFLOW_PROGRESS", str(file))
    write(STEP, lambda text: seen.append((text, json.loads(file.read_text()))))
    record = {
        "step": 12,
        "steps": 40,
        "values": {"kl/reference": 0.03, "loss": 0.61234, "grad_norm": 2.5, "tokens_per_second": 412.4},
        "left_seconds": 92.9,
    }
    assert seen == [("step 12/40 | loss 0.612 | kl/reference 0.03 | tokens_per_second 412 | left 1:32", record)]
    assert Reader(file).new() == [STEP]


def test_without_a_named_file_and_with_one_that_cannot_be_written_people_still_read_the_line(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.delenv("ALIGNFLOW_PROGRESS", raising=False)
    write(STEP, said.append)
    monkeypatch.setenv("ALIGNFLOW_PROGRESS", str(tmp_path / "gone" / "progress"))
    write(STEP, said.append)
    assert said == [STEP.text, STEP.text]


def test_a_line_that_is_half_written_is_read_once_it_is_complete(tmp_path):
    file = tmp_path / "progress"
    first = b'{"step": 1, "steps": 2, "values": {"loss": 0.5}, "left_seconds": 3.0}\n'
    second = b'{"step": 2, "steps": 2, "values": {"loss": NaN}, "left_seconds": 0.0}\n'
    file.write_bytes(b"")
    reader = Reader(file)
    assert reader.new() == []
    file.write_bytes(first + second[:20])
    assert reader.new() == [StepProgress(1, 2, {"loss": 0.5}, 3.0)]
    assert reader.new() == []
    file.write_bytes(first + second)
    (last,) = reader.new()
    assert (last.step, last.text) == (2, "step 2/2 | loss nan | left 0:00")


def test_a_line_that_a_full_disk_has_cut_is_skipped(tmp_path):
    file = tmp_path / "progress"
    file.write_text('{"step": 1, "ste{"step": 2}\n{"step": 3, "steps": 4, "values": {}, "left_seconds": 1.0}\n')
    assert Reader(file).new() == [StepProgress(3, 4, {}, 1.0)]


@pytest.mark.parametrize(("before", "bars"), [("quiet()", False), ("", True)])
def test_progress_bars_of_libraries_stay_out_of_a_stages_output(before, bars):
    code = f"from tasks.running.checks import quiet; {before}\nfrom tqdm.auto import tqdm\nfor _ in tqdm([1, 2]): pass"
    plain = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}  # a stage in this process
    said = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True, timeout=120
    )
    assert ("2/2" in said.stderr) is bars
