"""``alignflow test``: when it opens the test side, when it refuses, and that nothing else opens it."""

import json
import sys
from pathlib import Path

import dvc.logger  # noqa: F401  # it keeps the stdout of its import, which must not be that of one test
import pytest

from flows import cli, test_side
from flows.errors import UserError
from tasks.evaluation import openings
from tasks.params.read import load
from tasks.paths import FINAL, TEST
from tests.flows.project import Toy


@pytest.fixture
def opened(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that ran alone, as it grows: in a toy with a test side, the stage only records and reports."""
    found: list[str] = []
    TEST.parent.mkdir(parents=True)
    TEST.write_text('{"prompt": "hidden"}\n')

    def run(name: str, *_: object) -> None:
        found.append(name)
        one = openings.opening(load(Path("params.yaml")), ["reference", "dpo"])
        openings.record(one)
        (FINAL / "reports").mkdir(exist_ok=True)
        row = {"policy": "dpo", "win_rate": 0.87, "win_rate_low": 0.8, "win_rate_high": 0.9}
        (FINAL / "reports/comparison.json").write_text(json.dumps([row]))
        (FINAL / "reports/verdict.json").write_text(json.dumps({"lines": [f"Test side: opening {len(found)}."]}))
        openings.OPENED.write_text(one.model_dump_json())

    monkeypatch.setattr("flows.stage.run_alone", run)
    return found


def test_the_same_results_are_tested_once_and_others_again(
    toy: Toy, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.test()
    assert "unchanged" not in capsys.readouterr().out
    cli.test()
    said = capsys.readouterr().out
    assert "unchanged: these results have been tested" in said
    assert "Policies on unseen prompts of the test side" in said
    assert "Test side: opening 1." in said
    assert opened == ["test"]
    toy.do(sys.executable, "-m", "flows.cli", "set", "dpo.beta=0.7")
    with pytest.raises(
        UserError, match=r"^out of date: dpo, answer@dpo, evaluate@dpo and 1 more; `alignflow run` first$"
    ):
        cli.test()
    toy.do("dvc", "repro")
    cli.test()
    assert opened == ["test", "test"]
    first, second = openings.recorded(toy.root)
    assert first.settings != second.settings
    assert (first.uncommitted, second.uncommitted) == (False, True)


def test_the_report_shows_the_test_side_of_the_present_results_alone(
    toy: Toy, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.report()
    assert "test side" not in capsys.readouterr().out
    cli.test()
    cli.report()
    said = capsys.readouterr().out
    assert said.index("prompts of the validation side") < said.index("prompts of the test side")
    assert "87" in said
    toy.do(sys.executable, "-m", "flows.cli", "set", "dpo.beta=0.7")
    toy.do("dvc", "repro")
    cli.report()
    assert "test side" not in capsys.readouterr().out


def test_neither_a_run_nor_dvc_opens_it(toy: Toy, opened: list[str]) -> None:
    toy.do("dvc", "repro", "--all-pipelines", "--force")
    assert toy.stale() == ""
    assert toy.alignflow("run", "dpo.beta=0.4").returncode == 0
    assert not opened
    assert not openings.OPENINGS.exists()


def test_a_stage_that_cannot_work_is_told_in_its_own_words_and_opens_nothing(toy: Toy) -> None:
    TEST.parent.mkdir(parents=True)
    TEST.write_text('{"prompt": "hidden"}\n')
    done = toy.alignflow("test")
    assert done.returncode == 1
    assert "alignflow: test failed with exit status 1" in done.stderr
    assert "artifacts/base is missing" in done.stderr
    assert not openings.OPENINGS.exists()


def test_without_a_test_side_there_is_nothing_to_open(toy: Toy) -> None:
    toy.do(sys.executable, "-m", "flows.cli", "set", "data.test_fraction=0")
    with pytest.raises(UserError, match=r"data\.test_fraction is 0, so there is no test side"):
        test_side.check(toy.root)
