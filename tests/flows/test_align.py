"""The flow on a real git and DVC project with a real Prefect server."""

import os
import signal
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.display import watching
from flows.errors import UserError
from tests.flows.project import STAGES, alive, until

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(**arguments):
    from flows.align import align

    return align(**arguments)


@pytest.fixture(autouse=True)
def _without_mlflow(monkeypatch):
    """Records are written; nobody delivers them, which has tests of its own and costs seconds."""
    monkeypatch.setattr("tasks.tracking.recorder._spawn_delivery", lambda folder: None)


def test_a_first_run_in_a_fresh_clone_leaves_nothing_for_dvc_to_do(after_first_run):
    toy = after_first_run
    assert sorted(toy.events("began")) == STAGES
    assert toy.status() == "?? dvc.lock\n"
    assert toy.stale() == ""
    assert "up to date" in toy.do("dvc", "repro")
    assert sorted(toy.events("began")) == STAGES
    assert (toy.root / "reports/comparison.json").exists()
    assert len(toy.experiments()) == 1


def test_a_second_run_computes_nothing_and_brings_deleted_outputs_back(toy):
    toy.do("rm", "-r", "artifacts")
    result = run()
    assert toy.events("began") == []
    assert {r.how for r in result.stages} == {"unchanged"}
    assert sorted(r.stage for r in result.stages) == STAGES
    assert result.experiment is None
    assert result.in_checkout
    assert list((toy.root / ".alignflow/runs").iterdir()) == []
    assert toy.stale() == ""


def test_an_override_computes_what_it_changes_and_leaves_the_users_files_alone(toy):
    before, status = toy.files(), toy.status()
    result = run(overrides=("dpo.beta=0.2",), name="stronger")
    assert toy.events("began") == ["dpo", "answer@dpo", "evaluate@dpo", "compare"]
    assert toy.files() == before
    assert toy.status() == status
    assert toy.stale() == ""
    assert (result.experiment, result.in_checkout) == ("stronger", False)
    assert "stronger" in toy.experiments()
    toy.forget()
    assert toy.alignflow("apply", "stronger").returncode == 0
    assert "beta: 0.2" in (toy.root / "params.yaml").read_text()
    assert "up to date" in toy.do("dvc", "repro")
    assert toy.events("began") == []


def test_another_number_of_rounds_computes_new_rounds_and_no_other_method(toy):
    run(overrides=("iterative_dpo.shards=3",))
    # the toy's rounds do not read their shard, so only the third is new
    assert toy.events("began") == ["iterative_dpo@round-3", "answer@iterative_dpo", "evaluate@iterative_dpo", "compare"]


def test_a_stage_that_fails_once_is_tried_again_and_no_other_is(toy):
    toy.order("fail dpo", "1")
    run(overrides=("dpo.beta=0.3",))
    assert toy.events("began") == ["dpo", "dpo", "answer@dpo", "evaluate@dpo", "compare"]


@pytest.mark.long
def test_a_stage_that_keeps_failing_is_named_and_the_other_branch_is_kept(toy):
    (toy.root / "params.yaml").write_text((toy.root / "params.yaml").read_text().replace("beta: 0.1", "beta: 0.4"))
    before = toy.files()
    toy.order("fail dpo", "2")
    with pytest.raises(UserError) as failure:
        run()
    said = str(failure.value)
    assert "failed: dpo." in said
    assert "dpo was told to fail" in said
    assert "not run because of that: answer@dpo, evaluate@dpo, compare" in said
    assert "evaluate@iterative_dpo" in toy.events("ended")
    assert toy.files() == before
    (kept,) = [f for f in (toy.root / ".alignflow/runs").iterdir() if f.is_dir()]
    assert str(kept) in said
    toy.forget()
    run()
    assert toy.events("began") == ["dpo", "answer@dpo", "evaluate@dpo", "compare"]
    assert toy.stale() == ""


def test_uncommitted_and_untracked_code_is_run_and_the_index_stays_as_it_was(toy):
    pipeline = toy.root / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("python toy.py dpo", "python extra.py && python toy.py dpo"))
    (toy.root / "extra.py").write_text("open('ran', 'w').close()\n")
    (toy.root / "staged.txt").write_text("staged")
    toy.do("git", "add", "staged.txt")
    status = toy.status()
    result = run()
    assert toy.events("ended") == ["dpo"]  # its output is the same, so nothing downstream
    assert toy.status() == status
    assert toy.stale() == ""
    saved = f"refs/exps/*/*/{result.experiment}"
    (commit,) = toy.do("git", "for-each-ref", "--format=%(objectname)", saved).split()
    assert "ran" in toy.do("git", "show", f"{commit}:extra.py")
    assert "extra.py" in toy.do("git", "show", f"{commit}:dvc.yaml")


def test_a_checkout_that_the_user_changed_meanwhile_is_left_alone(toy):
    params = toy.root / "params.yaml"
    params.write_text(params.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1", 1))

    def edit():
        params.write_text(params.read_text().replace("beta: 0.1", "beta: 0.7"))
        (toy.root / "notes.txt").write_text("an idea")

    lock = (toy.root / "dvc.lock").read_bytes()
    with toy.held("dpo", meanwhile=edit):
        result = run()
    assert not result.in_checkout
    assert result.experiment in toy.experiments()
    assert (toy.root / "dvc.lock").read_bytes() == lock
    assert "beta: 0.7" in params.read_text()
    # the run used, and recorded, what was there when it began
    (saved,) = toy.do("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{result.experiment}").split()
    assert "0.7" not in toy.do("git", "show", f"{saved}:dvc.lock")


def test_only_the_named_branch_runs_and_stages_it_did_not_touch_stay_outdated(toy):
    params = toy.root / "params.yaml"
    params.write_text(params.read_text().replace("beta: 0.1", "beta: 0.5"))  # of dpo and of iterative_dpo
    result = run(only=("dpo",))
    assert toy.events("began") == ["dpo", "answer@dpo", "evaluate@dpo"]
    assert result.left_out == ("compare",)
    assert "iterative_dpo@round-1" in toy.stale()
    assert "evaluate@dpo" not in toy.stale()


@pytest.mark.long
def test_with_two_slots_independent_branches_work_side_by_side(toy, monkeypatch):
    monkeypatch.setenv("ALIGNFLOW_DEVICE_SLOTS", "2")
    with toy.held("dpo", "iterative_dpo@round-1"):
        run(overrides=("dpo.beta=0.6", "iterative_dpo.beta=0.6"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopping_a_flow_stops_its_trainer_within_seconds(toy, prefect_server, number):
    toy.order("hold dpo")
    with toy.flow("dpo.beta=0.8", PREFECT_API_URL=prefect_server) as flow:
        until(lambda: "dpo" in toy.events("began"), "dpo began", seconds=60)
        (trainer,) = [int(pid) for event, name, pid in toy.diary() if (event, name) == ("began", "dpo")]
        os.kill(flow.pid, number)
        until(lambda: not alive(trainer), "the trainer of dpo is gone", seconds=8)
        assert toy.events("stopped") == ["dpo"]  # it was asked, so it could save a checkpoint
        said, _ = flow.communicate(timeout=40)
        assert flow.returncode != 0
    assert "Traceback" not in said
    assert toy.events("began") == ["dpo"]  # no second try, nothing downstream
    assert any(f.is_dir() for f in Path(toy.root, ".alignflow/runs").iterdir())


def test_lost_results_are_computed_again_only_where_that_is_allowed_and_it_is_told(cloned):
    run(only=("sft",))
    cloned.do("rm", "-r", "artifacts")
    assert [result.how for result in run(only=("sft",), compute=False).stages] == ["unchanged"]
    records = cloned.root / ".alignflow/outbox"
    assert len(list(records.glob("pipeline-*"))) == 2
    assert list(records.glob("pipeline-*.*")) == []  # nothing changed: no "sft (reused)" below the second run
    with pytest.raises(UserError, match="sft has to be computed: its settings, code or inputs are new; --no-compute"):
        run(overrides=("sft.learning_rate=0.0004",), only=("sft",), compute=False)
    cloned.do("rm", "-r", "artifacts", ".dvc/cache")
    lost = "neither the cache nor a remote has its recorded results"
    with pytest.raises(UserError, match=f"sft has to be computed: {lost}; --no-compute"):
        run(only=("sft",), compute=False)
    assert cloned.events("began") == ["sft"]
    printed = StringIO()
    with watching(Console(file=printed, width=200)):
        run(only=("sft",))
    assert cloned.events("began") == ["sft", "sft"]
    assert f"[sft] was computed again: {lost}" in printed.getvalue()


def test_an_experiment_of_some_stages_is_applied_without_an_error(cloned):
    run(overrides=("sft.learning_rate=0.0004",), only=("sft",), name="part")
    done = cloned.alignflow("apply", "part")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "learning_rate: 0.0004" in (cloned.root / "params.yaml").read_text()
    assert (cloned.root / "artifacts/sft/weights").exists()
    assert "sft:" not in cloned.stale()
    assert "no experiment prat; did you mean part?" in cloned.alignflow("apply", "prat").stderr
