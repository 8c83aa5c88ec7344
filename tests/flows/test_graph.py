"""The pipeline as DVC sees it, and what ``--only`` makes of it."""

import pytest

from flows import graph
from flows.errors import UserError
from tests.flows.project import STAGES


def test_stages_come_from_dvc_with_what_they_need_before_them(cloned):
    stages = graph.read(cloned.root)
    assert sorted(stages) == STAGES
    seen = set()
    for name, stage in stages.items():
        assert set(stage.needs) <= seen
        seen.add(name)
    assert set(stages["evaluate@iterative_dpo"].needs) == {"answer@iterative_dpo", "judge_model"}
    for name in ("answer@iterative_dpo", "evaluate@iterative_dpo"):  # one directly, the other through it
        assert stages[name].evaluates == ("iterative_dpo@round-2",)
    assert stages["compare"].evaluates == ()
    assert stages["dpo"].device
    assert not stages["compare"].device
    assert stages["dpo"].metrics == ("metrics/dpo.json",)
    assert all(stage.stale for stage in stages.values())


def test_only_takes_a_branch_with_its_needs_and_its_evaluation_but_trains_nothing_for_a_comparison(cloned):
    chosen, left_out = graph.select(graph.read(cloned.root), ["dpo"])
    assert chosen == ["sft", "judge_model", "dpo", "answer@dpo", "evaluate@dpo"]  # DPO itself needs no judge model
    assert left_out == ["compare"]


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("sft", ["sft"]),  # an evaluation builds on it, but evaluates another stage
        ("judge_model", ["sft", "judge_model"]),
        ("iterative_dpo", ["sft", "judge_model", "iterative_dpo@round-1", "iterative_dpo@round-2"]),
    ],
)
def test_only_brings_what_an_evaluation_needs_for_the_evaluated_stage_alone(cloned, only, expected):
    chosen, _ = graph.select(graph.read(cloned.root), [only])
    reports = ["answer@iterative_dpo", "evaluate@iterative_dpo"] if only == "iterative_dpo" else []
    assert chosen == [*expected, *reports]


def test_an_evaluation_that_needs_another_policy_does_not_train_it():
    stages = nodes(
        sft=(),
        dpo=("sft",),
        judge=("sft",),
        **{"evaluate@sft": ("sft", "judge"), "evaluate@dpo": ("dpo", "judge"), "evaluate@base": ("base", "sft")},
        base=(),
    )
    assert graph.select(stages, ["base"]) == (["base"], ["evaluate@base"])
    assert graph.select(stages, ["sft"]) == (["sft", "judge", "evaluate@sft"], ["evaluate@dpo", "evaluate@base"])


def nodes(**needs):
    """Return a graph of stages that are out of date; ``evaluate@NAME`` evaluates NAME."""
    return {
        name: graph.Node(
            name=name,
            target=name,
            needs=above,
            deps=(),
            outs=(),
            metrics=(),
            device=False,
            report="@" in name,
            evaluates=(name.partition("@")[2],) if "@" in name else (),
            stale=True,
        )
        for name, above in needs.items()
    }


def test_the_only_item_of_a_group_goes_by_the_name_of_the_group_and_dvc_by_its_own(cloned):
    stages = graph.read(cloned.root)
    dpo = stages["dpo"]
    assert (dpo.name, dpo.target, dpo.group, dpo.item) == ("dpo", "dpo@policy", "dpo", "policy")
    assert dpo.address == "dvc.yaml:dpo@policy"
    assert stages["answer@dpo"].needs == ("dpo",)
    assert graph.find(stages, "dpo") is graph.find(stages, "dpo@policy") is dpo
    assert graph.select(stages, ["dpo@policy"]) == graph.select(stages, ["dpo"])


def test_a_group_of_several_stages_is_no_stage_and_is_answered_with_its_stages(cloned):
    with pytest.raises(UserError, match="iterative_dpo has several stages; name one of iterative_dpo@round-1, "):
        graph.find(graph.read(cloned.root), "iterative_dpo")


def test_only_with_every_method_includes_the_comparison(cloned):
    chosen, left_out = graph.select(graph.read(cloned.root), ["dpo", "iterative_dpo"])
    assert sorted(chosen) == STAGES
    assert left_out == []


def test_only_compares_with_policies_that_are_up_to_date(toy, monkeypatch):
    monkeypatch.chdir("/")  # whatever folder it is asked from
    chosen, left_out = graph.select(graph.read(toy.root), ["dpo"])
    assert chosen[-3:] == ["answer@dpo", "evaluate@dpo", "compare"]
    assert "iterative_dpo@round-1" not in chosen
    assert left_out == []


def test_only_does_not_compare_with_what_has_become_outdated(toy):
    params = toy.root / "params.yaml"
    params.write_text(params.read_text().replace("iterative_dpo:\n", "iterative_dpo:\n  nll: 1\n"))
    toy.do("dvc", "status")
    (toy.root / "artifacts/iterative_dpo/round-1/weights").write_text("edited")
    stages = graph.read(toy.root)
    assert {n for n, s in stages.items() if s.stale} == {
        "iterative_dpo@round-1",
        "iterative_dpo@round-2",  # DVC alone would not say so yet
        "answer@iterative_dpo",
        "evaluate@iterative_dpo",
        "compare",
    }
    assert graph.select(stages, ["dpo"])[1] == ["compare"]


def test_only_one_round_takes_the_rounds_before_it_and_none_after(cloned):
    chosen, _ = graph.select(graph.read(cloned.root), ["iterative_dpo@round-1"])
    assert chosen == ["sft", "iterative_dpo@round-1"]


def test_an_unknown_name_is_answered_with_the_nearest(cloned):
    stages = graph.read(cloned.root)
    with pytest.raises(UserError, match=r"no stage iterative_dop; did you mean iterative_dpo\?"):
        graph.select(stages, ["iterative_dop"])
    with pytest.raises(UserError, match=r"did you mean evaluate@dpo\?"):
        graph.find(stages, "evaluate@dop")


def test_a_missing_input_is_named_with_the_command_that_makes_it(cloned):
    stages = graph.read(cloned.root)
    said = graph.missing_inputs(stages, stages["dpo"], cloned.root)
    assert said == "dpo needs artifacts/sft, which stage sft makes: `alignflow stage sft`"
    assert graph.missing_inputs(stages, stages["sft"], cloned.root) == ""
