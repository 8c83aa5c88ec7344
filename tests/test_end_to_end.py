"""The whole pipeline on the real base model, each stage for a step or two, as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from flows import graph
from tests.close import close

pytestmark = pytest.mark.real_base

CODE = Path(__file__).parents[1]
BINARIES = Path(sys.executable).parent
SHORT = (
    "sft.steps=2",
    "reward_model.steps=3",
    "reward_model.normalization_prompts=4",
    "judge_model.steps=3",
    "judge_model.normalization_prompts=4",
    "dpo.steps=2",
    "iterative_dpo.shards=2",
    "iterative_dpo.prompts_per_shard=3",
    "iterative_dpo.min_margin=0.0",
    "iterative_dpo.steps=1",
    "ppo.steps=1",
    "ppo.batch_size=4",
    "grpo.steps=1",
    "grpo.batch_size=2",
    "sampling.max_response_length=12",
    "evaluate.prompts=4",
    "evaluate.trajectory_prompts=2",
    "evaluate.samples_per_prompt=2",
    "evaluate.capability_texts=4",
    "evaluate.max_response_length=96",
    "compare.bootstrap_samples=200",
)
POLICIES = ("base", "reference", "dpo", "iterative_dpo", "ppo", "grpo")


@dataclass(frozen=True)
class Project:
    """A clone of this project with short settings."""

    root: Path

    @property
    def env(self) -> dict[str, str]:
        """Without the user's server, and with a home folder in the clone."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ALIGNFLOW_", "MLFLOW_", "PREFECT_"))}
        return {**kept, "PYTHONPATH": str(self.root)}

    def do(self, *command: str, activated: bool = True) -> str:
        """Run a command in the clone, in an activated virtual environment or not; return everything that it printed."""
        bare = [p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != BINARIES]
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**self.env, "PATH": os.pathsep.join([str(BINARIES), *bare] if activated else bare)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=3600,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def json(self, path: str) -> object:
        """Return a JSON file's content."""
        return json.loads((self.root / path).read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A fresh clone after `alignflow run`."""
    clone = Project(tmp_path_factory.mktemp("end-to-end") / "alignflow")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CODE,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (CODE / name).is_file() and name != "dvc.lock":
            (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CODE / name, clone.root / name)
    (CODE / "models").mkdir(exist_ok=True)
    (clone.root / "models").symlink_to(CODE / "models")  # convert the base model once, not once a test run
    clone.do("git", "init", "--quiet")
    clone.do("git", "add", "--all")
    clone.do("git", "-c", "user.name=Test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "cloned")
    clone.do(sys.executable, "-m", "flows.cli", "set", *SHORT)  # not committed: uncommitted changes run, too
    printed = clone.do(sys.executable, "-m", "flows.cli", "run", activated=False)  # as `make demo` does
    assert "alignflow chat" in printed  # what comes next is said
    return clone


def test_every_policy_is_compared_with_the_agreed_figures(project: Project) -> None:
    rows = project.json("reports/comparison.json")
    assert isinstance(rows, list)
    assert [row["policy"] for row in rows] == list(POLICIES[1:])
    reference = scores(project, "reference")
    for row in rows:
        met = [
            fmean((mine > other) + (mine == other) / 2 for mine, other in product(answers, reference[prompt]))
            for prompt, answers in scores(project, row["policy"]).items()
        ]
        close(row["win_rate"], fmean(met))
    assert all(row["peak_memory_gib"] > 0.3 and row["trained_tokens"] > 0 for row in rows)
    assert "<svg" in (project.root / "reports/comparison.html").read_text()


def scores(project: Project, policy: str) -> dict[str, list[float]]:
    """Return the training reward of every answer, by prompt."""
    found: dict[str, list[float]] = {}
    for line in (project.root / f"evaluations/{policy}/responses.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["prompt_id"], []).append(row["score"])
    return found


def test_after_a_run_dvc_has_nothing_to_do(project: Project) -> None:
    assert json.loads(project.do("dvc", "status", "--json")) == {}
    assert "Running stage" not in project.do("dvc", "repro")


def test_dvc_tells_what_was_measured(project: Project) -> None:
    assert "validation/accuracy" in project.do("dvc", "metrics", "show", "--json")
    assert "evaluate@grpo" in project.do("dvc", "dag")
    assert "beta" in project.do("dvc", "exp", "show", "--md", "--no-pager")
    project.do("dvc", "plots", "show", "--out", "dvc_plots")
    assert "ppo" in (project.root / "dvc_plots/index.html").read_text()
    shutil.rmtree(project.root / "dvc_plots")


@pytest.fixture
def settings(project: Project) -> Iterator[Callable[..., None]]:
    """Change settings as `alignflow set` does, for one test."""
    path = project.root / "params.yaml"
    before = path.read_text()

    def change(*assignments: str) -> None:
        path.write_text(before)
        project.do(sys.executable, "-m", "flows.cli", "set", *assignments)

    yield change
    path.write_text(before)


def test_another_beta_touches_dpo_its_evaluation_and_the_comparison_alone(
    project: Project, settings: Callable[..., None]
) -> None:
    settings("dpo.beta=0.3")
    assert _would_run(project) == {"dpo", "answer@dpo", "evaluate@dpo", "llm_judge", "compare"}


def test_another_number_of_shards_touches_the_rounds_and_what_follows_alone(
    project: Project, settings: Callable[..., None]
) -> None:
    settings("iterative_dpo.shards=3")
    rounds = {f"iterative_dpo@round-{i}" for i in (1, 2, 3)}
    assert _would_run(project) == {*rounds, "answer@iterative_dpo", "evaluate@iterative_dpo", "llm_judge", "compare"}


def _would_run(project: Project) -> set[str]:
    """Return what DVC says is changed, and everything that builds on it."""
    return {stage.name for stage in graph.read(project.root).values() if stage.stale}


def test_every_metric_is_explained(project: Project) -> None:
    keys = re.findall(r"`([\w/<>]+)`", (CODE / "docs/metrics.md").read_text())
    explained = [re.sub(r"<\w+>", r"\\w+", key) for key in keys]  # of `judge/<name>/mean`, every name
    files = [p for p in (project.root / "metrics").rglob("*.json") if p.name != "compare.json"]
    found = {key for path in files for key in json.loads(path.read_text())}
    for path in (project.root / "plots").rglob("*.csv"):
        found |= set(path.read_text().splitlines()[0].split(","))
    assert len(files) == 24
    assert not [key for key in found - {"step"} if not any(re.fullmatch(each, key) for each in explained)]


def test_adapters_load_with_plain_peft(project: Project) -> None:
    """From the project's folder, as the base's path is relative to it; the reward model with its trained head."""
    script = """
import json, torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoTokenizer
for folder in ("dpo", "ppo", "grpo", "iterative_dpo/round-2"):
    model = AutoPeftModelForCausalLM.from_pretrained(f"artifacts/{folder}")
    tokenizer = AutoTokenizer.from_pretrained(f"artifacts/{folder}")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_tensors="pt", return_dict=True)
    with torch.no_grad():
        assert torch.isfinite(model(**ids).logits).all()
scorer = AutoPeftModelForSequenceClassification.from_pretrained("artifacts/reward_model", num_labels=1)
saved = load_file("artifacts/reward_model/adapter_model.safetensors")["base_model.model.score.weight"]
loaded = [p for n, p in scorer.named_parameters() if "score" in n and "default" in n]
assert any(torch.equal(p, saved.to(p.dtype)) for p in loaded), loaded
print("loaded")
"""
    assert project.do(sys.executable, "-c", script).rstrip().endswith("loaded")


def test_every_pair_of_a_round_keeps_its_lineage(project: Project) -> None:
    for number in (1, 2):
        path = project.root / f"artifacts/iterative_dpo/round-{number}/pairs.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == 3
        for row in rows:
            assert row["round"] == f"round-{number}"
            assert len(row["scores"]) == len(row["responses"]) == 4
            assert row["reward_model_hash"]
            if row["dropped"] is None:
                best, worst = max(row["scores"]), min(row["scores"])
                assert row["responses"][row["scores"].index(best)] == row["chosen"]
                assert row["responses"][row["scores"].index(worst)] == row["rejected"]


def test_mlflow_holds_one_parent_and_a_child_a_stage(project: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root}/.alignflow/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "alignflow"]
    runs = client.search_runs([experiment.experiment_id])
    found = {r.data.tags["stage"]: r for r in runs if "mlflow.parentRunId" in r.data.tags}
    stages = {
        line.split()[0].removesuffix("@policy")
        for line in project.do("dvc", "stage", "list", "--name-only").splitlines()
    }
    children = {name: run for name, run in found.items() if name in stages}
    assert set(children) == stages
    assert len({r.data.tags["mlflow.parentRunId"] for r in children.values()}) == 1
    compared = {name: run for name, run in found.items() if name not in stages}
    assert set(compared) == {f"compare/{policy}" for policy in POLICIES}  # side by side in MLflow's compare view
    assert {r.data.tags["mlflow.parentRunId"] for r in compared.values()} == {children["compare"].info.run_id}
    assert len({frozenset(run.data.metrics) for run in compared.values()}) == 1
    assert all(r.info.status == "FINISHED" for r in children.values())
    dpo = children["dpo"]
    assert len(client.get_metric_history(dpo.info.run_id, "loss")) == 2
    assert dpo.data.params["dpo.beta"] == "0.1"
    assert dpo.data.tags["git.commit"]
    registered = {model.name for model in client.search_registered_models()}
    assert {f"alignflow-{name}" for name in ("reward_model", "dpo", "iterative_dpo", "ppo", "grpo")} <= registered


def test_the_test_side_opens_once_and_only_when_asked(project: Project, tmp_path: Path) -> None:
    assert not (project.root / "final").exists()
    copy = Project(tmp_path / "alignflow")
    shutil.copytree(project.root, copy.root, symlinks=True)
    assert "Test side, one seed: " in copy.do(sys.executable, "-m", "flows.cli", "test")
    assert "unchanged: " in copy.do(sys.executable, "-m", "flows.cli", "test")
    assert len((copy.root / "final/openings.jsonl").read_text().splitlines()) == 1
    assert json.loads(copy.do("dvc", "status", "--json")) == {}


def test_a_terminated_stage_continues_from_its_checkpoint(project: Project, tmp_path: Path) -> None:
    copy = Project(tmp_path / "alignflow")
    shutil.copytree(project.root, copy.root, symlinks=True, ignore=shutil.ignore_patterns("cache", "evaluations"))
    copy.do(sys.executable, "-m", "flows.cli", "set", "sft.steps=40")
    command = [sys.executable, "-m", "tasks", "sft"]
    with subprocess.Popen(command, cwd=copy.root, env=copy.env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while "step 1/40" not in running.stdout.readline():
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        running.stdout.read()
    assert running.returncode == 143
    assert len(list((copy.root / ".alignflow/checkpoints").rglob("*.newest.pt"))) == 1
    with subprocess.Popen(command, cwd=copy.root, env=copy.env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        running.stdout.read()
    assert "[sft] continues after step" in first
