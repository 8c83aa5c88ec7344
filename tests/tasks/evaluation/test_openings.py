"""Openings of the test side: what is recorded of each, and what is said of all of them."""

import json
import subprocess
from pathlib import Path

import pytest

from tasks.evaluation import openings
from tasks.evaluation.openings import OPENINGS, BrokenRecord, Opening, opening, record, recorded, sentence
from tasks.params.edit import override
from tasks.params.read import load
from tasks.paths import LOCK, TEST
from tests.tasks.small_project import ROOT

POLICIES = ("reference", "dpo")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project with a lock and a test side."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    TEST.parent.mkdir(parents=True)
    TEST.write_text('{"prompt": "hidden"}\n')
    LOCK.write_text("stages: {}\n")
    git("init", "--quiet")
    git("add", "params.yaml", "data")
    git("-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "begin")
    return tmp_path


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def now() -> Opening:
    return opening(load(Path("params.yaml")), POLICIES)


def test_an_opening_is_a_line_with_commit_settings_results_rows_and_policies(place: Path) -> None:
    record(now())
    record(now())
    first, second = (json.loads(line) for line in OPENINGS.read_text().splitlines())
    assert first["commit"] == git("rev-parse", "HEAD")
    assert first["policies"] == ["reference", "dpo"]
    assert first["rows"] == subprocess.check_output(["sha256sum", str(TEST)], text=True).split()[0]
    assert first["results"] == subprocess.check_output(["sha256sum", str(LOCK)], text=True).split()[0]
    assert {**first, "time": ""} == {**second, "time": ""}
    assert recorded(place)[1].time == second["time"]


def test_the_lock_and_the_record_itself_are_no_uncommitted_change_but_settings_are(place: Path) -> None:
    record(now())
    assert not now().uncommitted
    override(place / "params.yaml", ["dpo.beta=0.3"])
    assert now().uncommitted


def test_comments_are_no_settings_and_values_are(place: Path) -> None:
    before = now().settings
    path = place / "params.yaml"
    path.write_text(path.read_text() + "# a remark\n")
    assert now().settings == before
    override(path, ["dpo.beta=0.3"])
    assert now().settings != before


def test_what_is_said_of_openings(place: Path) -> None:
    one = now()
    other = one.model_copy(update={"settings": "other", "results": "other"})
    again = one.model_copy(update={"results": "other"})
    elsewhere = other.model_copy(update={"rows": "other"})
    assert sentence(one, [one]) == "The test side was opened once."
    assert sentence(one, [one, one]) == ("The test side was opened 2 times, always with these settings and results.")
    assert sentence(one, [other, one]) == (
        "The test side was opened 2 times: once with other settings; settings may have been chosen by it."
    )
    assert sentence(one, [other, other, again, one]) == (
        "The test side was opened 4 times: 2 times with other settings, once with these settings and other results; "
        "settings may have been chosen by it."
    )
    assert sentence(one, [elsewhere, one]) == ("The test side was opened once; a test side of other rows once.")


def test_results_of_another_lock_or_of_other_rows_are_not_the_present_ones(place: Path) -> None:
    one = now()
    assert openings.is_present(one, place)
    for path in (LOCK, TEST):
        before = path.read_text()
        path.write_text("changed")
        assert not openings.is_present(one, place)
        path.write_text(before)
    LOCK.unlink()
    assert not openings.is_present(one, place)


def test_a_broken_record_is_named_with_its_line(place: Path) -> None:
    record(now())
    with OPENINGS.open("a") as file:
        file.write("{}\n")
    with pytest.raises(BrokenRecord, match=r"openings.jsonl, line 2: no record of an opening"):
        recorded(place)
