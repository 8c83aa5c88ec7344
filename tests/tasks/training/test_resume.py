"""RLOO and KTO as stages: a run that is stopped and started again leaves the adapter of an uninterrupted one."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tasks.params.edit import override
from tasks.running.stage import Stage
from tests.tasks.small_project import set_up, stage, working_in

STEPS = 3


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with what these stages start from."""
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, tiny)
    override(folder / "params.yaml", ["sft.steps=1", "reward_model.steps=1", f"rloo.steps={STEPS}"])
    with working_in(folder):
        for name in ("base", "prepare", "sft", "reward_model"):
            stage(name)
        yield folder


def files(name: str) -> dict[str, bytes]:
    """Return the adapters that a stage left, its snapshots' too."""
    folder = Path("artifacts") / name
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("name", ["rloo", "kto"])
def test_a_stopped_stage_resumes_to_the_same_bytes(place: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    assert stage(name)["steps"] == STEPS
    whole, original, logged = files(name), Stage.log, list[int]()
    assert set(whole) == {
        f"{folder}adapter_model.safetensors" for folder in ("", "snapshots/step-1/", "snapshots/step-2/")
    }
    assert len(set(whole.values())) == STEPS

    def stopping(self: Stage, step: int, metrics: Mapping[str, float]) -> None:
        original(self, step, metrics)
        logged.append(step)
        if step == 2:
            self.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "log", stopping)
        with pytest.raises(SystemExit) as stopped:
            stage(name)
        assert stopped.value.code == 143
        assert not Path(f"artifacts/{name}").exists()
        assert len(list((place / "home/checkpoints").glob(f"{name}-*/state.pt"))) == 1
        stage(name)
    assert logged == [1, 2, 3]
    assert files(name) == whole
    assert len(Path(f"plots/{name}.csv").read_text().splitlines()) == 1 + STEPS
    assert not list((place / "home/checkpoints").glob(f"{name}-*/state.pt"))
