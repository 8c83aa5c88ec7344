"""Every stage in the order of the pipeline, on the tiny model and twenty pairs, run as its program runs it."""

import csv
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from alignflow import optim
from alignflow.data.collate import collate
from alignflow.data.encoding import encode_prompt, encode_response
from alignflow.models.roles import SharedBase
from alignflow.optim import MasterAdamW
from alignflow.types import Example, Sequences
from tasks.params.edit import override
from tasks.params.read import load
from tasks.paths import SFT, home
from tasks.ppo import add_critic
from tasks.running.stage import Stage
from tasks.training.models import open_models
from tasks.training.rollouts import open_roles
from tests import reference
from tests.close import EXACT, LOOSE, close
from tests.tasks.small_project import metrics, set_up, stage, weights, working_in
from tests.tiny import disturb, some_rows

RUN = ("base", "prepare", "sft", "reward_model", "judge_model", "dpo", "ppo", "grpo")
RUN += ("iterative_dpo round-1", "iterative_dpo round-2")
EVALUATED = ("base", "reference", "dpo", "iterative_dpo")


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project in which every stage has run. To be copied, not changed."""
    folder = tmp_path_factory.mktemp("trained")
    set_up(folder, tiny)
    with working_in(folder):
        for words in (*RUN, *(f"{name} {policy}" for policy in EVALUATED for name in ("answer", "evaluate"))):
            stage(*words.split())
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """Work in a copy of the project."""
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    with working_in(folder):
        yield folder


@pytest.fixture
def settings(place: Path) -> Callable[..., None]:
    """Set keys of the copy."""
    return lambda *keys: override(Path("params.yaml"), keys)


def moved(folder: str, start: str) -> bool:
    there = weights(start)
    return any(not tensor.equal(there[name]) for name, tensor in weights(folder).items() if name in there)


def curve(name: str) -> list[dict[str, float]]:
    with Path(f"plots/{name}.csv").open() as lines:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]


def test_the_base_is_identified_and_the_data_prepared(place: Path):
    assert metrics("base")["weight_gib"] == Path("base/model.safetensors").stat().st_size / 2**30
    found = metrics("prepare")
    assert found["train_pairs"] + found["judge_pairs"] + found["validation_pairs"] == found["rows"] == 20
    assert found["dropped"] == 0


def test_the_chat_template_that_is_asked_for_is_written_down_with_the_base(
    settings: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    Path("own.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    settings("base.chat_template=own.jinja")
    stage("base")
    found = json.loads(Path("artifacts/base/identity.json").read_text())
    assert found["chat_template"] == "own.jinja"
    assert found["chat_template_text"] == Path("own.jinja").read_text()
    Path("own.jinja").write_text("{% for m in messages %}{{ m['content'] }}")
    with pytest.raises(SystemExit) as failed:
        stage("base")
    assert failed.value.code == 1
    assert "set base.chat_template" in capsys.readouterr().err


def test_sft_stops_on_request_and_the_resumed_run_gives_the_same_adapter(place: Path, monkeypatch: pytest.MonkeyPatch):
    whole, expected = metrics("sft"), weights("artifacts/sft")
    original = Stage.log

    def stopping(self: Stage, step: int, metrics: Mapping[str, float]) -> None:
        original(self, step, metrics)
        if step == 2:
            self.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "log", stopping)
        with pytest.raises(SystemExit) as stopped:
            stage("sft")
    assert stopped.value.code == 143
    assert len(list((place / "home/checkpoints").glob("sft-*/*/*.pt"))) == 1
    again = stage("sft")
    for name, tensor in weights("artifacts/sft").items():
        close(tensor, expected[name], EXACT)
    assert (again["steps"], again["loss"]) == (3, whole["loss"])
    assert len(Path("plots/sft.csv").read_text().splitlines()) == 4
    assert not list((place / "home/checkpoints").glob("sft-*/*/*.pt"))


def test_the_reward_model_brings_its_scale(place: Path):
    """Normalised by it, the scores of the reference's four responses have mean 0 and deviation 1."""
    assert json.loads(Path("artifacts/reward_model/normalization.json").read_text())["trained"]
    (path,) = Path("home/outbox").glob("reward_model-*/payload/*/reference-responses.json")
    table = json.loads(path.read_text())
    rewards = [row[table["columns"].index("reward")] for row in table["data"]]
    assert len(rewards) == 4
    close([fmean(rewards), stdev(rewards)], [0, 1], 1e-3)  # three decimals are shown
    assert moved("artifacts/reward_model", "artifacts/sft")
    assert weights("artifacts/reward_model")["base_model.model.score.weight"].shape == (1, 64)


def test_a_reward_model_of_few_pairs_trains_its_head_alone(settings: Callable[..., None]):
    """Without steps of both, the adapter stays the start and the head moves from its random start."""
    settings("reward_model.steps=0", "reward_model.head_steps=0")
    stage("reward_model")
    start = weights("artifacts/reward_model")
    settings("reward_model.head_steps=5")
    assert stage("reward_model")["steps"] == 0
    fitted = weights("artifacts/reward_model")
    head = "base_model.model.score.weight"
    assert not fitted[head].equal(start[head])
    assert all(tensor.equal(start[name]) for name, tensor in fitted.items() if name != head)


REPORT = {"accuracy", "low", "high", "pairs", "margins", "by_margin", "by_length_difference", "calibration"}
REPORT |= {"calibration_error", "length_correlation", "shorter_wins", "margin"}


def test_the_judge_model_learns_from_prompts_of_its_own_and_both_are_reported_on(place: Path):
    first, second = (json.loads(Path(f"artifacts/{m}_model/report.json").read_text()) for m in ("reward", "judge"))
    assert set(first) == set(second) == REPORT
    held_out = Path("data/prepared/validation.jsonl").read_text().splitlines()
    for report in (first, second):
        assert report["pairs"] == len(report["margins"]) == len(held_out)
        assert report["accuracy"] == sum(margin > 0 for margin in report["margins"]) / len(held_out)
        for buckets in (report["by_margin"], report["by_length_difference"], report["calibration"]):
            assert sum(bucket["pairs"] for bucket in buckets) == len(held_out)
    ranks = [json.loads(Path(f"artifacts/{m}_model/adapter_config.json").read_text())["r"] for m in ("reward", "judge")]
    assert ranks == [2, 8]


def test_the_control_goes_on_with_sft_on_chosen_responses_from_where_sft_ended(place: Path):
    """The first loss is that of the SFT adapter on chosen responses of the training side, two of the rows a step."""
    found = stage("sft_more")
    assert found["steps"] == 3
    assert moved("artifacts/sft_more", "artifacts/sft")
    assert sorted(snapshots("sft_more")) == ["step-1", "step-2"]
    models, losses = open_models(load(Path("params.yaml"))), []
    models.add("policy", start=SFT)
    for row in map(json.loads, Path("data/prepared/train.jsonl").read_text().splitlines()):
        prompt = encode_prompt(models.base.tokenizer, row["messages"])
        response = encode_response(models.base.tokenizer, row["chosen"])
        with torch.no_grad():
            logps = models.logprobs("policy", collate([Example(prompt, response)]))[0].sum()
        losses.append((-float(logps), len(response)))
    with Path("plots/sft_more.csv").open() as lines:
        first = float(next(csv.DictReader(lines))["loss"])
    pairs = [(a[0] + b[0]) / (a[1] + b[1]) for a, b in itertools.combinations(losses, 2)]
    assert min(abs(first - value) for value in pairs) < 1e-4


@pytest.mark.parametrize("name", ["dpo", "ppo", "grpo"])
def test_a_method_trains_away_from_sft(place: Path, name: str):
    assert moved(f"artifacts/{name}", "artifacts/sft")
    steps = 3 if name == "dpo" else 2
    assert metrics(name)["steps"] == len(curve(name)) == steps
    if name != "dpo":
        assert abs(curve(name)[0]["kl/reference"]) < 1e-4, "the policy starts from the reference"


def test_a_second_run_of_dpo_takes_the_reference_s_log_probs_from_the_first(settings: Callable[..., None]):
    """Another learning rate, the same numbers; the one pair that both roles start from is always looked at."""
    asked: list[int] = []
    original = SharedBase.logprobs

    def counting(self: SharedBase, role: str, batch: Sequences, *more: Any, **keys: Any) -> Any:
        if role == "reference":
            asked.append(len(batch.input_ids))
        return original(self, role, batch, *more, **keys)

    def rows() -> int:
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SharedBase, "logprobs", counting)
            stage("dpo")
        return sum(asked)

    shutil.rmtree(home() / "reference_logps")
    assert rows() == 2 * (1 + 6)  # three steps of two pairs
    first = weights("artifacts/dpo")
    assert rows() == 2 * 1
    assert all(tensor.equal(first[name]) for name, tensor in weights("artifacts/dpo").items())
    settings("dpo.learning_rate=1e-3")
    assert rows() == 2 * 1
    settings("dpo.beta=0.5", "dpo.loss=ipo")
    assert rows() == 2 * 1
    settings("dpo.seed=2")
    assert rows() == 2 * (1 + 6), "other pairs"


@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_gradient_checkpointing_changes_no_weight(settings: Callable[..., None], name: str):
    expected = weights(f"artifacts/{name}")
    settings("memory.gradient_checkpointing=true")
    stage(name)
    assert all(tensor.equal(expected[key]) for key, tensor in weights(f"artifacts/{name}").items())


def test_how_moments_are_kept_is_a_setting(settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    """The matrices of this model are too small for 8 bits, so bitsandbytes' own class takes AdamW's steps on them."""
    expected, kinds, original = weights("artifacts/dpo"), list[str](), optim._class_of
    monkeypatch.setattr(optim, "_class_of", lambda kind: kinds.append(kind) or original(kind))
    settings("memory.optimizer=adamw_8bit")
    stage("dpo")
    assert kinds == ["adamw_8bit"]
    for name, tensor in weights("artifacts/dpo").items():
        close(tensor, expected[name], LOOSE)


def test_memory_that_runs_out_in_a_stage_is_said_and_changes_nothing_but_rounding(
    settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """A machine on which no pass may hold more than one pair."""
    expected, original, said = weights("artifacts/dpo"), SharedBase.hidden, list[str]()

    def small(self: SharedBase, role: str, batch: Sequences) -> torch.Tensor:
        if len(batch.input_ids) > 2:
            raise torch.OutOfMemoryError
        return original(self, role, batch)

    shutil.rmtree(home() / "reference_logps")
    monkeypatch.setattr(SharedBase, "hidden", small)
    monkeypatch.setattr(Stage, "announce", lambda self, text: said.append(text))
    stage("dpo")
    assert any("memory ran out" in line for line in said)
    for name, tensor in weights("artifacts/dpo").items():
        close(tensor, expected[name], LOOSE)


def snapshots(name: str) -> dict[str, dict[str, torch.Tensor]]:
    return {folder.name: weights(str(folder)) for folder in sorted(Path(f"artifacts/{name}/snapshots").iterdir())}


def test_snapshots_lie_between_start_and_end(place: Path):
    assert list(snapshots("dpo")) == ["step-1", "step-2"]
    assert list(snapshots("grpo")) == ["step-1"]  # two were asked for, and two steps have one place between
    assert moved("artifacts/dpo/snapshots/step-1", "artifacts/sft")
    assert moved("artifacts/dpo/snapshots/step-2", "artifacts/dpo/snapshots/step-1")
    assert moved("artifacts/dpo", "artifacts/dpo/snapshots/step-2")
    files = {path.name for path in Path("artifacts/dpo/snapshots/step-1").iterdir()}
    assert not any(name.startswith("tokenizer") for name in files)


def test_a_resumed_run_has_the_same_snapshots_and_none_changes_the_training(settings: Callable[..., None]):
    """DVC removes the outputs before it starts a stopped stage again; so does this test."""
    whole, expected = weights("artifacts/dpo"), snapshots("dpo")
    original = Stage.log

    def stopping(self: Stage, step: int, metrics: Mapping[str, float]) -> None:
        original(self, step, metrics)
        if step == 2:
            self.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "log", stopping)
        with pytest.raises(SystemExit):
            stage("dpo")
    shutil.rmtree("artifacts/dpo", ignore_errors=True)
    stage("dpo")
    again = snapshots("dpo")
    assert again.keys() == expected.keys()
    for step, tensors in again.items():
        assert all(tensor.equal(expected[step][name]) for name, tensor in tensors.items())
    settings("dpo.snapshots=0")
    stage("dpo")
    assert not Path("artifacts/dpo/snapshots").exists()
    assert all(tensor.equal(whole[name]) for name, tensor in weights("artifacts/dpo").items())


def rounds() -> list[dict[str, Any]]:
    files = sorted(Path("artifacts/iterative_dpo").glob("round-*/pairs.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_rounds_of_iterative_dpo_sample_other_prompts_and_keep_their_lineage(place: Path):
    assert moved("artifacts/iterative_dpo/round-1", "artifacts/sft")
    assert moved("artifacts/iterative_dpo/round-2", "artifacts/iterative_dpo/round-1")
    lineage = rounds()
    assert len({row["prompt_id"] for row in lineage}) == len(lineage) == 6
    for row in lineage:
        assert len(row["scores"]) == len(row["responses"]) == 4
        if row["dropped"] is None:
            answers = set(zip(row["responses"], row["scores"], strict=True))
            assert (row["chosen"], max(score for text, score in answers if text)) in answers  # an empty one never wins
            assert (row["rejected"], min(row["scores"])) in answers
    for name in ("round-1", "round-2"):
        kept = [row for row in lineage if row["round"] == name and row["dropped"] is None]
        assert metrics("iterative_dpo", name)["pairs"] == len(kept) > 0


MIXED = [
    "rewards.reward_model=0.5",
    "rewards.rules.right_abstain_wrong={weight: 1, right: 1, abstain: 0.1, wrong: -1}",
    "rewards.missing_eos_penalty=0",
]
OPTIONS = {
    "ppo": [
        "ppo.kl_target=1",
        "ppo.whiten_rewards=true",
        "ppo.reward_clip=2",
        "ppo.entropy_coef=0.01",
        "ppo.target_kl=1",
    ],
    "grpo": [
        "grpo.batch_size=4",
        "grpo.zero_variance=resample",
        "grpo.mask_truncated=false",
        "grpo.normalization=dr_grpo",
    ],
    "iterative_dpo": ["iterative_dpo.length_penalty=0.01", "iterative_dpo.loss=simpo", "iterative_dpo.nll_coef=1"],
}


@pytest.mark.parametrize("name", ["ppo", "grpo", "iterative_dpo"])
def test_mixed_rewards_that_do_not_apply_to_every_row_serve_every_method(settings: Callable[..., None], name: str):
    """A third of the prompts has no answer: their answers are judged by the reward model alone."""
    settings(*MIXED, *OPTIONS[name])
    if name == "iterative_dpo":
        stage(name, "round-1")
        sources = [source for row in rounds()[:3] for source in row["sources"]]
        assert {tuple(source) for source in sources} == {("reward_model", "right_abstain_wrong")}
        return
    stage(name)
    assert moved(f"artifacts/{name}", "artifacts/sft")
    shares = [(r["score/mean"] - 0.5 * r["score/reward_model"]) / r["score/right_abstain_wrong"] for r in curve(name)]
    close(shares, [round(4 * share) / 4 for share in shares])  # of four prompts, those with an answer
    assert 0 < min(shares) < 1


def test_shares_of_wins_take_the_place_of_rewards(settings: Callable[..., None]):
    """Of four responses to each prompt; the shares of a group are one half on average, and metrics keep the score."""
    settings("policies=grpo", "grpo.steps=1")
    stage("grpo")
    (plain,) = curve("grpo")
    settings("policies=grpo", "grpo.steps=1", "rewards.within_group=wins")
    stage("grpo")
    (won,) = curve("grpo")
    assert won["score/mean"] == plain["score/mean"] != 0.5
    close(won["reward/mean"], 0.5)
    assert won["loss"] != plain["loss"]


def test_a_margin_of_pairs_is_a_share_of_wins_where_these_are_compared(settings: Callable[..., None]):
    """At temperature 0 a best answer that beats all others and a worst that loses to all differ by 1."""
    settings(
        "policies=iterative_dpo",
        "rewards.within_group=wins",
        "rewards.win_temperature=0",
        "iterative_dpo.min_margin=1",
        "iterative_dpo.samples_per_prompt=3",
        "iterative_dpo.prompts_per_shard=4",
    )
    stage("iterative_dpo", "round-1")
    kept = 0
    for row in (row for row in rounds() if row["round"] == "round-1"):
        low, _, high = sorted(row["scores"])
        alone = row["scores"].count(low) == row["scores"].count(high) == 1
        assert (row["dropped"] is None) == (alone and row["chosen"] != row["rejected"] and row["chosen"] != "")
        kept += row["dropped"] is None
    assert kept


def test_sppo_trains_on_the_win_rates_of_the_sampled_answers(settings: Callable[..., None]):
    """At the start all log-ratios are 0, so each pair's loss is the mean of ((P - 1/2) / beta)^2."""
    settings("iterative_dpo.loss=sppo", "iterative_dpo.beta=0.5", "iterative_dpo.win_temperature=2")
    settings("iterative_dpo.learning_rate=1e-2")
    stage("iterative_dpo", "round-1")
    losses = []
    for row in (row for row in rounds() if row["round"] == "round-1" and row["dropped"] is None):
        rates = reference.wins(row["scores"], 2.0, itself=True)
        close(row["wins"], rates, 1e-4)  # scores are written with four decimals
        losses.append(sum(((rates[row[side]] - 0.5) / 0.5) ** 2 for side in ("best", "worst")) / 2)
    first, *_, last = curve("iterative_dpo/round-1")
    assert min(abs(first["loss"] - (a + b) / 2) for a in losses for b in losses) < 1e-4  # a batch of two pairs
    assert last["rewards/margin"] > 0


def test_rewards_by_rules_alone_leave_out_prompts_to_which_none_applies(
    settings: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    settings(*MIXED, "rewards.reward_model=0", "rewards.rules.right_abstain_wrong.weight=2")
    stage("ppo")  # the tiny model is wrong everywhere, or has nothing to be right about
    assert [row["score/mean"] for row in curve("ppo")] == [-2, -2]
    stage("grpo")
    for name in ("ppo", "grpo"):
        assert 0 < min(row["counted_fraction"] for row in curve(name)) < 1
    with pytest.raises(SystemExit) as failed:
        stage("iterative_dpo", "round-1")
    assert failed.value.code == 1
    dropped = {row["dropped"] for row in rounds()[:3]}
    assert dropped == {"tie", "fewer than two answers with a reward"}
    said = capsys.readouterr().err
    assert all(reason in said for reason in dropped)


def test_the_critic_of_rewards_by_rules_alone_starts_from_sft_with_value_0_everywhere(settings: Callable[..., None]):
    settings(*MIXED, "rewards.reward_model=0")
    models = open_roles(load(Path("params.yaml")))
    add_critic(models, load(Path("params.yaml")))
    own, start = (models.parameters(role, heads=False) for role in ("critic", "policy"))
    assert all(mine.equal(other) for mine, other in zip(own, start, strict=True))
    assert not models.values("critic", some_rows()).any()
    stage("ppo")
    close(curve("ppo")[0]["explained_variance"], 0)  # 1 - var(returns - 0) / var(returns)


def test_groups_that_stay_alike_are_sampled_again_and_then_dropped(settings: Callable[..., None]):
    """A rule that gives every answer the same: nothing is trained, and it is said."""
    before = weights("artifacts/sft")
    alike = "rewards.rules.right_abstain_wrong={weight: 1, right: -1, abstain: -1, wrong: -1}"
    settings(*MIXED, alike, "rewards.reward_model=0", "grpo.zero_variance=resample", "grpo.resample_limit=2")
    found = stage("grpo")
    assert found["resampled_groups"] == 4  # both groups, twice
    assert found["updates"] == 0
    after = weights("artifacts/grpo")
    assert all(tensor.equal(before[name]) for name, tensor in after.items())


@pytest.mark.parametrize("name", ["ppo", "grpo", "iterative_dpo"])
def test_a_rule_that_raises_stops_the_stage_with_one_line(
    settings: Callable[..., None], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings("rewards.rules.brevity=1")
    monkeypatch.setattr("alignflow.rules.brevity.brevity", lambda prompt, response, answer: {}[prompt])
    with pytest.raises(SystemExit) as failed:
        stage(name, *(["round-1"] if name == "iterative_dpo" else []))
    assert failed.value.code == 1
    said = capsys.readouterr().err
    assert "rule brevity raised KeyError" in said
    assert "what is" in said
    assert "Traceback" not in said


def test_what_was_computed_before_a_rule_raised_is_not_lost(
    settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The rule fails in the second rollout batch of four prompts; mended, the stage continues after the first."""
    settings("rewards.rules.brevity=1", "checkpoint.seconds=0")
    calls: list[str] = []

    def failing(prompt: str, response: str, answer: str | None) -> float:
        calls.append(prompt)
        return 0.0 if len(calls) <= 4 else {}[prompt]

    with monkeypatch.context() as patch:
        patch.setattr("alignflow.rules.brevity.brevity", failing)
        with pytest.raises(SystemExit):
            stage("ppo")
        assert "the last good state is kept" in capsys.readouterr().out
    assert stage("ppo")["steps"] == 2
    assert "continues after step 1" in capsys.readouterr().out


def test_a_reward_model_that_tells_nothing_apart_is_refused(
    settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        SharedBase, "scores", lambda self, role, batch: self.hidden(role, batch)[:, 0, 0].float() * 0 + 3
    )
    with pytest.raises(SystemExit) as failed:
        stage("reward_model")
    assert failed.value.code == 1
    assert "the same score (3)" in capsys.readouterr().err


def test_a_judge_that_leaves_a_row_out_is_refused(
    settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("alignflow.rules.concise_answer.concise_answer", lambda prompt, response, answer: None)
    with pytest.raises(SystemExit) as failed:
        stage("evaluate", "reference")
    assert failed.value.code == 1
    assert "evaluate.judges: concise_answer does not apply to 'what is" in capsys.readouterr().err


@pytest.mark.parametrize(("reference", "at_reference"), [("previous", True), ("initial", False)])
def test_the_reference_of_a_round_is_the_one_that_is_asked_for(
    settings: Callable[..., None], reference: str, at_reference: bool
):
    """Round 2 starts from round 1: so its first margin is 0 against the previous model, and not against SFT."""
    settings("iterative_dpo.learning_rate=1e-2", f"iterative_dpo.reference={reference}")
    stage("iterative_dpo", "round-1")
    stage("iterative_dpo", "round-2")
    first = curve("iterative_dpo/round-2")[0]
    assert (abs(first["rewards/chosen"]) < 1e-6) == at_reference


def test_a_run_that_diverges_stops_with_one_line_and_saves_nothing(
    settings: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    settings("dpo.learning_rate=1e30", "dpo.max_grad_norm=1e30")
    with pytest.raises(SystemExit) as failed:
        stage("dpo")
    assert failed.value.code == 1
    assert re.search(r"\[dpo\] error: step \d: the .* is (nan|inf).*lower the learning rate", capsys.readouterr().err)
    assert not Path("artifacts/dpo").exists()


@pytest.mark.parametrize("name", ["dpo", "ppo", "grpo", "reward_model"])
def test_a_reference_that_was_trained_is_noticed_and_nothing_is_saved(
    settings: Callable[..., None], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Every optimiser step moves one weight of the reference too."""
    opened: list[SharedBase] = []
    add, step = SharedBase.add, MasterAdamW.step

    def seen(self: SharedBase, role: str, **more: Any) -> None:
        opened.append(self)
        add(self, role, **more)

    def leaking(self: MasterAdamW, **keys: float) -> float:
        with torch.no_grad():
            opened[-1].parameters("reference")[0].add_(1e-3)
        return step(self, **keys)

    monkeypatch.setattr(SharedBase, "add", seen)
    monkeypatch.setattr(MasterAdamW, "step", leaking)
    with pytest.raises(SystemExit) as failed:
        stage(name)
    assert failed.value.code == 1
    assert "the weights of reference changed" in capsys.readouterr().err
    assert not Path(f"artifacts/{name}/adapter_model.safetensors").exists()


def test_a_policy_that_starts_elsewhere_than_its_reference_is_noticed(
    settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    add = SharedBase.add

    def wrong(self: SharedBase, role: str, *, start: Path | None = None, **more: Any) -> None:
        add(self, role, start=start, **more)
        if role == "reference":
            disturb(self, role)

    monkeypatch.setattr(SharedBase, "add", wrong)
    for name in ("dpo", "grpo"):
        with pytest.raises(SystemExit) as failed:
            stage(name)
        assert failed.value.code == 1
        assert "should start at its reference" in capsys.readouterr().err


MEASURED = {
    "score/mean",
    "judge/judge_model/mean",
    "judge/concise_answer/mean",
    "kl/reference",
    "kl/temperature",
    "response_length/mean",
    "truncated_fraction",
    "repetition/mean",
    "distinct_1",
    "distinct_2",
    "language_drift",
    "capability/multiple_choice",
    "capability/perplexity",
    "peak_memory_gib",
}
OUTCOMES = {"right_fraction", "abstain_fraction", "wrong_fraction"}


def evaluated(policy: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the answers of a policy, and its trajectory."""
    folder = Path("evaluations") / policy
    answers = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    return answers, json.loads((folder / "trajectory.json").read_text())


@pytest.mark.parametrize("policy", EVALUATED)
def test_a_policy_is_evaluated_on_held_out_prompts(place: Path, policy: str):
    found, answered = (metrics(name, policy) for name in ("evaluate", "answer"))
    assert {**found, "peak_memory_gib": 0} == {**found, **answered, "peak_memory_gib": 0}
    answers, _ = evaluated(policy)
    held_out = {
        row["prompt_id"]: row
        for row in map(json.loads, Path("data/prepared/validation.jsonl").read_text().splitlines())
    }
    assert [answer["sample"] for answer in answers] == 3 * [0, 1]
    assert [a["prompt_id"] for a in answers[::2]] == [a["prompt_id"] for a in answers[1::2]]
    assert any(a["response"] != b["response"] for a, b in zip(answers[::2], answers[1::2], strict=True))
    assert {answer["prompt_id"] for answer in answers} <= set(held_out)
    assert (found["kl/reference"] == 0) == (policy == "reference")
    assert found["kl/temperature"] == 0.7
    with_answer = [answer for answer in answers if held_out[answer["prompt_id"]]["answer"] is not None]
    assert set(found) == MEASURED | (OUTCOMES if with_answer else set())
    assert [answer for answer in answers if answer["outcome"] is not None] == with_answer
    for answer in answers:
        assert set(answer["judges"]) == {"judge_model", "concise_answer"}
    for name in ("judge_model", "concise_answer"):
        close(found[f"judge/{name}/mean"], sum(a["judges"][name] for a in answers) / 6)
    close(found["score/mean"], sum(a["score"] for a in answers) / 6)
    close(found["kl/reference"], sum(a["kl"] for a in answers) / 6)


@pytest.mark.parametrize(("policy", "steps"), [("dpo", [1, 2, 3]), ("iterative_dpo", [3, 6])])
def test_the_trajectory_ends_with_the_policy_s_own_answers(place: Path, policy: str, steps: list[int]):
    answers, points = evaluated(policy)
    assert [point["step"] for point in points] == steps
    for point in points:
        assert set(point) == {"step", "label", "kl", "score", "judges", "response_length"}
        assert {len(v) for v in (point["kl"], point["score"], *point["judges"].values(), point["response_length"])} == {
            2
        }
    scores = [answer["score"] for answer in answers]
    close(points[-1]["score"], [(scores[0] + scores[1]) / 2, (scores[2] + scores[3]) / 2])
    assert points[0]["score"] != points[-1]["score"]


def test_what_was_not_trained_here_has_no_trajectory(place: Path):
    assert evaluated("base")[1] == evaluated("reference")[1] == []


@pytest.fixture
def prompts_and_answers(settings: Callable[..., None]) -> Callable[..., None]:
    """Leave the prepared rows no responses."""
    for path in Path("data/prepared").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "chosen": None, "rejected": None}) + "\n" for row in rows))
    return settings


def test_prompts_with_answers_and_rules_are_enough(prompts_and_answers: Callable[..., None]):
    """Neither scorer has pairs: both stay untrained, the critic starts at 0, and no untrained judge judges."""
    prompts_and_answers(*MIXED, "rewards.reward_model=0", "ppo.steps=1")
    for name in ("reward_model", "judge_model"):
        assert stage(name)["steps"] == 0
        assert not weights(f"artifacts/{name}")["base_model.model.score.weight"].any()
        assert json.loads(Path(f"artifacts/{name}/report.json").read_text())["accuracy"] is None
    assert stage("ppo")["score/mean"] == -1
    stage("answer", "ppo")
    found = stage("evaluate", "ppo")
    answers, _ = evaluated("ppo")
    assert set(found) == (MEASURED | OUTCOMES) - {"judge/judge_model/mean", "capability/perplexity"}
    value = {"right": 1, "abstain": 0.1, "wrong": -1}
    assert [answer["score"] for answer in answers] == [value[answer["outcome"]] for answer in answers]


@pytest.mark.parametrize("name", ["ppo", "grpo", "iterative_dpo", "evaluate"])
def test_an_untrained_reward_model_is_not_maximised(
    prompts_and_answers: Callable[..., None], name: str, capsys: pytest.CaptureFixture[str]
):
    stage("reward_model")
    with pytest.raises(SystemExit) as failed:
        stage(name, *{"iterative_dpo": ["round-1"], "evaluate": ["reference"]}.get(name, []))
    assert failed.value.code == 1
    assert "rewards.reward_model is 1.0, but the data has no pairs" in capsys.readouterr().err


def test_a_stage_whose_input_is_missing_says_which(place: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree("artifacts/sft")
    with pytest.raises(SystemExit) as failed:
        stage("dpo")
    assert failed.value.code == 1
    assert "artifacts/sft is missing" in capsys.readouterr().err
