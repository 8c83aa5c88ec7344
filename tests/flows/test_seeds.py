"""A run over several seeds, on a real git and DVC project with a real Prefect server."""

import pytest

from flows.errors import UserError

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def reported(monkeypatch):
    """The folders that the comparison over seeds was made of: their names, and one file of each."""
    from tasks.seeds.report import SeedsReport

    found = []

    def write(roots, folder, name):
        found.append([(root.name, (root / "evaluations/dpo/weights").read_text()) for root in roots])
        folder.mkdir(exist_ok=True)
        page = folder / f"{name}.html"
        page.write_text("page")
        return SeedsReport(None, (), "said", {}), page

    monkeypatch.setattr("flows.seeds.write_seeds_report", write)
    monkeypatch.setattr(SeedsReport, "metrics", {"better_seeds/dpo": 2.0})
    monkeypatch.setattr("tasks.tracking.recorder._spawn_delivery", lambda folder: None)
    return found


def planned(toy, overrides=(), seeds=3, name=None):
    from flows.cli import _try
    from flows.series import plan

    return plan(toy.root, _try(overrides), overrides, seeds, name)


def run(series):
    from flows.seeds import align_over_seeds

    return align_over_seeds(series)


def test_stages_with_a_seed_run_once_a_seed_and_all_others_once(toy, reported):
    before = toy.files()
    result = run(planned(toy, name="three"))
    # the first seed is that of params.yaml, which has run; the toy's other stages read no seed
    assert toy.events("began") == ["dpo", "answer@dpo", "evaluate@dpo", "compare"] * 2
    names = [f"three-seed-{i}" for i in (1, 2, 3)]
    assert set(names) <= set(toy.experiments())
    assert [each.experiment for each in result.runs] == names
    ((first, second, third),) = reported
    assert [name for name, _ in (first, second, third)] == names
    assert "'seed': 1," in first[1]
    assert "'seed': 1001," in second[1]
    assert "'seed': 2001," in third[1]
    assert toy.files() == before | {"seeds/three.html": b"page"}
    assert toy.stale() == ""
    assert list((toy.root / ".alignflow/runs").iterdir()) == []


def test_the_same_command_continues_and_another_one_cannot_take_its_names(toy, reported):
    toy.order("fail dpo", "4")  # twice with each of two tries
    with pytest.raises(UserError, match="dpo was told to fail"):
        run(planned(toy, name="three"))
    assert "three-seed-1" in toy.experiments()
    assert "three-seed-2" not in toy.experiments()
    (toy.orders / "fail dpo").unlink()
    toy.forget()
    run(planned(toy, name="three"))
    assert toy.events("began") == ["dpo", "answer@dpo", "evaluate@dpo", "compare"] * 2
    toy.forget()
    run(planned(toy, name="three"))
    assert toy.events("began") == []
    assert planned(toy, name="three", seeds=5).experiments[:3] == tuple(f"three-seed-{i}" for i in (1, 2, 3))
    with pytest.raises(UserError, match="experiment three-seed-1 exists"):
        planned(toy, ("dpo.beta=0.2",), name="three")
    assert planned(toy).name != planned(toy, ("dpo.beta=0.2",)).name


def test_the_runs_of_the_seeds_are_below_one_run_in_tracking(toy, reported):
    from tasks.paths import home
    from tasks.tracking.outbox import children, history, journal, last_start

    series = planned(toy, name="two", seeds=2)
    run(series)
    record = home() / "outbox" / f"seeds-{series.key}"
    assert last_start(journal(record))["name"] == "two"
    assert [last_start(journal(child))["name"] for child in children(record)] != []
    assert {last_start(journal(child))["name"] for child in children(record)} == {"two-seed-1", "two-seed-2"}
    assert history(record)[-1]["metrics"] == {"better_seeds/dpo": 2.0}
