"""What `alignflow data check` says to put into params.yaml."""

import json
from pathlib import Path

import pytest

from flows.data import command
from tasks.data.check import Checked
from tasks.params.read import load
from tasks.params.sections import Data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    data = load(ROOT / "params.yaml").data
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text("{}\n")
    return data.model_copy(update={"max_prompt_length": 100, "max_response_length": 80, "max_dropped_fraction": 0.02})


def found(prompt: tuple[int, int], chosen: tuple[int, int], *, broken: int = 0, problem: bool = False) -> Checked:
    """Data of 1000 rows whose lengths are given as the length that 99 of 100 have, and the greatest."""
    lengths = {"prompt_length": prompt, "chosen_length": chosen, "rejected_length": chosen}
    statistics = {"unit": "tokens", **{name: {"99%": most, "max": all_} for name, (most, all_) in lengths.items()}}
    findings = [{"reason": "broken", "rows": broken}] if broken else []
    report = {"rows": 1000, "findings": findings, "statistics": statistics}
    return Checked({"mine.jsonl": None}, report, ["too many"] if problem else [], True)


def test_data_that_fits_is_taken_over_by_its_path_alone(present: Data):
    assert command("mine.jsonl", found((90, 100), (70, 80)), present, present) == "alignflow set data.path=mine.jsonl"


def test_limits_are_raised_for_99_of_100_texts_or_for_all_where_that_would_drop_too_many(present: Data):
    few = found((150, 900), (70, 80), problem=True)
    assert command("mine.jsonl", few, present, present).endswith("mine.jsonl data.max_prompt_length=150")
    many = found((150, 900), (90, 400), broken=10, problem=True)  # 1 % and three times up to 1 %: above 2 %
    said = command("mine.jsonl", many, present, present)
    assert said.endswith("data.max_prompt_length=900 data.max_response_length=400")


def test_nothing_is_advised_where_no_limit_helps(present: Data):
    assert command("mine.jsonl", found((90, 100), (70, 80), broken=500, problem=True), present, present) == ""


def test_what_was_set_for_other_data_is_taken_back(present: Data):
    source = {"path": "data/preferences.jsonl", "weight": 1}
    before = Data.model_validate({**present.model_dump(), "format": "ranked", "sources": [source]})
    said = command("mine.jsonl", found((90, 100), (70, 80)), present, before)
    assert said == "alignflow set data.path=mine.jsonl 'data.sources=[]' data.format=auto"


def test_a_split_and_a_data_set_of_the_hub_become_sources(present: Data):
    def taken(name: str, **keys: str) -> list[dict[str, object]]:
        source = {"path": name, "weight": 1, **keys}
        chosen = Data.model_validate({**present.model_dump(), "path": name, "sources": [source] if keys else []})
        said = command(name, found((90, 100), (70, 80)), chosen, present)
        sources: list[dict[str, object]] = json.loads(said.partition("'data.sources=")[2].rstrip("'"))
        return sources

    assert taken("mine.jsonl", split="train") == [{"path": "mine.jsonl", "split": "train", "weight": 1.0}]
    assert taken("owner/name") == [{"path": "owner/name", "revision": "COMMIT", "weight": 1}]
    assert taken("owner/name", revision="abc", split="test") == [
        {"path": "owner/name", "revision": "abc", "split": "test", "weight": 1.0}
    ]
