"""Private checkouts of flow runs, in real git and DVC repositories."""

import os
import shutil
import sys

import pytest

from flows import workspace
from flows.errors import UserError
from flows.git import tree_of
from tasks.params.read import ParamsError
from tests.flows.project import Toy


def test_a_workspace_is_an_exact_copy_with_the_overrides_applied(toy):
    (toy.root / "new.txt").write_text("untracked")
    (toy.root / "toy.py").write_text("# edited\n")
    place = workspace.create("a", toy.root, ["dpo.beta=0.25"], "one")
    assert (place.path / "new.txt").read_text() == "untracked"
    assert (place.path / "toy.py").read_text() == "# edited\n"
    assert "beta: 0.25" in (place.path / "params.yaml").read_text()
    assert "beta: 0.25" not in (toy.root / "params.yaml").read_text()
    assert (place.path / "artifacts/dpo/weights").exists()  # known outputs come from the cache


def test_a_retry_of_the_same_run_continues_in_the_same_workspace(toy):
    first = workspace.create("a", toy.root, ["dpo.beta=0.25"], "one")
    (first.path / "left").touch()
    assert workspace.create("a", toy.root, ["dpo.beta=0.25"], "one") == first
    assert (first.path / "left").exists()


def test_a_workspace_that_was_only_half_made_is_made_again(toy):
    place = workspace.create("a", toy.root, [], "one")
    (place.path / "left").touch()
    (toy.root / ".alignflow/runs/a.json").unlink()
    again = workspace.create("a", toy.root, [], "one")
    assert not (again.path / "left").exists()


def test_a_wrong_override_is_an_error_of_the_user(toy):
    with pytest.raises(ParamsError, match=r"did you mean dpo\.beta"):
        workspace.create("a", toy.root, ["dpo.beat=1"], "one")


def test_the_snapshot_sees_every_file_and_leaves_the_index_alone(toy):
    (toy.root / "staged").write_text("1")
    toy.do("git", "add", "staged")
    (toy.root / "staged").write_text("2")
    status, before = toy.status(), tree_of(toy.root)
    assert toy.do("git", "show", f"{before}:staged") == "2"
    assert toy.status() == status
    (toy.root / "untracked").touch()
    assert tree_of(toy.root) != before


def test_converted_models_are_shared_and_what_a_run_adds_stays(toy):
    place = workspace.create("a", toy.root, [], "one")
    (place.path / "models" / "converted").write_text("weights")
    workspace.discard(toy.root, "a")
    assert (toy.root / "models" / "converted").read_text() == "weights"


def test_cache_and_remotes_mean_the_same_places_in_a_workspace(toy):
    toy.do("dvc", "remote", "add", "--default", "store", "../store")
    toy.do("dvc", "remote", "add", "--local", "private", "../private")
    place = workspace.create("a", toy.root, [], "one")
    from dvc.repo import Repo

    with Repo(place.folder) as here, Repo(str(toy.root)) as there:
        assert here.cache.local_cache_dir == there.cache.local_cache_dir
        for name in ("store", "private"):
            assert os.path.abspath(here.config["remote"][name]["url"]) == str(toy.root.parent / name)


def test_a_name_that_is_taken_or_unfit_is_refused_before_anything_is_made(toy):
    (taken,) = toy.experiments()
    with pytest.raises(UserError, match=f"{taken} exists"):
        workspace.create("a", toy.root, [], taken)
    for unfit in ("a b", "a/b", "..", ""):
        with pytest.raises(UserError, match="cannot name"):
            workspace.check_name(toy.root, unfit)


def test_prune_removes_what_failed_runs_left_and_nothing_in_use(toy):
    for run in ("failed", "working"):
        workspace.create(run, toy.root, [], run)
    with workspace.in_use("working"):
        assert dict(workspace.prune(toy.root, dry_run=True)) == {"failed": True, "working": False}
        assert dict(workspace.prune(toy.root, dry_run=False)) == {"failed": True, "working": False}
    assert [f.name for f in (toy.root / ".alignflow/runs").iterdir() if f.is_dir()] == ["working"]
    assert toy.do("git", "worktree", "list").count("\n") == 2


def test_outputs_that_dvc_does_not_know_are_not_overwritten(toy):
    place = workspace.create("a", toy.root, [], "one")
    lock = place.path / "dvc.lock"
    lock.write_text(lock.read_text() + "\n")
    (toy.root / "artifacts/dpo/weights").write_text("precious, made by hand")
    before = toy.files()
    assert not workspace.bring_back(place)
    assert toy.files() == before


@pytest.mark.parametrize("listed", [".gitignore", ".git/info/exclude"])
def test_data_and_models_that_git_ignores_come_along(toy, listed):
    (toy.root / "own").mkdir()
    (toy.root / "own/pairs.jsonl").write_text("{}")
    (toy.root / "own/model").mkdir()
    with (toy.root / listed).open("a") as file:
        file.write("/own/\n")
    before = toy.files()
    place = workspace.create("a", toy.root, ["data.path=own/pairs.jsonl", "base.model=own/model"], "one")
    assert (place.path / "own/pairs.jsonl").read_text() == "{}"
    assert not (place.path / "own/pairs.jsonl").is_symlink()  # what a run reads does not change under it
    assert (place.path / "own/model").resolve() == toy.root / "own/model"
    assert not workspace.changed(workspace.create("b", toy.root, [], "two"))
    assert toy.files() == before


def test_data_in_a_clone_of_another_repository_come_along(toy):
    toy.do("git", "init", "--quiet", "clone")
    (toy.root / "clone/pairs.jsonl").write_text("{}")
    toy.do("git", "-C", "clone", "add", ".")
    toy.do("git", "-C", "clone", "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qm", "data")
    place = workspace.create("a", toy.root, ["data.path=clone"], "one")
    assert (place.path / "clone/pairs.jsonl").read_text() == "{}"
    assert not (place.path / "clone/.git").exists()


def test_data_outside_the_checkout_by_a_relative_path_are_refused_before_anything_runs(toy):
    (toy.root.parent / "pairs.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"data.path: \.\./pairs.jsonl lies outside the checkout.*give its full path"):
        workspace.create("a", toy.root, ["data.path=../pairs.jsonl"], "one")
    full = toy.root.parent / "pairs.jsonl"
    assert workspace.create("b", toy.root, [f"data.path={full}"], "one").path.exists()


def test_where_git_knows_no_name_an_experiment_is_saved_all_the_same(toy, tmp_path, monkeypatch):
    """The home folder is empty as well: DVC reads the settings there, whatever GIT_CONFIG_GLOBAL says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    place = workspace.create("a", toy.root, ["dpo.beta=0.25"], "nameless")
    workspace.save(place, [])
    assert "nameless" in toy.experiments()
    said = toy.do("git", "for-each-ref", "--format=%(authorname) %(committeremail)", "refs/exps/*/*/nameless")
    assert said == "alignflow <alignflow@localhost>\n"


def test_a_name_that_git_knows_is_kept(toy):
    toy.do("git", "config", "user.name", "Mira")
    toy.do("git", "config", "user.email", "mira@localhost")
    workspace.save(workspace.create("a", toy.root, ["dpo.beta=0.25"], "named"), [])
    assert toy.do("git", "for-each-ref", "--format=%(authorname)", "refs/exps/*/*/named") == "Mira\n"


def test_a_checkout_below_a_folder_with_an_umlaut_runs(toy, tmp_path, monkeypatch):
    """With the plain C locale, as in a container."""
    root = tmp_path / "Jörg/project"
    shutil.copytree(toy.root, root, symlinks=True)
    monkeypatch.setenv("LC_ALL", "C")
    there = Toy(root)
    there.orders.mkdir()
    assert there.alignflow("run", "--only", "sft", "sft.seed=5").returncode == 0
    assert there.stale() == ""


def test_a_submodule_keeps_its_home_inside_itself(toy, tmp_path):
    above = Toy(tmp_path / "above")
    above.root.mkdir()
    above.do("git", "init", "--quiet")
    above.do("git", "-c", "protocol.file.allow=always", "submodule", "add", "--quiet", str(toy.root), "part")
    found = above.attempt(
        sys.executable, "-c", "from tasks.paths import home; print(home())", at=above.root / "part"
    ).stdout.strip()
    assert found == str(above.root / "part/.alignflow")


def test_a_checkout_of_another_user_is_named_in_git_s_own_words(toy):
    done = toy.alignflow("run", GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    assert done.returncode != 0
    assert "safe.directory" in done.stderr
    assert "git init" not in done.stderr


def test_a_machine_without_git_says_so(toy, tmp_path):
    done = toy.alignflow("run", PATH=str(tmp_path))
    assert "git is not installed" in done.stderr
    assert "Traceback" not in done.stderr
