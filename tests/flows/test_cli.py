"""Mistakes a user makes at the command line: one message that names them, at once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli, environment, remote
from tasks.params.edit import override
from tasks.params.read import load
from tasks.tools import doctor
from tests.flows.project import CODE

HEAVY = ("torch", "transformers", "prefect", "mlflow", "dvc", "pydantic")


def refused(done):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "dpo.betta=0.2"], "no key dpo.betta; did you mean dpo.beta?"),
        (["run", "dpo.beta=-1"], "dpo.beta"),
        (["run", "dpo.beta"], "section.key=value"),
        (["run", "--only", "dpo,gropo"], "no stage gropo"),
        (["run", "policies=dpo", "policies=ppo"], "policies is given twice: policies=dpo and policies=ppo"),
        (["set", "dpo.beta=0.2", "dpo.beta=0.3"], "dpo.beta is given twice: dpo.beta=0.2 and dpo.beta=0.3"),
        (["run", "--no-compute", "--seeds", "2"], "--no-compute: not with --seeds"),
        (["apply", "none"], "no experiment none: there are none yet"),
        (["run", "--only", ""], "--only names no stage"),
        (["run", "--only", ","], "--only names no stage"),
        (["run", "--name", "a b"], "'a b' cannot name an experiment"),
        (["run", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["run", "--seeds", "3", "dpo.seed=4"], "dpo.seed: --seeds sets it"),
        (["run", "--seeds", "3", "dpo.beta=-1"], "dpo.beta"),
        (["run", "--seeds", "3", "--only", "dpo"], "--only: with --seeds all stages run"),
        (["run", "--seeds", "3", "--name", "a b"], "'a b-seed-1' cannot name an experiment"),
        (["set", "dpo.beta=big"], "dpo.beta"),
        (["stage", "dop"], "no stage dop; did you mean dpo?"),
        (["stage", "dpo"], "dpo needs artifacts/sft, which stage sft makes"),
        (["stage", "test"], "`alignflow test` runs it"),
        (["test"], "out of date: sft, "),
        (["report"], "comparison.json is missing; `alignflow run` makes it"),
        (["chat", "dop"], "no policy dop; did you mean dpo?"),
        (["chat", "dpo"], "answer@dpo needs artifacts/dpo"),
        (["chat"], "which policy? One or two of dpo, iterative_dpo"),
        (["rnu"], "No such command 'rnu'"),
        (["data", "check", "none.jsonl"], "none.jsonl: not found"),
        (["data", "check", "params.yaml", "--format", "rankd"], "no format 'rankd'; did you mean ranked?"),
        (["data", "check", "params.yaml"], "params.yaml: unknown kind of file"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_choice(cloned, arguments, expected):
    params = (cloned.root / "params.yaml").read_bytes()
    assert expected in refused(cloned.alignflow(*arguments))
    assert (cloned.root / "params.yaml").read_bytes() == params
    assert not (cloned.root / ".alignflow").exists()  # nothing had begun


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--scenario", "sterner"], "no scenario 'sterner'; did you mean stern?; there are: broken, stern"),
        (["--scenario", "broken"], "scenarios/broken.yaml: params: no key dpo.betta; did you mean dpo.beta?"),
        (["--scenario", "stern", "dpo.beta=-1"], "alignflow: params.yaml: dpo.beta: Input should be greater than 0"),
    ],
)
def test_a_mistake_in_a_scenario_or_on_top_of_one_is_told_at_once(cloned, arguments, expected):
    write_scenarios(cloned)
    assert expected in refused(cloned.alignflow("run", *arguments))
    assert not (cloned.root / ".alignflow").exists()


def test_a_scenario_sets_parameters_for_one_run_and_what_is_typed_goes_on_top(cloned, monkeypatch):
    """What the flow is asked for, put into a copy of params.yaml as the flow's workspace does."""
    write_scenarios(cloned)
    before, asked = Path("params.yaml").read_bytes(), []
    monkeypatch.setattr("flows.align.align", lambda *arguments, compute: asked.append((*arguments, compute)))
    monkeypatch.setattr("flows.environment.prepare", lambda: None)
    monkeypatch.setattr("flows.cli._conclude", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    cli.run(["dpo.label_smoothing=0.2"], scenario="stern", name="strict")
    ((changes, chosen, name, compute),) = asked
    assert (chosen, name, compute) == ((), "strict", True)
    assert Path("params.yaml").read_bytes() == before
    override(Path("params.yaml"), changes)
    found = load(Path("params.yaml")).dpo
    assert (found.beta, found.label_smoothing) == (0.7, 0.2)  # the scenario's label smoothing is 0.3


def write_scenarios(toy):
    folder = toy.root / "scenarios"
    folder.mkdir()
    (folder / "stern.yaml").write_text("dpo:\n  beta: 0.7\n  label_smoothing: 0.3\n")
    (folder / "broken.yaml").write_text("dpo:\n  betta: 0.7\n")


def test_outside_a_project_the_message_says_so(cloned, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = (sys.executable, "-m", "flows.cli", "run")
    assert "not inside a git checkout" in refused(cloned.attempt(*run, at=elsewhere))
    assert cloned.attempt("git", "init", "--quiet", at=elsewhere).returncode == 0
    assert re.search(r"(dvc\.yaml|\.dvc) is missing", refused(cloned.attempt(*run, at=elsewhere)))


def test_a_missing_params_file_and_a_repository_without_commits_are_named(cloned):
    cloned.do("rm", "-r", ".git")
    cloned.do("git", "init", "--quiet")
    assert "no commit yet" in refused(cloned.alignflow("run"))
    cloned.do("rm", "params.yaml")
    assert "params.yaml is missing" in refused(cloned.alignflow("run"))


def test_help_and_checks_load_nothing_heavy():
    code = f"import sys, flows.cli; print([m for m in {HEAVY} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "[]\n"


def test_set_edits_the_params_and_keeps_the_rounds_consistent(cloned):
    (cloned.root / "sub").mkdir()
    assert cloned.alignflow("set", "iterative_dpo.shards=3", "dpo.beta=0.3").returncode == 0
    text = (cloned.root / "params.yaml").read_text()
    assert "beta: 0.3" in text
    assert "last: round-3" in text
    assert "# " in text


def test_one_stage_runs_in_the_checkout_and_its_error_is_shown(toy):
    toy.do("rm", "-r", "artifacts/dpo", "dvc.lock")
    toy.order("fail dpo", "1")
    toy.alignflow("set", "dpo.beta=0.9")
    said = refused(toy.alignflow("stage", "dpo"))
    assert "dpo was told to fail" in said
    done = toy.alignflow("stage", "dpo")
    assert done.returncode == 0
    assert "[dpo] step 2/2" in done.stdout
    assert toy.events("began") == ["dpo", "dpo"]


def test_the_first_run_says_what_was_done_and_what_comes_next(first_run):
    toy, said = first_run
    assert "10 stages: 10 ran" in said
    assert "[dpo] step 2/2 | loss 0.25" in said
    assert f"mlflow ui --backend-store-uri sqlite:///{toy.root}/.alignflow/mlflow.db" in said
    assert "alignflow chat dpo" in said  # the policy that won
    assert "dvc repro" in said
    assert not (toy.root.parent / ".prefect").exists()  # the user's own Prefect folder, had it been touched
    assert "dpo" in toy.alignflow("report").stdout


def test_a_check_of_data_shows_form_rows_faults_and_the_command_that_takes_it(cloned):
    rows = [{"prompt": f"what is {i}?", "chosen": f"[bold]{i}[/]", "rejected": f"who knows {i}"} for i in range(60)]
    lines = [json.dumps(row) for row in rows]
    (cloned.root / "mine.jsonl").write_text("\n".join(lines))
    done = cloned.alignflow("data", "check", "mine.jsonl")
    assert done.returncode == 0, done.stderr
    for part in ("preference", "60: 60 used, 0 dropped", "alignflow set data.path=mine.jsonl"):
        assert part in " ".join(done.stdout.split()).replace("rows 60", "60")
    (cloned.root / "mine.jsonl").write_text("\n".join([*lines, "{", lines[3], "{"]))
    done = cloned.alignflow("data", "check", "mine.jsonl")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = " ".join(done.stdout.split())
    for part in (
        *("broken JSON 61, 63", "repeated row 62", "2 of 63 rows cannot be used"),
        "to go on without them: alignflow set data.max_dropped_fraction=0.04",
    ):
        assert part in said


def test_a_check_finds_the_file_from_any_folder_of_the_project(cloned):
    folder = cloned.root / "deep"
    folder.mkdir()
    rows = [{"prompt": f"what is {i}?", "chosen": "b", "rejected": "c"} for i in range(60)]
    (folder / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = cloned.attempt(sys.executable, "-m", "flows.cli", "data", "check", "mine.jsonl", at=folder)
    assert "data.path=deep/mine.jsonl" in done.stdout, done.stderr


def test_a_remote_whose_package_is_missing_is_one_line(cloned):
    cloned.do("dvc", "remote", "add", "--default", "store", "gs://bucket/folder")
    for command in (["run"], ["stage", "sft"]):
        said = refused(cloned.alignflow(*command))
        assert said.startswith("alignflow: DVC remote store: gs is supported, but requires 'dvc-gs' to be installed")
        assert said.endswith("`pip install 'dvc[gs]'`\n")
        assert said.count("\n") == 1


def test_the_doctor_asks_every_server(cloned, monkeypatch):
    cloned.do("dvc", "remote", "add", "--default", "store", str(cloned.root.parent / "nowhere"))
    services = {"orchestration": environment.look, "results": lambda: remote.look(cloned.root)}
    monkeypatch.setattr(doctor, "LOOKS", {"tracking": doctor.LOOKS["tracking"]})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:secret@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = {name: (good, said) for name, good, said in doctor.diagnose(services)}
    assert found["tracking"] == (False, "MLflow at http://127.0.0.1:9: Connection refused")
    assert not found["orchestration"][0]
    assert "no Prefect server answers at http://127.0.0.1:9/api" in found["orchestration"][1]
    assert not found["results"][0]
    assert "holds no results or does not answer" in found["results"][1]
    cloned.do("dvc", "remote", "remove", "store")
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert all(good for _, good, _ in doctor.diagnose(services))
