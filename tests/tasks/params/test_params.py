"""``params.yaml``: it loads, its errors name the key, edits keep its comments."""

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from alignflow.algorithms.dpo import DPOConfig
from alignflow.algorithms.grpo import GRPOConfig
from alignflow.algorithms.ppo import PPOConfig
from alignflow.algorithms.reward_model import RewardModelConfig
from alignflow.optim import OptimisationConfig
from alignflow.rewards import rule_names
from tasks.params.edit import override
from tasks.params.read import ParamsError, load
from tasks.params.sections import Params, Section
from tasks.paths import RULES
from tasks.training.models import config_of

FILE = Path(__file__).resolve().parents[3] / "params.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(FILE, tmp_path / "params.yaml"))


def change(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert re.search(old, text), f"params.yaml has no {old}"
    path.write_text(re.sub(old, new, text, count=1))
    return path


def test_the_shipped_file_loads_and_names_rules_that_exist():
    found = load(FILE)
    assert {*found.evaluate.judges, *found.rewards.rules} <= set(rule_names(RULES))


@pytest.mark.parametrize(
    ("section", "record"),
    [
        *(
            (name, OptimisationConfig)
            for name in ("sft", "reward_model", "judge_model", "dpo", "iterative_dpo", "ppo", "grpo")
        ),
        ("reward_model", RewardModelConfig),
        ("judge_model", RewardModelConfig),
        ("dpo", DPOConfig),
        ("iterative_dpo", DPOConfig),
        ("ppo", PPOConfig),
        ("grpo", GRPOConfig),
    ],
)
def test_a_section_fills_the_records_of_the_core(section: str, record: type):
    settings = getattr(load(FILE), section)
    config = config_of(settings, record)
    raw = YAML(typ="safe").load(FILE.read_text())[section]
    assert {f.name: getattr(config, f.name) for f in fields(record)} == {f.name: raw[f.name] for f in fields(record)}


def test_no_number_has_a_default():
    """Every key of every section must be written in the file."""

    def check(model: type[Section], trail: str) -> None:
        for name, field in model.model_fields.items():
            assert field.is_required(), f"{trail}{name} has a default"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                check(field.annotation, f"{trail}{name}.")

    check(Params, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"  grpo: artifacts/grpo", "  gpro: artifacts/grpo", r"policies: no policy 'gpro'; did you mean grpo\?"),
        (r"  reference: .*\n", "", r"policies, trained .* `alignflow set policies=dpo,iterative_dpo,ppo,grpo`"),
        (r"  kl_coef: .*", "  kl_coeff: 0.05", r"unknown key ppo\.kl_coeff; did you mean ppo\.kl_coef\?"),
        (r"\nppo:", "\npppo:", r"unknown key pppo; did you mean ppo\?"),
        (r"  gae_lambda: .*\n", "", r"missing key ppo\.gae_lambda"),
        (r"  gamma: .*\n", "  gamma: 1.5\n", r"ppo\.gamma: .*less than or equal to 1.*1\.5"),
        (r"  kl_coef: \S+", "  kl_coef: .inf", r"ppo\.kl_coef: .*finite"),
        (
            r"  loss: .*\n",
            "  loss: sigmoidal\n",
            r"dpo\.loss: .*'sigmoid', 'ipo', 'hinge', 'robust', 'simpo' or 'sppo'.*'sigmoidal'",
        ),
        (
            r"  simpo_margin: 0.0 # .*",
            "  simpo_margin: 0.5",
            r"dpo: simpo_margin: 0\.5 has no effect with loss: sigmoid",
        ),
        (r"  loss: .*\n", "  loss: robust\n", r"dpo: loss: robust needs label_smoothing above 0"),
        (r"  label_smoothing: 0.0 # .*", "  label_smoothing: 0.5", r"dpo\.label_smoothing: .*less than 0\.5"),
        (r"  beta: 0.1\n", "  beta: 0.0\n", r"dpo\.beta: .*greater than 0"),
        (r"  nll_coef: 0.0 # .*", "  nll_coef: -1.0", r"dpo\.nll_coef: .*greater than or equal to 0"),
        (r"  kl_estimator: .*", "  kl_estimator: k2", r"ppo\.kl_estimator: .*'k1' or 'k3'"),
        (r"  reward_clip: .*", "  reward_clip: 0.0", r"ppo\.reward_clip: .*greater than 0"),
        (r"  zero_variance: .*", "  zero_variance: skip", r"grpo\.zero_variance: .*'keep', 'drop' or 'resample'"),
        (r"  length_penalty: \S+", "  length_penalty: -0.1", r"iterative_dpo\.length_penalty"),
        (
            r"  reference: previous .*\n  beta: 0.1\n  loss: sigmoid\n",
            "  reference: initial\n  beta: 0.1\n  loss: sppo\n",
            r"iterative_dpo: loss: sppo needs reference: previous",
        ),
        (
            r"  win_temperature: 1.0 # of loss.*",
            "  win_temperature: -1",
            r"iterative_dpo\.win_temperature: .*equal to 0",
        ),
        (r"  wrong_to: \S+", "  wrong_to: 1.0", r"step_dpo: wrong_to: 1\.0 must be below right_from: 1\.0"),
        (
            r"  checker: null",
            "  checker: column_adition",
            r"step_dpo: checker: no rule .* did you mean column_addition",
        ),
        (
            r"  locate: rollouts",
            "  locate: checker",
            r"step_dpo: locate: checker needs a checker, one of: column_addition",
        ),
        (r"  delimiter: \S+", '  delimiter: "ab"', r"step_dpo\.delimiter: .*at most 1 character"),
        (r"  delimiter: \S+", '  delimiter: ""', r"step_dpo\.delimiter: .*at least 1 character"),
        (
            r"  smoothing: visits(.*\n  delimiter.*\n  beta.*\n  loss.*\n)  label_smoothing: 0.0",
            "  smoothing: visits\\1  label_smoothing: 0.1",
            r"mcts_dpo: label_smoothing: 0\.1 has no effect with smoothing: visits",
        ),
        (r"  within_group: \S+", "  within_group: wins", r"within_group: wins .* ppo samples only one.* set policies"),
        (r"  margin_coef: \S+", "  margin_coef: -0.1", r"reward_model\.margin_coef"),
        (r"  group_size: .*", "  group_size: 1", r"grpo\.group_size: .*greater than or equal to 2"),
        (r"  shards: \d+", "  shards: 17", r"iterative_dpo: .*alignflow set iterative_dpo\.shards=17"),
        (r"  rules: .*", "  rules: {concise_answer: 1.0}", r"params\.yaml: evaluate\.judges: concise_answer is also"),
        (r"  epochs: \d+", "  epochs: two", r"ppo\.epochs: .*integer.*'two'"),
        (r"judges: \[.*\]", "judges: [consise_answer]", r"evaluate\.judges: no rule .* did you mean concise_answer"),
        (r"  rules: .*", "  rules: {brevty: 1.0}", r"rewards\.rules: no rule 'brevty' .* did you mean brevity"),
        (r"  rules: .*", "  rules: {brevity: {wait: 1}}", r"rewards\.rules: brevity takes weight, not wait"),
        (
            r"  rules: .*",
            "  rules: {right_abstain_wrong: 1.0}",
            r"rewards\.rules: right_abstain_wrong takes weight, right, abstain, wrong, not weight",
        ),
        (r"  rules: .*", "  rules: [brevity]", r"rewards\.rules: .*dictionary"),
        (
            r"judges: \[.*\]",
            "judges: [concise_answer, right_abstain_wrong]",
            r"evaluate\.judges: right.* takes numbers \(right, abstain",
        ),
        (r"  test_fraction: \S+", "  test_fraction: 0.7", r"data: .*leave no prompt to train on; lower one of them"),
        (r"  seed: 2\n", "  seed: 1\n", r"judge_model\.seed: 1 is also reward_model\.seed"),
        (r"  snapshots: \d", "  snapshots: -1", r"dpo\.snapshots: .*greater than or equal to 0"),
        (r"  url: \S+", "  url: localhost", r"llm_judge\.url: .*pattern"),
        (r"  url: \S+", "  url: http://localhost:8000/v1", r"llm_judge: url needs a model"),
        (
            r"  url: \S+",
            "  url: http://me:secret@localhost:8000/v1",
            r"llm_judge\.url: .*LLM_JUDGE_API_KEY holds the key",
        ),
        (r"  reward_model: \d.*\n  rules: .*", "  reward_model: 0.0\n  rules: {}", r"rewards: no source has a weight"),
        (r"base:", "base: [", r"not valid YAML"),
        (r"  format: auto", "  format: rankd", r"data\.format: no format 'rankd'; did you mean ranked"),
        (r"  max_fraction: \{\}", "  max_fraction: {dupes: 0.1}", r"data\.max_fraction: no reason 'dupes'.*duplicate"),
        (
            r"  sources: \[\]",
            "  sources: [{path: elsewhere/a.jsonl, weight: 1}]",
            r"data: .*a\.jsonl does not lie in data\.path",
        ),
        (r"  sources: \[\]", "  sources: [{path: org/name, revision: abc}]", r"missing key data\.sources\.0\.weight"),
        (
            r"  sources: \[\]",
            "  sources: [{path: data/preferences.jsonl, weight: 1, splits: train}]",
            r"unknown key data\.sources\.0\.splits; did you mean data\.sources\.0\.split\?",
        ),
        (r"  sources: \[\]", "  sources: [{path: data/preferences.jsonl, weight: 0}]", r"weight: .*greater than 0"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(path: Path, old: str, new: str, message: str):
    with pytest.raises(ParamsError, match=message) as raised:
        load(change(path, old, new))
    assert str(path) in str(raised.value)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(ParamsError, match="not found"):
        load(tmp_path / "params.yaml")


def comments(text: str) -> list[str]:
    return re.findall(r"#.*", text)


def test_a_choice_changes_its_own_lines_alone_and_back_gives_the_same_bytes(path: Path):
    before = path.read_text()
    override(path, ["policies=dpo", "iterative_dpo.shards=2"])
    kept = [line for line in path.read_text().splitlines() if line in before.splitlines()]
    gone = [line.strip() for line in before.splitlines() if line not in kept]
    assert gone == [
        "iterative_dpo: artifacts/iterative_dpo",
        "ppo: artifacts/ppo",
        "grpo: artifacts/grpo",
        "ppo: [policy]",
        "grpo: [policy]",
        "shards: 3 # parts of the training prompts, one round each; `alignflow set iterative_dpo.shards=4` "
        "rewrites the rounds",
        "rounds:",
        "round-1: {previous: artifacts/sft, shard: 1, of: 3}",
        "round-2: {previous: artifacts/iterative_dpo/round-1, shard: 2, of: 3}",
        "round-3: {previous: artifacts/iterative_dpo/round-2, shard: 3, of: 3}",
        "last: round-3",
    ]
    override(path, ["policies=dpo,iterative_dpo,ppo,grpo", "iterative_dpo.shards=3"])
    assert path.read_text() == before


@pytest.mark.parametrize("names", ["", "reference", "base,reference", "sft_more"])
def test_a_choice_with_nothing_to_compare_is_refused_and_changes_nothing(path: Path, names: str):
    before = path.read_text()
    with pytest.raises(ParamsError, match=f"policies={names} trains nothing to compare with reference; name at least"):
        override(path, [f"policies={names}"])
    assert path.read_text() == before


@pytest.mark.parametrize("key", ["dpo.beta", "dpo.steps", "ppo.target_kl"])
def test_true_is_no_number(path: Path, key: str):
    with pytest.raises(ParamsError, match=rf"{key}.*must be a number, not true"):
        override(path, [f"{key}=true"])


def test_blanks_around_an_assignment_do_not_matter(path: Path):
    override(path, ["dpo.beta = 0.3", "policies=[dpo, ppo]"])
    assert load(path).dpo.beta == 0.3
    assert list(load(path).policies) == ["base", "reference", "dpo", "ppo"]


def test_an_override_changes_one_value_and_keeps_the_comments(path: Path):
    before = path.read_text()
    override(path, ["dpo.beta=0.25", "ppo.learning_rate=1e-5", "base.model=owner/name", "base.revision=main"])
    found = load(path)
    assert (found.dpo.beta, found.ppo.learning_rate) == (0.25, 1e-5)
    assert (found.base.model, found.base.revision) == ("owner/name", "main")
    assert comments(path.read_text()) == comments(before)
    assert found.model_dump(exclude={"dpo", "ppo", "base"}) == load(FILE).model_dump(exclude={"dpo", "ppo", "base"})


def test_new_shards_rewrite_the_rounds(path: Path):
    before = comments(path.read_text())
    override(path, ["iterative_dpo.shards=2"])
    found = load(path).iterative_dpo
    assert {name: r.model_dump() for name, r in found.rounds.items()} == {
        "round-1": {"previous": "artifacts/sft", "shard": 1, "of": 2},
        "round-2": {"previous": "artifacts/iterative_dpo/round-1", "shard": 2, "of": 2},
    }
    assert found.last == "round-2"
    assert comments(path.read_text()) == before


def test_a_reward_rule_may_be_added_by_its_name(path: Path):
    override(path, ["rewards.rules.brevity=0.5"])
    assert load(path).rewards.rules["brevity"] == {"weight": 0.5}
    override(path, ["rewards.rules.right_abstain_wrong={weight: 2, right: 1, abstain: 0.1, wrong: -1}"])
    override(path, ["rewards.rules.right_abstain_wrong.wrong=-3"])
    assert load(path).rewards.rules["right_abstain_wrong"]["wrong"] == -3.0


def test_a_rule_of_the_user_s_lies_beside_the_file(path: Path):
    write_rule(path, "mine", "def mine(prompt, response, answer, *, limit): ...\n")
    override(path, ["rewards.rules.mine={weight: 1, limit: 40}"])
    assert load(path).rewards.rules["mine"] == {"weight": 1.0, "limit": 40.0}
    with pytest.raises(ParamsError, match=r"rewards\.rules: mine takes weight, limit, not weight"):
        override(path, ["rewards.rules.mine={weight: 1}"])
    with pytest.raises(ParamsError, match=r"evaluate\.judges: mine takes numbers \(limit\)"):
        override(path, ["rewards.rules={}", "evaluate.judges=[mine]"])
    with pytest.raises(ParamsError, match=r"no rule 'mime' in alignflow/rules or rewards; did you mean mine\?"):
        override(path, ["rewards.rules.mime=1"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "brevity",
            "def brevity(prompt, response, answer): ...\n",
            r"brevity\.py: alignflow/rules has a rule brevity, too",
        ),
        ("mine", "def mine(prompt, response, answer)\n", r"rewards/mine\.py:1: not valid Python"),
        ("mine", "def other(prompt, response, answer): ...\n", r"rewards/mine\.py: has no function mine"),
    ],
)
def test_a_file_that_cannot_be_the_rule_is_told_with_the_key(path: Path, name: str, text: str, message: str):
    write_rule(path, name, text)
    with pytest.raises(ParamsError, match=r"params\.yaml: rewards\.rules: .*" + message):
        override(path, [f"rewards.rules.{name}=1"])


def write_rule(params: Path, name: str, text: str) -> None:
    folder = params.parent / "rewards"
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)


def test_an_engine_whose_numbers_differ_needs_a_correction(path: Path):
    with pytest.raises(ParamsError, match=r"sampling: importance_cap must be a number.*engine: vllm"):
        override(path, ["sampling.engine=vllm"])
    override(path, ["sampling.engine=vllm", "sampling.importance_cap=2"])
    assert load(path).sampling.engine == "vllm"


def test_a_kl_target_needs_a_coefficient_to_move(path: Path):
    with pytest.raises(ParamsError, match=r"ppo: kl_target: .* set kl_coef above 0"):
        override(path, ["ppo.kl_target=6", "ppo.kl_coef=0"])
    override(path, ["ppo.kl_target=6"])
    assert load(path).ppo.kl_target == 6.0


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("dpo.betta=1", r"no key dpo\.betta; did you mean dpo\.beta\?"),
        ("dop.beta=1", r"no key dop; did you mean dpo\?"),
        ("dpo.beta", r"not of the form section\.key=value"),
        ("dpo.beta=-1", r"dpo\.beta: .*greater than 0"),
        ("dpo.beta.deep=1", r"dpo\.beta is a value, not a section"),
        ("policies=dpo,gpro", r"params\.yaml: policies: no policy 'gpro'; did you mean grpo\?"),
        ("iterative_dpo.shards=0", r"iterative_dpo\.shards"),
        ("iterative_dpo.shards=many", r"iterative_dpo\.shards"),
    ],
)
def test_a_wrong_override_is_refused_and_writes_nothing(path: Path, assignment: str, message: str):
    before = path.read_text()
    with pytest.raises(ParamsError, match=message):
        override(path, ["ppo.gamma=0.5", assignment])
    assert path.read_text() == before


def test_a_limit_for_one_reason_may_be_added_by_its_name(path: Path):
    override(path, ["data.max_fraction.duplicate=0.1"])
    assert load(path).data.max_fraction == {"duplicate": 0.1}


def test_a_source_need_only_name_what_it_has(path: Path):
    change(
        path,
        r"sources: \[\]",
        "sources: [{path: data/preferences.jsonl, weight: 2}, {path: org/name, revision: abc, weight: 1}]",
    )
    local, hub = load(path).data.sources
    assert (local.weight, local.revision, local.split, local.subset) == (2, None, None, None)
    assert (hub.path, hub.revision) == ("org/name", "abc")


def test_the_control_trains_for_as_many_steps_as_dpo_and_is_off():
    params = load(FILE)
    assert params.sft_more.steps == params.dpo.steps
    assert "sft_more" not in params.policies
    assert params.trained["sft_more"] == []
