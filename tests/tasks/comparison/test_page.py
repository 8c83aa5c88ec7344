"""The page: everything on it, nothing from outside it, and nothing in it that a model could run."""

import re
from html.parser import HTMLParser

import pytest

from tasks.comparison import page as comparison_page
from tasks.comparison import side_by_side, wording
from tasks.comparison.verdict import verdict
from tasks.policies import POLICIES
from tests.tasks.comparison.evaluated import (
    HOSTILE,
    REPORT,
    answers,
    build,
    compared,
    write,
    write_answers,
    write_judgements,
)


class Page(HTMLParser):
    """Collects the tags, attributes and text that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


def render(root) -> str:
    comparison = compared(root)
    return comparison_page.render(comparison, verdict(comparison))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render(build(tmp_path_factory.mktemp("rendered")))


@pytest.fixture(scope="module")
def page(rendered):
    return Page(rendered)


def test_the_page_needs_no_other_file_and_no_network(rendered, page):
    addresses = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(address.startswith("#") for address in addresses)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    style = rendered.split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style


def test_text_of_a_model_is_shown_and_never_run(page):
    assert HOSTILE in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "49" not in re.findall(r"& (\S+)", page.text)


def test_the_verdict_comes_first_and_every_section_follows(rendered):
    titles = re.findall(r"<h[12]>(.*?)</h[12]>", rendered)
    assert titles == [
        "One seed: DPO is better than the reference, and both independent judges agree.",
        "Against the reference",
        "Every policy against every other",
        "Quality and capability",
        "Over-optimisation",
        "At equal KL",
        "Can the judges be trusted?",
        "Sample answers",
        "Learning curves",
        "Costs",
        "Make it again",
    ]


def test_rule_tasks_have_their_section_where_there_are_any(root):
    for policy in POLICIES:
        write_answers(root, policy, answers(policy, outcome="abstain"))
    page = Page(render(root))
    assert "Right, abstained, wrong" in page.text
    assert "On 40 questions with a known answer" in page.text


def test_the_page_shows_the_figures_of_its_files(page):
    words = " ".join(page.text.split())
    assert "80 %accuracy on 80 pairs, 70 to 87 %" in words
    assert "Over-optimised: from half to the end of training" in words
    assert "1 min 30 s" in words
    assert "KL: nats a response, at temperature 0.7." in words


def test_the_page_says_that_judges_are_kin_and_how_often_they_err_together(root):
    """Both reports: 80 pairs; wrong on 4 pairs together, on 2 and 6 alone: by chance 6 * 10 / 80 = 0.75 together."""
    for name, alone in (("reward_model", [1] * 2 + [0] * 6), ("judge_model", [0] * 2 + [1] * 6)):
        margins = [-1.0] * 4 + [-1.0 if wrong else 1.0 for wrong in alone] + [1.0] * 68
        write(root / "artifacts" / name / "report.json", {**REPORT, "margins": margins})
    text = render(root)
    assert "These judges are kin." in text
    (row,) = re.findall(r"Training reward,<br>second reward model</th>(<td>80</td>.*?)</tr>", text, flags=re.DOTALL)[:1]
    # (4 * 68 - 2 * 6) / sqrt(6 * 74 * 10 * 70) = 0.466
    assert re.findall("<td>(.*?)</td>", row) == ["80", "4", "0.8", "2", "6", "0.47"]


def test_the_page_has_the_win_rate_among_complete_pairs_and_the_prediction(root):
    """Every tenth answer is cut off, of DPO and the reference alike: 27 of 36 complete pairs won."""
    words = " ".join(Page(render(root)).text.split())
    assert "What remains without cut-offs and length" in words
    assert "DPO 36 of 40 75 % 6" in words


def test_every_row_of_every_table_has_a_head_and_every_table_scrolls_by_itself(rendered):
    """A wide table must not make the page itself scroll sideways on a phone."""
    for table in re.findall(
        r"<(?:div|figure) class=\"[^\"]*\"[^>]*>(?:\s*<figcaption>.*?</figcaption>)?\s*<table>", rendered
    ):
        assert "wide" in table
    assert rendered.count("<table>") == len(re.findall(r"tabindex=\"0\" role=\"region\"", rendered))
    for row in re.findall(r"<tbody>(.*?)</tbody>", rendered, flags=re.DOTALL):
        assert row.count("<tr>") == row.count("<th ")


def test_a_report_with_gaps_is_drawn(root):
    gaps = REPORT | {"length_correlation": None, "shorter_wins": None, "calibration": [], "by_margin": []}
    write(root / "artifacts" / "reward_model" / "report.json", gaps)
    assert "correlation of score and length" in render(root)


def test_a_reward_model_without_pairs_says_so(root):
    nothing = dict.fromkeys(("accuracy", "low", "high", "calibration_error", "length_correlation", "shorter_wins"))
    empty = {name: [] for name in ("margins", "by_margin", "by_length_difference", "calibration")}
    write(root / "artifacts" / "reward_model" / "report.json", {"pairs": 0, **nothing, **empty})
    assert "there are no held-out pairs" in render(root)


def test_without_snapshots_and_with_an_llm_the_page_is_whole(root):
    for policy in POLICIES:
        write(root / "evaluations" / policy / "trajectory.json", [])
    write_judgements(root, [{"prompt_id": "p00", "policy": "dpo", "outcome": 1}])
    text = Page(render(root)).text
    assert "No policy left snapshots" in text
    assert "LLM judge" in text


def test_the_page_shows_each_policy_side_by_side_for_a_few_prompts(root, page):
    comparison = compared(root)
    chosen = side_by_side.choose(comparison)
    assert len(chosen) == 5
    for sample in chosen:
        assert list(sample.answers) == list(comparison.policies)
        assert sample.answers["reference"].answer.response in page.text


def test_the_best_and_the_worst_case_are_by_mean_gain_of_the_independent_judge(root):
    """Second reward model, +2 or -2: prompt 0 wins by all four; prompts past 30 lose by all four."""
    best, worst = side_by_side.choose(compared(root))[-2:]
    assert {best.answers[policy].answer.judges["judge_model"] for policy in ("dpo", "grpo")} == {2.0}
    assert "Largest gain by the second reward model (+2.00 on average)" in best.reason
    assert {worst.answers[policy].answer.judges["judge_model"] for policy in ("dpo", "grpo")} == {-2.0}
    assert "−2.00" in worst.reason


def test_differences_are_whole_words_and_join_to_both_texts():
    pieces = side_by_side.differences(
        "Water the basil every day.\nThen rest.", "Water your basil every week.\nThen rest."
    )
    assert [(piece.kind, piece.text) for piece in pieces] == [
        ("same", "Water "),
        ("gone", "your"),
        ("same", " "),
        ("new", "the"),
        ("same", " "),
        ("same", "basil every "),
        ("gone", "week."),
        ("same", "\n"),
        ("new", "day."),
        ("same", "\n"),
        ("same", "Then rest."),
    ]


def test_differences_are_marked_by_element_and_not_by_colour_alone(root):
    rows = answers("reference")
    for row in rows:
        row["response"] = "Keep it in the sun and water it daily."
    write_answers(root, "reference", rows)
    write_answers(
        root, "dpo", [row | {"response": "Keep it in the shade and water it daily."} for row in answers("dpo")]
    )
    write_answers(root, "ppo", [row | {"response": "No."} for row in answers("ppo")])
    write_answers(root, "grpo", [row | {"response": rows[0]["response"]} for row in answers("grpo")])
    text = render(root)
    assert "Keep it in the <del>sun</del> <ins>shade</ins> and water it daily." in text
    assert "few words in common with the reference" in text
    assert "word for word" in text
    style = text.split("</style>")[0]
    assert re.search(r"\nins \{[^}]*underline", style)
    assert re.search(r"\ndel \{[^}]*line-through", style)


def test_charts_follow_the_pages_theme(rendered):
    """A fixed colour would vanish in one of the two themes."""
    drawings = re.findall(r"<svg.*?</svg>", rendered, flags=re.DOTALL)
    # win rates, over-optimisation, a panel a judge, three a reward model, a curve a method at least, three costs
    assert len(drawings) >= 1 + 1 + 3 + 6 + 5 + 3
    for drawing in drawings:
        assert not re.search(r"(?:fill|stroke|color)\s*[:=]\s*\"?#", drawing)
    used = set(re.findall(r"var\((--[\w-]+)\)", rendered))
    assert used <= set(re.findall(r"(--[\w-]+):", rendered))


def test_every_policy_has_a_colour_in_both_themes(root, rendered):
    for policy in compared(root).policies:
        assert len(set(re.findall(rf"--policy-{policy}: (#\w+);", rendered))) == 2


def test_every_drawing_says_what_it_shows(rendered):
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', rendered)
    assert len(labels) == rendered.count("<svg ")
    assert len(set(labels)) > 10


def test_ids_of_charts_do_not_meet_on_the_page(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_same_inputs_give_the_same_page(root, rendered):
    assert render(root) == rendered


def test_the_page_stays_small_with_very_long_answers_and_curves(root):
    write_answers(root, "grpo", answers("grpo", response="long " * 50_000))
    rows = "\n".join(f"{i},{i % 7},{i % 5}" for i in range(20_000))
    (root / "plots" / "grpo.csv").write_text(f"step,loss,score/mean\n{rows}\n")
    assert len(render(root).encode()) < 1_500_000


def test_two_prompts_are_enough_for_a_page(root):
    for policy in POLICIES:
        write_answers(root, policy, answers(policy)[:2])
        write(root / "evaluations" / policy / "trajectory.json", [])
    assert len(side_by_side.choose(compared(root))) == 2
    assert "</html>" in render(root)


def test_a_stage_without_steps_has_no_curve_and_no_error(root):
    (root / "plots" / "sft.csv").write_text("step,loss\n")
    assert "</html>" in render(root)


def test_numbers_are_written_as_a_reader_wants_them():
    assert wording.number(-0.001) == "0.00"
    assert wording.signed(-0.25) == "−0.25"
    assert wording.points(-0.124) == "−12\u00a0points"
    assert wording.p_value(0.0004) == "<\u00a00.001"
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b", "c"]) == "a, b and c"
    assert [wording.duration(seconds) for seconds in (45, 200, 7500)] == ["45 s", "3 min 20 s", "2 h 5 min"]
