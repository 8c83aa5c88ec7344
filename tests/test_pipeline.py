"""dvc.yaml against the code: what a stage depends on, what it reads and what it writes."""

import ast
import shutil
from pathlib import Path, PurePosixPath

import pytest

from tasks.judges import JUDGES
from tasks.params.edit import override
from tasks.params.read import load
from tasks.params.seeds import training_seeds
from tasks.paths import TEST
from tasks.policies import POLICIES
from tasks.stages import STAGES as TABLE
from tasks.stages import TRAINING, samples
from tests.pipeline import READ_AS_TEXT, ROOT, closure, paths, read_yaml, stages

STAGES = stages()
TRAINED = tuple(name for name, entry in TABLE.items() if entry.metrics == TRAINING)
SHARED = {"judge_model": "reward_model", "sft_more": "sft"}  # the same algorithm, from another start or of other data
ALGORITHMS = {f"alignflow/algorithms/{name}.py" for name in TRAINED if name not in SHARED}
OWN = {
    **{name: {f"alignflow/algorithms/{SHARED.get(name, name)}.py"} for name in TRAINED},
    "iterative_dpo": {"alignflow/algorithms/iterative_dpo.py", "alignflow/algorithms/dpo.py"},
    "step_dpo": {"alignflow/algorithms/step_dpo.py", "alignflow/algorithms/dpo.py"},
    "mcts_dpo": {"alignflow/algorithms/mcts_dpo.py", "alignflow/algorithms/dpo.py"},
}
UNCHANGED_BY = dict.fromkeys(("answer", "evaluate"), "memory")
"""Sections that a stage reads and that change none of its results: tests of the stage and of processes compare them."""
DERIVED = {"iterative_dpo.shards", "iterative_dpo.last", "iterative_dpo.rounds"}  # they only make the foreach


def covers(dep: str, path: str) -> bool:
    return PurePosixPath(path).is_relative_to(dep)


def code_deps(stage: str) -> list[str]:
    return [dep for dep in paths(STAGES[stage]["deps"]) if dep.split("/")[0] in {"alignflow", "tasks"}]


def test_the_table_of_stages_has_the_stages_of_dvc():
    assert set(TABLE) == {*STAGES, "test"}
    assert {name for name, entry in TABLE.items() if entry.items} == {
        name for name, body in STAGES.items() if "${key}" in body["cmd"]
    }


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_every_file_that_can_change_the_result(stage: str):
    missing = sorted(file for file in closure(stage) if not any(covers(dep, file) for dep in code_deps(stage)))
    assert not missing, f"dvc.yaml, {stage}.deps lacks: {', '.join(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_no_code_that_the_stage_does_not_use(stage: str):
    used = closure(stage)
    for dep in code_deps(stage):
        if dep == READ_AS_TEXT.get(stage):
            continue
        path = ROOT / dep
        assert path.exists(), f"{stage} depends on {dep}, which does not exist"
        inside = [path] if path.is_file() else [p for p in path.rglob("*.py") if p.name != "__init__.py"]
        spare = [p.relative_to(ROOT).as_posix() for p in inside if p.suffix == ".py"]
        spare = [p for p in spare if p not in used]
        assert not spare, f"dvc.yaml, {stage}.deps names {', '.join(spare)}, which it does not import"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_samples_looks_at_its_start_whether_the_engine_can_work(stage: str):
    assert samples(TABLE[stage]) == ("alignflow/sampling/vllm.py" in closure(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_depends_on_another_algorithm(stage: str):
    assert closure(stage) & ALGORITHMS == OWN.get(stage, set())


def test_a_new_rule_and_the_sampler_retrain_no_offline_method():
    for stage in ("sft", "dpo"):
        assert not closure(stage) & {"alignflow/rewards.py", "alignflow/sampling/own.py", "alignflow/loops/online.py"}
        assert not [dep for dep in paths(STAGES[stage]["deps"]) if "rules" in dep]
    assert "alignflow/loops/offline.py" not in closure("ppo") | closure("grpo")


def test_answers_depend_on_no_reward_and_no_judge_and_an_evaluation_on_no_sampler():
    answer, evaluate = STAGES["answer"], STAGES["evaluate"]
    assert not {"rewards", "evaluate", "evaluate.judges", "sampling"} & set(answer["params"])
    assert not [dep for dep in paths(answer["deps"]) if "reward" in dep or "judg" in dep or "rules" in dep]
    assert not [dep for dep in paths(evaluate["deps"]) if "sampling" in dep or dep == "${item}"]
    assert not [param for param in evaluate["params"] if "sampling" in param]


@pytest.mark.parametrize("stage", STAGES)
def test_the_settings_a_stage_hands_to_its_run_are_among_its_params(stage: str):
    params, raw = set(STAGES[stage]["params"]), read_yaml("params.yaml")
    for section in TABLE[stage].sections:
        keys = {section} if "." in section else {f"{section}.{key}" for key in raw[section]} - DERIVED
        assert section in params or keys <= params, f"{stage}: {sorted(keys - params)} not in dvc.yaml"


def test_how_often_a_checkpoint_is_saved_makes_no_stage_run_again_and_no_checkpoint_useless():
    """It changes no result: neither DVC nor the settings that decide which checkpoint fits know of it."""
    read = {param for body in STAGES.values() for param in body.get("params", [])}
    read |= {section for entry in TABLE.values() for section in entry.sections}
    assert not [name for name in read if name.partition(".")[0] == "checkpoint"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_read_in_a_stage_is_among_its_params(stage: str):
    """Looks for ``params.SECTION.KEY`` and ``params.SECTION`` in the files of ``tasks/`` that the stage uses."""
    params, raw = set(STAGES[stage]["params"]), read_yaml("params.yaml")
    trees = [ast.parse((ROOT / file).read_text()) for file in closure(stage) if file.startswith("tasks/")]
    read = {text for tree in trees for node in ast.walk(tree) if (text := _setting(node))}
    longest = {text for text in read if not any(other.startswith(text + ".") for other in read)}
    for text in longest:
        section, _, key = text.partition(".")
        if section == UNCHANGED_BY.get(stage):
            continue
        keys = {f"{section}.{key}"} if key in raw[section] else {f"{section}.{k}" for k in raw[section]}
        assert section in params or keys - DERIVED <= params, f"{stage} reads {text}, which is not in dvc.yaml"


def _setting(node: ast.AST) -> str:
    text = ast.unparse(node).removeprefix("stage.") if isinstance(node, ast.Attribute) else ""
    return text.removeprefix("params.") if text.startswith("params.") else ""


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_reads_is_among_its_deps(stage: str):
    deps = paths(STAGES[stage]["deps"])
    for path in TABLE[stage].inputs:
        assert any(covers(dep, path) or covers(path, dep) for dep in deps), f"{stage} reads {path}"


def test_evaluation_and_comparison_depend_on_every_reward_model_of_the_table_of_judges():
    evaluate, compare = (set(paths(STAGES[stage]["deps"])) for stage in ("evaluate", "compare"))
    folders = {judge.folder.as_posix() for judge in JUDGES.values() if judge.folder}
    assert folders <= evaluate, f"dvc.yaml, evaluate.deps lacks {sorted(folders - evaluate)}"
    reports = {f"{folder}/report.json" for folder in folders}
    assert reports <= compare, f"dvc.yaml, compare.deps lacks {sorted(reports - compare)}"


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_but_the_last_can_read_the_test_side(stage: str):
    """Neither the file nor a folder around it is a dependency, and no code of the stage names the side."""
    if stage == "prepare":
        return
    found = [dep for dep in [*paths(STAGES[stage]["deps"]), *TABLE[stage].inputs] if covers(dep, TEST.as_posix())]
    assert not found, f"{stage} depends on {', '.join(found)}"
    for file in closure(stage):
        words = {
            node.value for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.Constant)
        }
        assert not words & {"test", "test.jsonl"} or file == "tasks/paths.py", f"{stage}: {file} names the test side"


def test_the_stage_that_opens_the_test_side_is_in_no_pipeline_of_dvc():
    from dvc.repo import Repo

    assert TEST.as_posix() in TABLE["test"].inputs
    with Repo(str(ROOT)) as repo:
        stages = [stage for stage in repo.index.stages if stage.cmd]
        assert stages
        assert not [stage.addressing for stage in stages if "tasks test" in stage.cmd]
        read = {dep.def_path for stage in stages for dep in stage.deps}
    assert not [path for path in read if covers(path, TEST.as_posix())]


@pytest.mark.parametrize("stage", STAGES)
def test_outs_and_metrics_are_what_the_stage_writes(stage: str):
    outs = paths([*STAGES[stage]["outs"], *STAGES[stage].get("plots", [])])
    metrics = paths(STAGES[stage]["metrics"])
    nested = f"{stage}/${{key}}" if "${key}" in STAGES[stage]["cmd"] else stage
    assert metrics == [f"{TABLE[stage].metrics}/{nested}.json"]
    assert STAGES[stage]["cmd"].split() == ["python", "-m", "tasks", stage] + (["${key}"] if nested != stage else [])
    if stage in TRAINED:
        assert set(outs) == {f"artifacts/{nested}", f"plots/{nested}.csv"}
    emptied = TABLE[stage].outs
    assert set(emptied) <= set(outs)


def test_the_rounds_of_iterative_dpo_chain_and_all_are_evaluated():
    params, dvc = read_yaml("params.yaml")["iterative_dpo"], read_yaml("dvc.yaml")["stages"]
    before = "artifacts/sft"
    for name, turn in params["rounds"].items():
        assert turn["previous"] == before
        before = f"artifacts/iterative_dpo/{name}"
    assert before == f"artifacts/iterative_dpo/{params['last']}"
    assert dvc["iterative_dpo"]["foreach"] == "${iterative_dpo.rounds}"


def test_the_choice_of_policies_makes_the_stages():
    """What is trained and evaluated follows from params.yaml alone, through DVC's own reading of both files."""
    dvc, params = read_yaml("dvc.yaml")["stages"], read_yaml("params.yaml")
    assert {dvc[name]["foreach"] for name in ("answer", "evaluate")} == {"${policies}"}
    for name, policy in POLICIES.items():
        if policy.stage == name and not policy.in_rounds:
            assert dvc[name]["foreach"] == f"${{trained.{name}}}"
    assert params["policies"] == {
        "base": "artifacts/base",
        "reference": "artifacts/sft",
        "dpo": "artifacts/dpo",
        "iterative_dpo": "artifacts/iterative_dpo",
        "ppo": "artifacts/ppo",
        "grpo": "artifacts/grpo",
    }
    on, off = ["policy"], list[str]()
    assert params["trained"] == {
        "dpo": on,
        "step_dpo": off,
        "mcts_dpo": off,
        "ppo": on,
        "grpo": on,
        "rloo": off,
        "kto": off,
        "sft_more": off,
    }


def test_a_policy_that_is_switched_off_has_no_stage(tmp_path: Path):
    from dvc.repo import Repo

    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    override(tmp_path / "params.yaml", ["policies=ppo,dpo"])
    Repo.init(str(tmp_path), no_scm=True).close()
    with Repo(str(tmp_path)) as repo:
        names = {stage.name for stage in repo.index.stages}
    assert {"dpo@policy", "ppo@policy", "evaluate@base", "evaluate@reference", "evaluate@dpo", "compare"} <= names
    assert {name for name in names if name.startswith("answer")} == {
        f"answer@{name}" for name in ("base", "reference", "dpo", "ppo")
    }
    assert not {name for name in names if "grpo" in name or "iterative_dpo" in name}


def test_a_folder_of_code_is_hashed_without_what_python_writes_into_it():
    """DVC does not read .gitignore: compiled files inside a folder dep would make every stage stale."""
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        assert repo.dvcignore.is_ignored_dir(str(ROOT / "alignflow/models/__pycache__"))
        assert not repo.dvcignore.is_ignored_file(str(ROOT / "alignflow/models/roles.py"))


def test_what_every_seed_shares_depends_on_no_seed_that_varies():
    """Everything that is not trained with another seed, or made from it, is computed once by `--seeds`."""
    varied = {key.partition(".")[0] for key in training_seeds(load(ROOT / "params.yaml"))}
    stages = {name: entry.get("do", entry) for name, entry in read_yaml("dvc.yaml")["stages"].items()}
    reached: set[str] = set()
    while True:
        made = [f"artifacts/{name}" for name in reached]
        more = {
            name
            for name, entry in stages.items()
            if varied & {text.partition(".")[0] for text in entry.get("params", []) if "micro_batch" not in text}
            or any(dep.startswith(tuple(made)) for dep in entry["deps"])
        }
        if more <= reached:
            break
        reached |= more
    assert reached >= {"reward_model", "dpo", "grpo", "evaluate"}
    assert not reached & {"base", "prepare", "rules", "sft", "judge_model"}
