"""The step pairs of Step-DPO: the first wrong step of the policy's own answers against its own correction."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from alignflow.algorithms import step_dpo
from alignflow.algorithms.step_dpo import Continued, Search, StepDPOConfig, is_right, is_wrong, narrowed
from alignflow.models.roles import SharedBase
from alignflow.step_rules import STEP_RULES
from alignflow.steps import Cutter, cutter
from alignflow.types import Pair
from tasks.params.sections import StepDpo
from tasks.paths import SFT
from tasks.running.stage import Stage
from tasks.training.continuations import Begun, Continuation, draw_states, extend, step_texts
from tasks.training.ends import eos_ids
from tasks.training.lineage import origin, pairs_of_steps
from tasks.training.models import config_of
from tasks.training.sampling import settle


class Case(NamedTuple):
    """A wrong answer and the search for its first wrong step."""

    state: Begun
    """The prompt."""
    wrong: Continuation
    search: Search


def make_step_pairs(stage: Stage, models: SharedBase) -> tuple[list[Pair], dict[str, float]]:
    """Make the pairs and write them with their lineage.

    They are part of the checkpoint: a resumed stage, which may have another budget of memory, must not sample others.

    Raises:
        NoPairs: no prompt gave a pair.
    """
    section = stage.params.step_dpo
    found = stage.once("pairs", lambda: _search(stage, models))
    bars = f"step_dpo.right_from is {section.right_from} and step_dpo.wrong_to is {section.wrong_to}"
    pairs, counts = pairs_of_steps(stage, models, found["lineage"], found["rewards"], bars)
    return pairs, {**counts, **found["figures"]}


def _search(stage: Stage, models: SharedBase) -> dict[str, Any]:
    """Sample, look for errors and pair steps; all prompts go in lockstep, one call of the sampler a round."""
    section, config = stage.params.step_dpo, config_of(stage.params.step_dpo, StepDPOConfig)
    cut = cutter(models.base.tokenizer, section.delimiter, eos_ids(models))
    prompts = draw_states(stage, section.prompts, section.seed)
    settle(stage, models)
    budget = stage.budget("passes", section.micro_batch_tokens)
    drawn: list[Continuation] = []

    def ask(states: Sequence[Begun], call: int) -> list[Continuation]:
        drawn.extend(extend(models, stage.params, states, seed=section.seed * 1000 + call, budget=budget))
        return drawn[-len(states) :]

    k, m = section.samples_per_prompt, section.continuations
    stage.say(f"samples {k} answers to each of {len(prompts)} prompts")
    samples = ask([state for state in prompts for _ in range(k)], 0)
    groups = [samples[place * k : (place + 1) * k] for place in range(len(prompts))]
    _remark(stage, cut, config, groups)
    lines, cases = _cases(stage, models, config, cut, prompts, groups)
    calls = 0
    while wanted := [place for place, case in enumerate(cases) if case.search.wanted is not None]:
        calls += 1
        stage.say(f"continues {len(wanted)} wrong answers, {m} times each")
        states = [Begun(cases[i].state.row, cases[i].search.steps[: cases[i].search.wanted]) for i in wanted]
        ends = [_continued(cut, one) for one in ask([state for state in states for _ in range(m)], calls)]
        for place, i in enumerate(wanted):
            mine = ends[place * m : (place + 1) * m]
            cases[i] = cases[i]._replace(search=narrowed(cases[i].search, mine, config))
    lines += [line for case in cases for line in _lines(models, section, config, cut, case)]
    stage.say(f"{sum(line['dropped'] is None for line in lines)} pairs of steps from {len(cases)} wrong answers")
    common = origin(stage, models, start=str(SFT), seed=section.seed * 1000)
    rewards = [one.reward.total for one in samples if one.reward.total is not None]
    checked = [line["located_right"] for line in lines if line.get("located_right") is not None]
    return {
        "lineage": [{**line, **common} for line in lines],
        "rewards": rewards,
        "figures": {
            "reward/mean": fmean(rewards),
            "truncated_fraction": fmean(one.truncated for one in samples),
            "solved_fraction": fmean(any(is_right(one.reward.total, config) for one in group) for group in groups),
            "sampled_tokens": float(sum(len(one.tokens) for one in drawn)),
            **({"located_right": fmean(checked)} if checked else {}),
        },
    }


def _cases(
    stage: Stage,
    models: SharedBase,
    config: StepDPOConfig,
    cut: Cutter,
    prompts: Sequence[Begun],
    groups: Sequence[Sequence[Continuation]],
) -> tuple[list[dict[str, Any]], list[Case]]:
    """Return a line for each prompt without a search, and the searches of the others."""
    section = stage.params.step_dpo
    lines: list[dict[str, Any]] = []
    cases: list[Case] = []
    for state, group in zip(prompts, groups, strict=True):
        wrong = [one for one in group if is_wrong(one.reward.total, config)]
        right = [_continued(cut, one) for one in group if is_right(one.reward.total, config)]
        if not wrong or not right:
            lines.append(_line(state, "no right answer" if wrong else "no wrong answer"))
        for one in wrong[: section.errors_per_prompt] if right else []:
            steps = cut.cut(one.tokens)
            if section.locate == "rollouts":
                cases.append(Case(state, one, step_dpo.bisection(steps, right)))
            elif error := _first_wrong(models, section.checker, state, steps):
                cases.append(Case(state, one, step_dpo.located(steps, error, right)))
            else:
                lines.append(_line(state, "no step is wrong"))
    return lines, cases


def _continued(cut: Cutter, one: Continuation) -> Continued:
    return Continued(tuple(cut.cut(one.tokens)), one.reward.total)


def _first_wrong(models: SharedBase, checker: str | None, state: Begun, steps: Sequence[tuple[int, ...]]) -> int | None:
    """Return the number of the first step that the checker calls wrong, from 1; None for none, or without a checker."""
    if checker is None:
        return None
    texts, row = step_texts(models, steps), state.row
    told = (STEP_RULES[checker](row["prompt"], texts[:k], text, row["answer"]) for k, text in enumerate(texts))
    return next((k for k, right in enumerate(told, start=1) if right is False), None)


def _lines(
    models: SharedBase, section: StepDpo, config: StepDPOConfig, cut: Cutter, case: Case
) -> list[dict[str, Any]]:
    """Return a line for each pair of a search that is over, or one that says why there is none."""
    search, state = case.search, case.state
    prefix, error = search.steps[: search.high - 1], search.steps[search.high - 1]
    told = _first_wrong(models, section.checker, state, search.steps)

    def text(step: tuple[int, ...]) -> str:
        return step_texts(models, [step])[0]

    about = {
        "prefix": "".join(step_texts(models, prefix)),
        "prefix_ids": [token for step in prefix for token in step],
        "step": search.high,
        "steps": len(search.steps),
        "solution": case.wrong.text,
        "alive": [one._asdict() for one in search.tried],
        "located": section.locate,
        "located_right": None if told is None else told == search.high,
        "rejected": text(error),
        "rejected_ids": error,
        "wrong_reward": case.wrong.reward.total,
    }
    found = step_dpo.corrections(search, config, whole=cut.whole, text=text)
    if isinstance(found, str):
        return [{**_line(state, found), **about}]
    return [
        {
            **_line(state, None),
            **about,
            "chosen": text(one.step),
            "chosen_ids": one.step,
            "chosen_support": one.support,
            "right_reward": one.reward,
        }
        for one in found
    ]


def _line(state: Begun, reason: str | None) -> dict[str, Any]:
    row = {key: state.row[key] for key in ("prompt_id", "messages", "prompt")}
    return {"method": "step_dpo", **row, "dropped": reason}


def _remark(stage: Stage, cut: Cutter, config: StepDPOConfig, groups: Sequence[Sequence[Continuation]]) -> None:
    """Say what makes most prompts or answers useless."""
    single = fmean(len(cut.cut(one.tokens)) < 2 for group in groups for one in group)
    if single >= 0.95:
        stage.say(
            f"{single:.0%} of the answers have a single step: pairs are of first steps; iterative_dpo does the same"
        )
    for judge, advice in ((is_right, "take harder prompts"), (is_wrong, "train SFT longer")):
        alike = fmean(all(judge(one.reward.total, config) for one in group) for group in groups)
        if alike > 0.9:
            stage.say(f"{alike:.0%} of the prompts have answers of one kind, which give no pair; {advice}")
