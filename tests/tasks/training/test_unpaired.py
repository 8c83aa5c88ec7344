"""One KTO training on the tiny model: its rows, its reference point, micro-batches and a resumed run."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.algorithms.kto import Labelled
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.types import Example, Sequences
from tasks.data.prepared import LacksRows
from tasks.params.read import load
from tasks.params.sections import Kto
from tasks.paths import home
from tasks.running.checkpoints import Checkpoints
from tasks.running.stage import Interrupted, Stage
from tasks.tracking.recorder import Silent
from tasks.training.reference_logps import NotAtReference, summed_logps
from tasks.training.unpaired import read_labelled, train_kto
from tests.close import EXACT, close
from tests.tasks.small_project import weights
from tests.tiny import disturb, open_base

FILE = Path(__file__).resolve().parents[3] / "params.yaml"
CHECKPOINTS = Checkpoints("kto", {}, {})
SECTION = Kto(
    beta=0.3,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    steps=4,
    batch_size=4,
    learning_rate=1e-2,
    warmup_fraction=0.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    micro_batch_tokens=3072,
    seed=1,
    snapshots=0,
)


def data(up: Sequence[bool]) -> list[Labelled]:
    ids = torch.randint(1, 90, (len(up), 2, 5), generator=torch.Generator().manual_seed(3)).tolist()
    return [Labelled(tuple(p[: 2 + i % 4]), tuple(r[: 5 - i % 3]), up[i]) for i, (p, r) in enumerate(ids)]


ROWS = data([True, False, False, True, True, False])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    home.cache_clear()
    return tmp_path


class Trained:
    """A training and what it left."""

    def __init__(self, tiny: Path, rows: list[Labelled], section: Kto = SECTION, stop_after: int = 0) -> None:
        models = open_base(tiny)
        models.add("reference")
        models.add("policy", trained=True)
        stage = Stage("kto", load(FILE), Silent(), CHECKPOINTS, CHECKPOINTS.load()[0])
        original = stage.log

        def log(step: int, metrics: Mapping[str, float]) -> None:
            original(step, metrics)
            if step == stop_after:
                stage.stop()

        stage.log = log  # type: ignore[method-assign]
        self.metrics = train_kto(stage, models, rows, section, snapshots=section.snapshots)
        self.curve, self.models = stage.history, models
        self.weights = weights("artifacts/kto")


def test_every_judged_response_is_a_row(place: Path, tiny: Path):
    tokenizer = open_base(tiny).base.tokenizer
    message = [{"role": "user", "content": "a"}]
    rows = [
        {"messages": message, "chosen": chosen, "rejected": rejected}
        for chosen, rejected in (("b", "c"), ("d", None), (None, None), (None, "e"))
    ]
    path = place / "data/prepared/train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    path.with_name("unpaired.jsonl").touch()
    assert len(read_labelled(tokenizer)) == 3
    path.with_name("unpaired.jsonl").write_text(json.dumps(rows[3]) + "\n")
    found = read_labelled(tokenizer)
    assert [(tokenizer.decode(row.response)[0], row.desirable) for row in found] == [
        ("b", True),
        ("c", False),
        ("d", True),
        ("e", False),
    ]
    assert len({row.prompt for row in found}) == 1
    path.write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(LacksRows, match=r"train\.jsonl has 1 judged responses and kto needs at least two"):
        read_labelled(tokenizer)


def test_it_starts_at_half_the_weight_and_learns_both_kinds(place: Path, tiny: Path):
    trained = Trained(tiny, ROWS, SECTION.model_copy(update={"steps": 12}))
    first, *_, last = trained.curve
    close(first["loss"], 0.5, 1e-4)
    close(first["kl/reference_point"], 0.0, 1e-4)
    assert last["loss"] < 0.4
    assert last["rewards/chosen"] > 0 > last["rewards/rejected"]
    own = [Example(row.prompt, row.response) for row in ROWS]
    mine, other = (summed_logps(trained.models, role, own, Budget(64, pytest.fail)) for role in ("policy", "reference"))
    assert (mine > other).tolist() == [row.desirable for row in ROWS]


def test_the_reference_point_is_that_of_the_policy_before_the_step(place: Path, tiny: Path):
    """Of two rows, which can be mismatched in one way alone; the policy after the first step is kept.

    Their responses have the same letters, so that to learn one is to learn the other.
    """
    rows = [Labelled((1, 2), (7, 8, 9, 7, 8, 9), True), Labelled((3,), (9, 7, 8, 9, 7), True)]
    trained = Trained(tiny, rows, SECTION.model_copy(update={"steps": 2, "batch_size": 2, "snapshots": 1}))
    models = trained.models
    models.add("kept", start=Path("artifacts/kto/snapshots/step-1"))
    pairs = [Example(rows[0].prompt, rows[1].response), Example(rows[1].prompt, rows[0].response)]
    mine, other = (summed_logps(models, role, pairs, Budget(64, pytest.fail)) for role in ("kept", "reference"))
    assert (mine - other).mean() > 0.01
    close(trained.curve[1]["kl/reference_point"], (mine - other).mean())


@pytest.mark.parametrize("tokens", [16, 24])
def test_micro_batches_change_no_metric(place: Path, tiny: Path, tokens: int):
    """Adam divides by the gradient's size, so weights whose gradient is nearly 0 may differ by its rounding."""
    whole = Trained(tiny, ROWS).curve
    parts = Trained(tiny, ROWS, SECTION.model_copy(update={"micro_batch_tokens": tokens})).curve
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"tokens_per_second"}:
            close(other[key], one[key], 1e-3)


def test_memory_that_runs_out_takes_the_reference_point_once(place: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine on which no pass may hold more than one row."""
    whole, original, announced = Trained(tiny, ROWS), SharedBase.hidden, list[str]()

    def small(self: SharedBase, role: str, batch: Sequences) -> torch.Tensor:
        if len(batch.input_ids) > 1:
            raise torch.OutOfMemoryError
        return original(self, role, batch)

    monkeypatch.setattr(SharedBase, "hidden", small)
    monkeypatch.setattr(Stage, "announce", lambda self, text: announced.append(text))
    calls = counted(monkeypatch)
    found = Trained(tiny, ROWS)
    assert any("memory ran out" in line for line in announced)
    assert calls == ["policy", "reference", *["policy"] * 4]  # the check of the start, then one a step
    for one, other in zip(whole.curve, found.curve, strict=True):
        close(other["kl/reference_point"], one["kl/reference_point"], 1e-3)
        close(other["loss"], one["loss"], 1e-3)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the roles whose log-probs are taken from now on; those of the reference are kept from before."""
    calls = list[str]()
    original: Callable[..., Any] = summed_logps

    def counting(models: SharedBase, role: str, *more: Any) -> torch.Tensor:
        calls.append(role)
        found: torch.Tensor = original(models, role, *more)
        return found

    for module in ("unpaired", "reference_logps"):
        monkeypatch.setattr(f"tasks.training.{module}.summed_logps", counting)
    return calls


def test_a_resumed_run_gives_the_weights_and_the_curve_of_a_whole_one(place: Path, tiny: Path):
    whole = Trained(tiny, ROWS)
    with pytest.raises(Interrupted):
        Trained(tiny, ROWS, stop_after=2)
    again = Trained(tiny, ROWS)
    assert [row["step"] for row in again.curve] == [1, 2, 3, 4]
    for name, tensor in again.weights.items():
        close(tensor, whole.weights[name], EXACT)
    assert again.curve[-1]["kl/reference_point"] == whole.curve[-1]["kl/reference_point"]


def test_a_policy_that_starts_elsewhere_is_noticed(place: Path, tiny: Path):
    models = open_base(tiny)
    for role in ("reference", "policy"):
        models.add(role, trained=role == "policy")
    disturb(models, "policy")
    stage = Stage("kto", load(FILE), Silent(), CHECKPOINTS)
    with pytest.raises(NotAtReference):
        train_kto(stage, models, ROWS, SECTION, snapshots=0)
