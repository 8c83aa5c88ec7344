"""The stage ``test`` on a tiny project: what it opens, when, and what it leaves."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.evaluation import answers
from tasks.evaluation.openings import OPENINGS
from tasks.params.edit import override
from tasks.paths import FINAL, LOCK, TEST
from tests.tasks.small_project import set_up, stage, working_in

POLICIES = ("base", "reference", "dpo")


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a test side, compared on the validation side; the lock stands for DVC's."""
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, tiny)
    changes = [f"{name}.steps=1" for name in ("sft", "reward_model", "judge_model", "dpo")]
    sides = ["data.validation_fraction=0.3", "data.test_fraction=0.3", "policies=dpo", "compare.bootstrap_samples=100"]
    override(folder / "params.yaml", [*changes, *sides])
    with working_in(folder):
        for name in ("base", "prepare", "rules", "sft", "reward_model", "judge_model", "dpo"):
            stage(name)
        for policy in POLICIES:
            stage("answer", policy)
            stage("evaluate", policy)
        for name in ("llm_judge", "compare"):
            stage(name)
        LOCK.write_text("stages: {}\n")
        yield folder


@pytest.fixture(scope="module")
def tested(place: Path) -> dict[str, float]:
    """The metrics of the stage, run once."""
    return stage("test")


def ids(path: Path) -> set[str]:
    return {json.loads(line)["prompt_id"] for line in path.read_text().splitlines()}


def test_every_policy_answers_the_test_side_and_no_other(place: Path, tested: dict[str, float]) -> None:
    for policy in POLICIES:
        found = ids(FINAL / f"evaluations/{policy}/responses.jsonl")
        assert found <= ids(TEST)
        assert len(found) == 3  # evaluate.prompts
        assert not found & ids(Path(f"evaluations/{policy}/responses.jsonl"))


def test_the_opening_is_recorded_and_told(place: Path, tested: dict[str, float]) -> None:
    (line,) = OPENINGS.read_text().splitlines()
    assert json.loads(line)["policies"] == list(POLICIES)
    assert json.loads((FINAL / "reports/opening.json").read_text()) == json.loads(line)
    assert tested["openings"] == 1
    assert json.loads((FINAL / "reports/verdict.json").read_text())["headline"].startswith("Test side, one seed: ")
    assert "The test side was opened once." in (FINAL / "reports/comparison.html").read_text()


def test_the_validation_side_keeps_its_comparison(place: Path, tested: dict[str, float]) -> None:
    assert "test side" not in Path("reports/verdict.json").read_text().lower()
    rows = json.loads((FINAL / "reports/comparison.json").read_text())
    assert [row["policy"] for row in rows] == ["reference", "dpo"]
    both = [json.loads(Path(at, "metrics/evaluate/dpo.json").read_text()) for at in (".", FINAL)]
    assert both[0]["capability/perplexity"] == both[1]["capability/perplexity"]  # of other texts, measured once
    assert both[0]["kl/reference"] != both[1]["kl/reference"]


def test_a_change_of_settings_between_two_openings_is_told(
    place: Path, tested: dict[str, float], tmp_path: Path
) -> None:
    with working_in(tmp_path):
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
        override(Path("params.yaml"), ["compare.seed=99"])
        found = stage("test")
        assert found["openings"] == 2
        said = json.loads((FINAL / "reports/verdict.json").read_text())["lines"][0]
        assert "opened 2 times: once with other settings; settings may have been chosen by it." in said


def test_the_opening_is_on_disk_before_the_first_row_is_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def read(side: str) -> list[dict[str, object]]:
        seen.append((side, len(OPENINGS.read_text().splitlines())))
        raise KeyboardInterrupt

    with working_in(tmp_path):
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
        shutil.rmtree(FINAL, ignore_errors=True)
        monkeypatch.setattr(answers, "read_prompts", read)
        with pytest.raises(SystemExit):
            stage("test")
    assert seen == [("test", 1)]


@pytest.mark.parametrize(
    ("change", "said"),
    [("data.test_fraction=0", "data.test_fraction is 0, so there is no test side"), ("", "test.jsonl holds no prompt")],
)
def test_without_a_test_side_nothing_is_opened(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    with working_in(tmp_path):
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
        shutil.rmtree(FINAL, ignore_errors=True)
        if change:
            override(Path("params.yaml"), [change])
        else:
            TEST.write_text("")
        with pytest.raises(SystemExit):
            stage("test")
        assert said in capsys.readouterr().err
        assert not OPENINGS.exists()


def test_a_stage_that_goes_on_from_its_checkpoint_opens_nothing_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with working_in(tmp_path):
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
        shutil.rmtree(FINAL, ignore_errors=True)
        override(Path("params.yaml"), ["checkpoint.seconds=0"])
        with monkeypatch.context() as patch:
            patch.setattr("tasks.evaluation.final._judge", stop)
            with pytest.raises(SystemExit):
                stage("test")
        assert stage("test")["openings"] == 1
