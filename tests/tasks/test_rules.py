"""Stage ``rules``: a stage depends on the rules that it names, as real DVC decides it."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from alignflow.rewards import RuleError, rule_file
from tasks.params.edit import override
from tasks.paths import home
from tasks.running.rule_sources import sources
from tests.pipeline import ROOT, paths, stages
from tests.tasks.small_project import QUIET

DOWNSTREAM = ("dpo", "iterative_dpo", "ppo", "grpo", "answer", "evaluate")
ONLINE = {"iterative_dpo", "ppo", "grpo"}
MINE = "def mine(prompt, response, answer):\n    return 1.0\n"


def pipeline() -> dict[str, object]:
    """The stage as it is, and stages that do nothing with the code and rules that the real ones depend on."""
    real, found = stages(), dict[str, object]()
    for name in DOWNSTREAM:
        deps = [dep for dep in paths(real[name]["deps"]) if dep.startswith(("alignflow/", "artifacts/rules"))]
        found[name] = {"cmd": "true", "deps": deps}
    return {"stages": {"rules": real["rules"], **found}}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a shipped rule and one of the user's as rewards, whose stages have all run."""
    folder = tmp_path_factory.mktemp("rules") / "project"
    for name in ("alignflow", "tasks", "rewards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "rewards/mine.py").write_text(MINE)
    (folder / "sitecustomize.py").write_text(QUIET)
    override(folder / "params.yaml", ["rewards.rules={brevity: 1, mine: 1}"])
    YAML().dump(pipeline(), folder / "dvc.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        from dvc.repo import Repo

        Repo.init(no_scm=True).close()
        assert reproduce(patch, folder) == {"rules", *DOWNSTREAM}
    return folder


def reproduce(patch: pytest.MonkeyPatch, folder: Path) -> set[str]:
    """Return the stages that `dvc repro` runs in a project."""
    from dvc.repo import Repo

    patch.chdir(folder)
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("PYTHONPATH", str(folder))
    patch.setenv("ALIGNFLOW_HOME", str(folder / "home"))
    home.cache_clear()
    with Repo() as repo:
        return {stage.name for stage in repo.reproduce()}


@pytest.fixture
def rerun(computed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], set[str]]:
    """Write files of the project anew and return the stages that `dvc repro` then runs."""
    folder = Path(shutil.copytree(computed, tmp_path / "project"))

    def write(files: dict[str, str]) -> set[str]:
        for path, text in files.items():
            (folder / path).write_text(text)
        return reproduce(monkeypatch, folder)

    return write


def edited(path: str) -> str:
    return (ROOT / path).read_text() + "# edited\n"


def test_rules_that_nothing_names_change_nothing_that_follows(rerun: Callable[[dict[str, str]], set[str]]):
    unnamed = "alignflow/rules/right_abstain_wrong.py"
    new = {f"{folder}/new.py": MINE.replace("mine", "new") for folder in ("rewards", "alignflow/rules")}
    assert rerun({unnamed: edited(unnamed), **new}) == {"rules"}


@pytest.mark.parametrize(
    ("path", "text", "stale"),
    [
        ("alignflow/rules/brevity.py", edited("alignflow/rules/brevity.py"), {*ONLINE, "evaluate"}),
        ("rewards/mine.py", MINE.replace("1.0", "2.0"), {*ONLINE, "evaluate"}),
        ("alignflow/rules/concise_answer.py", edited("alignflow/rules/concise_answer.py"), {"evaluate"}),
    ],
    ids=["a reward", "a reward of the user's", "a judge"],
)
def test_an_edited_rule_makes_stale_what_it_rewards_or_judges(
    path: str, text: str, stale: set[str], rerun: Callable[[dict[str, str]], set[str]]
):
    assert rerun({path: text}) == {"rules", *stale}


def test_each_rule_is_written_down_with_its_sources(computed: Path):
    folder = computed / "artifacts/rules"
    rewards, judges = (json.loads((folder / f"{name}.json").read_text()) for name in ("rewards", "judges"))
    assert {name: list(files) for name, files in rewards.items()} == {
        "brevity": ["alignflow/rules/brevity.py"],
        "mine": ["rewards/mine.py"],
    }
    assert list(judges) == ["concise_answer"]
    assert json.loads((computed / "metrics/rules.json").read_text()) == {"rules/rewards": 2.0, "rules/judges": 1.0}


def test_what_a_rule_imports_belongs_to_its_sources(tmp_path: Path):
    found = sources(rule_file("right_abstain_wrong", tmp_path))
    assert [file.relative_to(ROOT / "alignflow/rules").as_posix() for file in found] == [
        "right_abstain_wrong.py",
        "shared/outcome.py",
    ]
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import re\nimport alignflow.rules.brevity\nfrom alignflow.rules import right_abstain_wrong\n" + MINE
    )
    assert {file.name for file in sources(mine)} == {"mine.py", "brevity.py", "right_abstain_wrong.py", "outcome.py"}


@pytest.mark.parametrize(
    "line",
    [
        "from alignflow.ops import masked_sum",
        "import tasks.paths",
        "from rewards.other import other",
        "from . import other",
    ],
)
def test_a_rule_that_imports_what_is_not_watched_is_refused(line: str, tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"import re\n\n{line}\n\n{MINE}")
    with pytest.raises(RuleError, match=r"mine\.py:3: a rule imports .*not watched for changes"):
        sources(mine)
