"""Stage ``step_dpo``: its pairs, their lineage, and what it says when there are none.

The reward calls an answer right if it has no z, so a prefix with a z is dead, and the first step with one is wrong.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from alignflow.step_rules import STEP_RULES
from tasks.params.edit import override
from tests.tasks.running.test_processes import LAUNCHER, environment
from tests.tasks.small_project import set_up, stage, weights, working_in

RULE = '''
def no_z(prompt, response, answer):
    """Right without a z."""
    return -1.0 if "z" in response else 1.0
'''
SETTINGS = [
    "policies=dpo,step_dpo",
    "sampling.max_response_length=40",
    "rewards.reward_model=0",
    "rewards.rules.no_z=1",
    "rewards.missing_eos_penalty=0",
    "step_dpo.delimiter=;",
    "step_dpo.prompts=6",
    "step_dpo.samples_per_prompt=8",
    "step_dpo.errors_per_prompt=4",
    "step_dpo.continuations=6",
    "step_dpo.checker=no_z",
    "step_dpo.steps=3",
    "step_dpo.batch_size=2",
    "step_dpo.learning_rate=1e-2",
]


def has_no_z(prompt: str, before: Sequence[str], step: str, answer: str | None) -> bool | None:
    return "z" not in step


@pytest.fixture(scope="module")
def started(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    set_up(folder, tiny)
    (folder / "rewards").mkdir()
    (folder / "rewards/no_z.py").write_text(RULE)
    STEP_RULES["no_z"] = has_no_z
    with working_in(folder):
        override(Path("params.yaml"), SETTINGS)
        for name in ("base", "prepare", "sft", "reward_model", "rules"):
            stage(name)
    return folder


@pytest.fixture
def place(started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setitem(STEP_RULES, "no_z", has_no_z)
    folder = Path(shutil.copytree(started, tmp_path / "project"))
    with working_in(folder):
        yield folder


def lineage() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("artifacts/step_dpo/pairs.jsonl").read_text().splitlines()]


def test_errors_that_are_found_by_continuations_are_corrected_from_a_living_prefix(place: Path):
    found = stage("step_dpo")
    lines = lineage()
    kept = [line for line in lines if line["dropped"] is None]
    assert found["pairs"] == len(kept) > 0
    assert found["prompts_without_pair"] == 6 - len({line["prompt_id"] for line in kept})
    for line in kept:
        assert "z" not in line["prefix"] + line["chosen"]
        assert line["chosen"] != line["rejected"]
        assert line["chosen"].count(";") <= 1  # one step, with its delimiter or the end of the turn
        assert line["solution"].startswith((line["prefix"] + line["rejected"]).strip()[:20])
        assert line["located_right"] == ("z" in line["rejected"])
        assert (line["wrong_reward"], line["right_reward"], line["located"]) == (-1.0, 1.0, "rollouts")
        last = [one for one in line["alive"] if one["right"]]
        assert not last or last[-1]["prefix"] == line["step"] - 1
    told = [line["located_right"] for line in lines if line.get("located_right") is not None]
    assert found["located_right"] == sum(told) / len(told) > 0
    assert 0 < found["solved_fraction"] <= 1
    before, after = weights("artifacts/sft"), weights("artifacts/step_dpo")
    assert any(not tensor.equal(before[name]) for name, tensor in after.items())


def test_the_checker_finds_every_error_without_a_sample_for_it(place: Path):
    override(Path("params.yaml"), ["step_dpo.locate=checker"])
    found = stage("step_dpo")
    assert found["located_right"] == 1.0
    kept = [line for line in lineage() if line["dropped"] is None]
    assert kept
    for line in kept:
        assert "z" in line["rejected"]
        assert "z" not in line["prefix"] + line["chosen"]
        assert len(line["alive"]) == (line["step"] > 1)


def test_the_same_pairs_come_again(place: Path):
    stage("step_dpo")
    first = lineage()
    shutil.rmtree("artifacts/step_dpo")
    stage("step_dpo")
    assert lineage() == first


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as failed:
        stage("step_dpo")
    assert failed.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_bar_that_no_reward_reaches_is_told_with_the_rewards(place: Path, capsys: pytest.CaptureFixture[str]):
    override(Path("params.yaml"), ["step_dpo.right_from=2"])
    said = refused(capsys)
    assert re.search(r"no prompt gave a pair of steps \(no right answer: \d.*the samples earned -1 to 1", said)
    assert "step_dpo.right_from is 2.0" in said


def test_a_delimiter_that_no_token_holds_is_refused_before_anything_is_sampled(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    override(Path("params.yaml"), ["step_dpo.delimiter=é"])
    assert r"no token of the model holds 'é', so no step would end; '\n' would do" in refused(capsys)


def test_answers_of_a_single_step_are_told(place: Path, capsys: pytest.CaptureFixture[str]):
    override(Path("params.yaml"), ["sampling.max_response_length=2", "step_dpo.samples_per_prompt=40"])
    with suppress(SystemExit):  # most of them are cut off, and some runs find no pair
        stage("step_dpo")
    assert re.search(r"\d% of the answers have a single step", capsys.readouterr().out)


@pytest.mark.long
def test_two_processes_search_as_one_does(place: Path):
    override(Path("params.yaml"), ["step_dpo.checker=null"])
    both = Path(shutil.copytree(place, place / "both"))
    stage("step_dpo")
    command = [sys.executable, "-m", *LAUNCHER, "-m", "tests.tasks.running.several", "step_dpo"]
    subprocess.run(command, cwd=both, env=environment(both), check=True)
    assert (both / "artifacts/step_dpo/pairs.jsonl").read_text() == Path("artifacts/step_dpo/pairs.jsonl").read_text()
