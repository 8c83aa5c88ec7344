"""The benchmarks run, and the page on performance agrees with their results."""

import json
from pathlib import Path

import pytest

from benchmarks import frame, overhead, run, table
from benchmarks.setting import Setting
from tests.close import close
from tests.tiny import write_model


def test_the_page_says_what_the_results_say() -> None:
    """After new results: `python -m benchmarks.table`."""
    text = table.PAGE.read_text()
    assert table.page(text, table.read()) == text


def test_only_the_text_between_the_marks_is_written() -> None:
    """A million rows in 500 s are 2000 rows per second."""
    environment = {"hardware": "2 cores", "memory_gib": 8.0, "threads": 2, "versions": {"torch": "9", "trl": None}}
    environment |= {"commit": "abc", "date": "2026-01-02"}
    cost = {"seconds": 500.0, "rows_per_second": 2000.0, "peak_memory_gib": 0.5}
    text = (
        "By hand.\n<!-- table million -->\nold\n<!-- end -->\nBy hand, too.\n<!-- table million-x -->\n<!-- end -->\n"
    )
    expected = (
        "By hand.\n<!-- table million -->\n"
        "| rows through `prepare` | seconds | rows/s | peak memory, GiB |\n| --- | --- | --- | --- |\n"
        "| 1000000 | 500.0 | 2000 | 0.50 |\n\n"
        "*2 cores, 8 GiB, 2 threads; torch 9; commit abc, 2026-01-02.*\n"
        "<!-- end -->\nBy hand, too.\n<!-- table million-x -->\n"
        "Not measured: `benchmarks/results/million-x.json` does not exist.\n<!-- end -->\n"
    )
    assert table.page(text, {"million": {"environment": environment, "rows": {"1000000": cost}}}) == expected


def test_ratios_are_of_medians_without_the_first_step_of_a_process() -> None:
    """Ours takes 2 s in the median of 1, 2 and 9; theirs 6 s: three times as fast, in a quarter of the memory."""
    rest = {"tokens": [9.0, 4.0], "losses": [0.0, 0.0], "before_seconds": 0.0}
    ours = [{"seconds": [50.0, s], "peak_memory_gib": 1.0, **rest} for s in (9.0, 1.0, 2.0)]
    theirs = [{"seconds": [1.0, 6.0], "peak_memory_gib": 4.0, **rest}]
    mine, other = frame.steady(ours), frame.steady(theirs)
    assert mine["seconds_per_step"] == {"median": 2.0, "least": 1.0, "greatest": 9.0, "count": 3}
    assert mine["tokens_per_second"] == 1.0
    assert frame.ratio(mine, other) == {"speed": 3.0, "memory": 0.25}


def test_time_at_work_counts_once_where_stages_overlap() -> None:
    """0 to 4, and 6 to 10 with one interval inside another: eight."""
    assert overhead.covered([(6, 9), (0, 3), (2, 4), (7, 8), (8, 10)]) == 8


@pytest.mark.long
def test_our_side_runs_in_processes_of_its_own(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    setting = Setting(**{**run.TINY, "model": str(model), "start": str(tmp_path)})
    frame.measure("ours:write_start", setting)
    found = frame.measure("ours:dpo", setting)
    assert len(found["seconds"]) == len(found["losses"]) == setting.steps
    assert abs(found["losses"][0] - 0.6931) > 1e-3  # the start is not the reference: the loss says something
    assert found["peak_memory_gib"] > 0
    frame.save("dpo", setting, frame.steady([found]), tmp_path)
    saved = json.loads((tmp_path / "dpo.json").read_text())
    assert saved["setting"]["model"] == str(model)
    assert {"hardware", "threads", "versions", "commit", "date"} <= saved["environment"].keys()


@pytest.mark.long
def test_a_failed_measurement_shows_its_last_lines(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(frame.MeasurementFailed, match=r"(?s)ours:dpo failed.*holds no adapter"):
        frame.measure("ours:dpo", Setting(**{**run.TINY, "model": str(model), "start": str(tmp_path)}))


@pytest.mark.slow
def test_both_sides_agree_on_the_losses(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the oracle extra is not installed")
    model = write_model(tmp_path / "model")
    run.main(
        ["dpo", "reward_model", "grpo", "--tiny", "--repeats", "1", "--model", str(model), "--results", str(tmp_path)]
    )
    for part in ("dpo", "reward_model", "grpo"):
        found = json.loads((tmp_path / f"{part}.json").read_text())
        assert found["theirs"]["tokens_of_steps"] == found["ours"]["tokens_of_steps"]
        first = found["first_loss_in_float32"]
        close(first["ours"], first["theirs"])
