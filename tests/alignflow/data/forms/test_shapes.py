"""The shapes in which people have preferences: each file's rows, or the error that says what to set.

Rows are built like those of public data sets and of reports by their users.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignflow.data.formats import layout_of, read_rows
from alignflow.data.forms.layout import Layout
from alignflow.data.rows import DataError, Row
from alignflow.data.sources import Fault, Source

PROMPTS = (
    "How long should tea steep?",
    "Why does bread go stale?",
    "What makes the rain fall?",
    "Where do swallows go?",
)
GOOD = (
    "About four minutes, if black.",
    "Its starch gives up its water.",
    "Cold air holds less of it.",
    "To Africa, most.",
)
BAD = ("It depends on many things.", "Because it is old, I guess.", "Nobody knows that so well.", "I will not say it.")
Shape = Callable[[int, str, str, str], dict[str, Any]]


def chat(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def share(*texts: str) -> list[dict[str, Any]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def file_of(shape: Shape, folder: Path) -> Source:
    rows = [shape(i, *texts) for i, texts in enumerate(zip(PROMPTS, GOOD, BAD, strict=True))]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


def layout(source: Source) -> Layout:
    found = layout_of(source)
    assert found is not None
    return found


def turns(row: Row) -> list[str]:
    return [turn["content"] for turn in row.messages]


# Pairs: the good answer is preferred in every row, with this margin -------------------------------------------------

PAIRS: dict[str, tuple[Shape, float]] = {
    "chosen_response and ratings": (
        lambda i, p, g, b: {"instruction": p, "chosen_response": g, "rejected_response": b,
                            "chosen_avg_rating": 4.5, "rejected_avg_rating": 2.0, "chosen_model": "a"}, 2.5),
    "response_chosen": (lambda i, p, g, b: {"query": p, "response_chosen": g, "response_rejected": b}, 0.0),
    "camel case": (lambda i, p, g, b: {"Prompt": p, "ChosenResponse": g, "RejectedResponse": b}, 0.0),
    "preferred and dispreferred": (lambda i, p, g, b: {"question": p, "preferred": g, "dispreferred": b}, 0.0),
    "chosen_score": (
        lambda i, p, g, b: {"prompt": p, "chosen": g, "rejected": b, "chosen_score": 8.0, "rejected_score": 3.0}, 5.0),
    "chosen-rating": (
        lambda i, p, g, b: {"prompt": p, "chosen": g, "rejected": b, "chosen-rating": 5, "rejected-rating": "2",
                            "chosen-model": "m"}, 3.0),
    "two ratings, the prompt in input": (
        lambda i, p, g, b: {"system": "", "input": p, "chosen": g, "rejected": b, "rating": [9.0, 7.0],
                            "status": "tie"}, 2.0),
    "objects with a text and a score": (
        lambda i, p, g, b: {"prompt": p, "chosen": {"text": g, "score": 5}, "rejected": {"text": b, "score": 2}}, 3.0),
    "messages as JSON text": (
        lambda i, p, g, b: {"prompt": json.dumps(chat(p)),
                            "chosen": json.dumps(chat(p, g)),
                            "rejected": json.dumps(chat(p, b))}, 0.0),
    "messages as Python text": (
        lambda i, p, g, b: {"prompt": str(chat(p)), "chosen": str(chat(p, g)[1:]),
                            "rejected": str(chat(p, b)[1:])}, 0.0),
    "messages as NumPy text": (
        lambda i, p, g, b: {"chosen": str(chat(p, g)).replace("}, {", "}\n {"),
                            "rejected": str(chat(p, b)).replace("}, {", "}\n {")}, 0.0),
    "preferred and non-preferred output": (
        lambda i, p, g, b: {"input": {"messages": chat(p), "tools": [], "parallel_tool_calls": True},
                            "preferred_output": chat(p, g)[1:], "non_preferred_output": chat(p, b)[1:]}, 0.0),
    "index of the safer one alone": (
        lambda i, p, g, b: {"prompt": p, "response_0": (g, b)[i % 2], "response_1": (b, g)[i % 2],
                            "safer_response_id": i % 2}, 0.0),
    "good first in output": (lambda i, p, g, b: {"instruction": p, "input": "", "output": [g, b]}, 0.0),
    "messages with the good answer": (lambda i, p, g, b: {"messages": chat(p, g), "rejected_response": b}, 0.0),
    "response and rejected_response": (lambda i, p, g, b: {"query": p, "response": g, "rejected_response": b}, 0.0),
    "nested question, numbered answers and scores": (
        lambda i, p, g, b: {"question": {"dataset": "own", "id": f"q{i}", "full_text": p},
                            "quotes_0": {"title": [], "extract": []}, "answer_0": g, "score_0": 0.5,
                            "quotes_1": {"title": ["On tea and other things"], "extract": []}, "answer_1": b,
                            "score_1": -0.5}, 1.0),
    "ranked objects": (
        lambda i, p, g, b: {"prompt": f"\n\nHuman: {p}\n\nAssistant: ", "turns": 1, "num_responses": 2,
                            "good_natured": True, "answers": [{"answer": b, "model": "m", "rank": 2.0},
                                                              {"answer": g, "model": "n", "rank": 1.0}]}, 1.0),
    "responses that are messages": (
        lambda i, p, g, b: {"prompt": p, "responses": [chat(p, b)[1:], chat(p, g)[1:]], "scores": [1, 4]}, 3.0),
    "completions with scores and critiques": (
        lambda i, p, g, b: {"source": "own", "instruction": p, "models": ["m", "n"], "completions": [
            {"model": "m", "response": g, "overall_score": 8.0, "fine-grained_score": 4.5, "principle": "helpful",
             "critique": "A fine answer to this question.", "custom_system_prompt": "You are a helpful assistant."},
            {"model": "n", "response": b, "overall_score": 3.0, "fine-grained_score": 2.5, "principle": "helpful",
             "critique": "No answer to the question.", "custom_system_prompt": "You are a helpful assistant."}]}, 5.0),
    "true and false choices": (
        lambda i, p, g, b: {"question": p, "responses": [g, b], "labels": [1, 0]}, 1.0),
    "index of the better of two columns": (
        lambda i, p, g, b: {"prompt": p, "response_0": (g, b)[i % 2], "response_1": (b, g)[i % 2],
                            "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": i % 2,
                            "safer_response_id": 1 - i % 2, "response_0_sha256": "ab12"}, 0.0),
    "index into a list": (
        lambda i, p, g, b: {"prompt": p, "responses": [(g, b)[i % 2], (b, g)[i % 2]], "chosen_index": i % 2}, 0.0),
    "text of the better response": (lambda i, p, g, b: {"prompt": p, "responses": [b, g], "best": g}, 0.0),
    "letters": (
        lambda i, p, g, b: {"prompt": p, "response_a": (g, b)[i % 2], "response_b": (b, g)[i % 2],
                            "preferred": "AB"[i % 2]}, 0.0),
    "numbers from 1": (
        lambda i, p, g, b: {"instruction": p, "input": "", "output_1": (g, b)[i % 2], "output_2": (b, g)[i % 2],
                            "preference": i % 2 + 1}, 0.0),
    "names of columns": (
        lambda i, p, g, b: {"prompt": p, "response_1": (g, b)[i % 2], "response_2": (b, g)[i % 2],
                            "winner": ("response_1", "Response 2")[i % 2]}, 0.0),
    "signed strength": (
        lambda i, p, g, b: {"context": chat(p), "response1": (g, b)[i % 2], "response2": (b, g)[i % 2],
                            "domain": "general", "language": "english", "overall_preference": (-2, 2)[i % 2],
                            "individual_preference": [{"score": -2, "reasoning": "It is right and short, so it wins"}]},
        2.0),
    "comparisons": (
        lambda i, p, g, b: {"prompt": p, "response_a": (g, b)[i % 2], "response_b": (b, g)[i % 2],
                            "verdict": ("[[A>>B]]", "B>A")[i % 2]}, 0.0),
    "votes and labels of posts": (
        lambda i, p, g, b: {"post_id": "x1", "domain": "ask", "upvote_ratio": 0.98, "history": p, "c_root_id_A": "a",
                            "created_at_utc_A": 1, "score_A": 5, "score_B": 2, "human_ref_A": g, "human_ref_B": b,
                            "labels": 1, "seconds_difference": 5.0, "score_ratio": 2.5}, 3.0),
    "an arena's conversations": (
        lambda i, p, g, b: {"question_id": "x", "model_a": "m", "model_b": "n", "winner": "model_" + "ab"[i % 2],
                            "judge": "author_1", "conversation_a": chat(p, (g, b)[i % 2]),
                            "conversation_b": chat(p, (b, g)[i % 2]), "turn": 1, "anony": True, "language": "English",
                            "tstamp": 1.5e9, "openai_moderation": {"category_scores": {"violence": 0.1}}}, 0.0),
    "a flag for each response, rounds as JSON": (
        lambda i, p, g, b: {"id": i, "model_a": "m", "model_b": "n", "prompt": json.dumps([p]),
                            "response_a": json.dumps([g]), "response_b": json.dumps([b]),
                            "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, 0.0),
    "a tree": (
        lambda i, p, g, b: {"message_tree_id": "t", "tree_state": "ready", "prompt": {
            "message_id": "t", "text": p, "role": "prompter", "lang": "en", "replies": [
                {"text": b, "role": "assistant", "rank": 1, "replies": []},
                {"text": g, "role": "assistant", "rank": 0, "replies": []},
                {"text": "deleted", "role": "assistant", "rank": 2, "replies": [], "deleted": True}]}}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_good_answer_is_preferred_in_every_row(name: str, tmp_path: Path):
    shape, margin = PAIRS[name]
    assert [
        (turns(row), row.chosen, row.rejected, row.margin) if isinstance(row, Row) else row.reason
        for row in read_rows(file_of(shape, tmp_path))
    ] == [([p], g, b, margin) for p, g, b in zip(PROMPTS, GOOD, BAD, strict=True)]


def test_messages_of_a_csv_file_are_messages(tmp_path: Path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow([str(chat("p")), str(chat("p", "it's good")[1:]), json.dumps(chat("p", "bad"))])
    (row,) = read_rows(Source(str(tmp_path / "a.csv")))
    assert isinstance(row, Row)
    assert (turns(row), row.chosen, row.rejected) == (["p"], "it's good", "bad")


# What comes before the answer ---------------------------------------------------------------------------------------

BEFORE: dict[str, tuple[Shape, list[str]]] = {
    "a history of pairs": (
        lambda i, p, g, b: {"instruction": p, "input": "", "history": [["Hi", "Hello"], ["So", "Yes"]], "chosen": g,
                            "rejected": b}, ["Hi", "Hello", "So", "Yes"]),
    "a history of messages": (
        lambda i, p, g, b: {"prompt": p, "chat_history": chat("Hi", "Hello"), "chosen": g, "rejected": b},
        ["Hi", "Hello"]),
    "a system prompt": (
        lambda i, p, g, b: {"system_prompt": "Be kind.", "prompt": p, "chosen": g, "rejected": b}, ["Be kind."]),
    "a system message": (
        lambda i, p, g, b: {"systemMessage": "Be kind.", "prompt": p, "chosen": g, "rejected": b}, ["Be kind."]),
    "a transcript": (
        lambda i, p, g, b: {"prompt": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {p}\n\nAssistant:",
                            "chosen": f" {g}", "rejected": f" {b}"}, ["Hi", "Hello"]),
    "a transcript of single lines": (
        lambda i, p, g, b: {"prompt": f"User: Hi\nAssistant: Hello\nUser: {p}\nAssistant:", "chosen": g, "rejected": b},
        ["Hi", "Hello"]),
    "a transcript in the answers": (
        lambda i, p, g, b: {"chosen": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {p}\n\nAssistant: {g}",
                            "rejected": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {p}\n\nAssistant: {b}"},
        ["Hi", "Hello"]),
    "an answer that repeats the transcript": (
        lambda i, p, g, b: {"prompt": f"Human: {p}\n\nAssistant:", "chosen": f"Human: {p}\n\nAssistant: {g}",
                            "rejected": f"Human: {p}\n\nAssistant: {b}"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
def test_what_was_said_before_is_in_the_prompt(name: str, tmp_path: Path):
    shape, before = BEFORE[name]
    rows = list(read_rows(file_of(shape, tmp_path)))
    assert [turns(row) if isinstance(row, Row) else row.reason for row in rows] == [[*before, p] for p in PROMPTS]
    assert [row.chosen for row in rows if isinstance(row, Row)] == list(GOOD)


# Single answers -----------------------------------------------------------------------------------------------------

DEMONSTRATIONS: dict[str, Shape] = {
    "messages": lambda i, p, g, b: {"messages": chat(p, g)},
    "conversations": lambda i, p, g, b: {"id": str(i), "conversations": share(p, g)},
    "instruction": lambda i, p, g, b: {"instruction": p, "input": "", "output": g},
    "completion": lambda i, p, g, b: {"prompt": p, "completion": g},
    "text": lambda i, p, g, b: {"text": f"### Human: {p}\n### Assistant: {g}"},
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_good_answers_alone_are_demonstrations(name: str, tmp_path: Path):
    source = file_of(DEMONSTRATIONS[name], tmp_path)
    assert layout(source).form == "demonstrations"
    found = [(turns(row), row.chosen, row.rejected) for row in read_rows(source) if isinstance(row, Row)]
    assert found == [([p], g, None) for p, g in zip(PROMPTS, GOOD, strict=True)]


THUMBS: dict[str, Shape] = {
    "desirable": lambda i, p, g, b: {
        "prompt": chat(p), "completion": chat(p, (b, g)[i % 2])[1:], "label": ("undesirable", "desirable")[i % 2]},
    "kto_tag": lambda i, p, g, b: {"messages": chat(p, (b, g)[i % 2]), "kto_tag": bool(i % 2)},
    "-1 and 1": lambda i, p, g, b: {"prompt": p, "response": (b, g)[i % 2], "feedback": (-1, 1)[i % 2]},
    "thumbs": lambda i, p, g, b: {"question": p, "answer": (b, g)[i % 2], "thumbs": ("👎", "👍")[i % 2]},
}  # fmt: skip


@pytest.mark.parametrize("name", THUMBS)
def test_labels_in_words_and_numbers(name: str, tmp_path: Path):
    rows = [row for row in read_rows(file_of(THUMBS[name], tmp_path)) if isinstance(row, Row)]
    assert [(row.chosen, row.rejected) for row in rows] == [
        (None, BAD[0]),
        (GOOD[1], None),
        (None, BAD[2]),
        (GOOD[3], None),
    ]


ANSWERS: dict[str, tuple[Shape, str]] = {
    "ground_truth": (lambda i, p, g, b: {"messages": chat(p), "ground_truth": "33", "dataset": "sums"}, "33"),
    "nested ground_truth": (
        lambda i, p, g, b: {"data_source": "own/sums", "prompt": chat(p), "ability": "math",
                            "reward_model": {"style": "rule", "ground_truth": "33"},
                            "extra_info": {"split": "train", "index": i}}, "33"),
    "nested as JSON": (
        lambda i, p, g, b: {"prompt": p, "reward_model": json.dumps({"style": "rule", "ground_truth": 33})}, "33"),
    "formula in a sentence": (lambda i, p, g, b: {"prompt": chat(p), "solution": "It is $33$."}, "33"),
    "boxed": (
        lambda i, p, g, b: {"problem": p, "level": "Level 5", "type": "Algebra",
                            "solution": "First $a$, then \\boxed{1}, so \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
    "solution beside the answer": (
        lambda i, p, g, b: {"problem": p, "solution": "Multiply. \\boxed{33}", "answer": "33"}, "33"),
    "hashes": (lambda i, p, g, b: {"question": p, "answer": "3 * 11 = 33\n#### 33"}, "33"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_correct_answers_are_found(name: str, tmp_path: Path):
    shape, answer = ANSWERS[name]
    source = file_of(shape, tmp_path)
    assert layout(source).form == "prompt_answer"
    rows = [row for row in read_rows(source) if isinstance(row, Row)]
    assert [(turns(row), row.answer) for row in rows] == [([p], answer) for p in PROMPTS]


def test_a_worked_solution_is_a_good_answer(tmp_path: Path):
    rows = read_rows(file_of(ANSWERS["solution beside the answer"][0], tmp_path))
    assert {row.chosen for row in rows if isinstance(row, Row)} == {"Multiply. \\boxed{33}"}


CHOICES: dict[str, Shape] = {
    "index": lambda i, p, g, b: {"question": p, "subject": "bio", "choices": [g, b, "none"], "answer": i % 3},
    "letter": lambda i, p, g, b: {"question": p, "options": [g, b, "none"], "answer": "ABC"[i % 3]},
    "index from 1": lambda i, p, g, b: {"question": p, "options": [g, b, "none"], "answer": i % 3 + 1},
    "text": lambda i, p, g, b: {"question": p, "options": [g, b, "none"], "answer": (g, b, "none")[i % 3]},
    "columns": lambda i, p, g, b: {"question": p, "A": g, "B": b, "C": "none", "answer": "ABC"[i % 3]},
    "option_a": lambda i, p, g, b: {"question": p, "option_a": g, "option_b": b, "option_c": "none",
                                    "correct_option": "abc"[i % 3]},
    "numbered columns": lambda i, p, g, b: {"sentence": p, "option1": g, "option2": b, "option3": "none",
                                            "answer": "123"[i % 3]},
    "opa": lambda i, p, g, b: {"question": p, "opa": g, "opb": b, "opc": "none", "cop": i % 3},
    "labels of their own": lambda i, p, g, b: {
        "question": p, "choices": {"text": [g, b, "none"], "label": ["1", "2", "3"]}, "answerKey": "123"[i % 3]},
    "an object": lambda i, p, g, b: {"question": p, "options": {"A": g, "B": b, "C": "none"}, "answer": "ABC"[i % 3]},
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_listed_and_the_answer_is_a_letter(name: str, tmp_path: Path):
    source = file_of(CHOICES[name], tmp_path)
    assert layout(source).form == "choices"
    rows = [row for row in read_rows(source) if isinstance(row, Row)]
    assert [row.answer for row in rows] == ["A", "B", "C", "A"]
    assert turns(rows[0]) == [f"{PROMPTS[0]}\n\nA. {GOOD[0]}\nB. {BAD[0]}\nC. none"]


# What is dropped, and only that -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "winners", [("model_a", "tie", "tie (bothbad)", "both_bad"), ("A", "tie", "Both are good", "neither")]
)
def test_a_tie_is_no_preference(winners: tuple[str, ...], tmp_path: Path):
    source = file_of(lambda i, p, g, b: {"prompt": p, "answer_a": g, "answer_b": b, "winner": winners[i]}, tmp_path)
    first, *others = read_rows(source)
    assert isinstance(first, Row)
    assert [one.reason for one in others if isinstance(one, Fault)] == ["neither response is better"] * 3


def test_a_strength_of_0_is_a_tie(tmp_path: Path):
    source = file_of(
        lambda i, p, g, b: {"prompt": p, "response_1": g, "response_2": b, "preference_strength": (-3, 0, 1, 2)[i]},
        tmp_path,
    )
    found = [(r.chosen, r.margin) if isinstance(r, Row) else r.reason for r in read_rows(source)]
    assert found == [(GOOD[0], 3.0), "neither response is better", (BAD[2], 1.0), (BAD[3], 2.0)]


def test_one_bad_answer_among_several_is_left_out_alone(tmp_path: Path):
    source = file_of(
        lambda i, p, g, b: {
            "prompt": p,
            "responses": [g, b, ("", None, "third", "fourth")[i]],
            "scores": [3, 1, (2, 2, None, 2)[i]],
        },
        tmp_path,
    )
    found = [(r.number, r.margin if isinstance(r, Row) else r.reason) for r in read_rows(source)]
    left_out = "one of several answers is left out: "
    assert found == [
        (1, 2.0), (1, left_out + "empty text"), (2, 2.0), (2, left_out + "response is missing"), (3, 2.0),
        (3, left_out + "score is not a number"), (4, 2.0), (4, 1.0), (4, 1.0),
    ]  # fmt: skip


def test_a_tree_gives_the_pairs_of_every_turn(tmp_path: Path):
    later = {"role": "prompter", "text": "Really?", "replies": [
        {"role": "assistant", "text": "Yes.", "rank": 0, "replies": []},
        {"role": "assistant", "text": "No.", "rank": 1, "replies": []},
        {"role": "assistant", "text": "Who knows.", "rank": 2, "replies": []},
        {"role": "assistant", "text": "unranked", "rank": None, "replies": []}]}  # fmt: skip
    source = file_of(
        lambda i, p, g, b: {"role": "prompter", "text": p, "replies": [
            {"role": "assistant", "text": g, "replies": [later]}]}, tmp_path,
    )  # fmt: skip
    first = [r for r in read_rows(source) if isinstance(r, Row) and r.number == 1]
    assert [(r.chosen, r.rejected, r.margin) for r in first] == [
        ("Yes.", "Who knows.", 2.0), ("Yes.", "No.", 1.0), ("No.", "Who knows.", 1.0)]  # fmt: skip
    assert {tuple(turns(row)) for row in first} == {(PROMPTS[0], GOOD[0], "Really?")}
    widest = [r for r in read_rows(source, pairs="best_worst") if isinstance(r, Row)]
    assert [(r.number, r.rejected) for r in widest] == [(i, "Who knows.") for i in (1, 2, 3, 4)]


MEDIA: dict[str, Shape] = {
    "a column": lambda i, p, g, b: {
        "conversations": share(f"<image>{p}"), "chosen": share("", g)[1], "rejected": share("", b)[1],
        "images": [f"{i}.png"]},
    "parts": lambda i, p, g, b: {
        "prompt": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": p}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": g}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": b}]}], "images": []},
    "a path": lambda i, p, g, b: {"prompt": p, "chosen": g, "rejected": b, "image": {"path": "a.png", "bytes": None}},
}  # fmt: skip


@pytest.mark.parametrize("name", MEDIA)
def test_images_are_refused_and_never_text(name: str, tmp_path: Path):
    reasons = [row.reason for row in read_rows(file_of(MEDIA[name], tmp_path)) if isinstance(row, Fault)]
    assert reasons == ["images, sound or video: only text can be trained on"] * 4


# Nothing is lost in silence -----------------------------------------------------------------------------------------


def test_columns_of_no_use_and_copies_are_named(tmp_path: Path):
    def shape(i: int, p: str, g: str, b: str) -> dict[str, Any]:
        pair = {"prompt": p, "chosen": chat(p, g), "rejected": chat(p, b), "messages": chat(p, g)}
        return {**pair, "prompt_id": "x", "topic": "tea", "tries": 3, "kind": "short", "safe": True, "empty": None}

    lines = list(layout(file_of(shape, tmp_path)).lines())
    assert lines == [
        "chosen: chosen, rejected: rejected, prompt: prompt",
        "not used: messages (repeats what is used), prompt_id, topic, tries (numbers), kind (short words), safe, "
        "empty (objects, marks or nothing)",
    ]


LOST: dict[str, tuple[Shape, str]] = {
    "answers": (
        lambda i, p, g, b: {"prompt": p, "text_x": g, "text_y": b},
        r"read as prompts \(prompt: prompt\), but nothing would read\n  text_x seems to hold texts: an answer or "
        r"a part of the prompt.*columns\.chosen=text_x\n  text_y .*columns\.ignore=\[text_x,text_y\]"),
    "a context": (
        lambda i, p, g, b: {"question": p, "chosen": g, "rejected": b, "context": f"A long text on {p}"},
        r"context seems to hold texts.*columns\.prompt=\[question,context\]"),
    "a system text": (
        lambda i, p, g, b: {"prompt": p, "chosen": g, "rejected": b, "persona": "You are a kind old sailor."},
        r"persona seems to hold a system text: columns\.system=persona"),
    "scores": (
        lambda i, p, g, b: {"prompt": p, "response": g, "helpfulness": i},
        r"helpfulness seems to hold scores; write all answers to a prompt into one row"),
    "stars": (
        lambda i, p, g, b: {"prompt": p, "response": g, "label": (5, 1, 1, 4)[i]},
        r"label holds 5, and a label is 1 \(good\) or 0 or -1 \(bad\)"),
    "turns": (
        lambda i, p, g, b: {"prompt": p, "chosen": g, "rejected": b, "earlier": chat("Hi there", "Hello to you")},
        r"earlier seems to hold turns of a conversation: columns\.prompt=earlier"),
    "choices": (
        lambda i, p, g, b: {"question": p, "distractors": [g, b]},
        r"distractors seems to hold a list of texts: answers or choices: columns\.responses=distractors"),
    "inner answers": (
        lambda i, p, g, b: {"prompt": p, "replies_of_all": [{"said": g}, {"said": b}]},
        r"replies_of_all\[\]\.said seems to hold texts"),
    "a message a row": (
        lambda i, p, g, b: {"message_id": str(i), "parent_id": None, "text": p, "role": "prompter"},
        r"a row a message of a tree; read the file of whole trees"),
    "an unclear number": (
        lambda i, p, g, b: {"prompt": p, "answer1": g, "answer2": b, "label": i % 2},
        r"unclear which response the numbers of label mean; if 0 means the first, set columns\.winner=label"),
    "no form": (
        lambda i, p, g, b: {"frage": p, "gut": g, "schlecht": b},
        r"rows of no known form; keys found: frage \(texts.*; say what they are, as in columns\.prompt=NAME"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_nothing_would_read_is_an_error_with_the_key_to_set(name: str, tmp_path: Path):
    shape, said = LOST[name]
    with pytest.raises(DataError, match=rf"(?s)a\.jsonl: .*{said}"):
        layout_of(file_of(shape, tmp_path))


def test_a_column_that_begins_late_is_read_or_its_rows_are_faults(tmp_path: Path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [
        *[pair] * 120,
        {**pair, "system": "s"},
        {**pair, "remark": "which is none of the known words"},
        {**pair, "n": 3},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    late = list(read_rows(Source(str(tmp_path / "a.jsonl"))))[120:]
    assert isinstance(late[0], Row)
    assert turns(late[0]) == ["s", "p"]
    assert isinstance(late[1], Fault)
    assert late[1].reason == "a column that the first rows lack, and that no form can read"
    assert isinstance(late[2], Row)


# Columns that the user names ----------------------------------------------------------------------------------------


def named(shape: Shape, folder: Path, **columns: str | tuple[str, ...]) -> Source:
    paths = {role: (found,) if isinstance(found, str) else found for role, found in columns.items()}
    return Source(file_of(shape, folder).path, columns=paths)


def test_named_columns_are_read_with_dots_into_objects(tmp_path: Path):
    source = named(
        lambda i, p, g, b: {"frage": {"text": p}, "antworten": {"gut": g, "schlecht": b},
                            "bemerkung": "Das war sehr gut"},
        tmp_path, prompt="frage.text", chosen="antworten.gut", rejected="antworten.schlecht", ignore="bemerkung",
    )  # fmt: skip
    rows = [row for row in read_rows(source) if isinstance(row, Row)]
    assert [(turns(row), row.chosen, row.rejected) for row in rows] == [
        ([p], g, b) for p, g, b in zip(PROMPTS, GOOD, BAD, strict=True)
    ]
    assert list(layout(source).lines())[1] == "not used: bemerkung (ignored)"


def test_several_columns_are_one_prompt_or_several_responses(tmp_path: Path):
    source = named(
        lambda i, p, g, b: {"context": f"On {p}", "question": p, "x": b, "y": g, "sx": 1, "sy": 4},
        tmp_path, prompt=("context", "question"), responses=("x", "y"), scores=("sx", "sy"),
    )  # fmt: skip
    (row, *_) = read_rows(source)
    assert isinstance(row, Row)
    assert (turns(row), row.chosen, row.margin) == ([f"On {PROMPTS[0]}\n\n{PROMPTS[0]}"], GOOD[0], 3.0)


def test_a_named_winner_counts_from_the_first_response(tmp_path: Path):
    def shape(i: int, p: str, g: str, b: str) -> dict[str, Any]:
        return {"prompt": p, "answer1": (g, b)[i % 2], "answer2": (b, g)[i % 2], "label": i % 2}

    rows = read_rows(named(shape, tmp_path, winner="label"))
    assert [row.chosen for row in rows if isinstance(row, Row)] == list(GOOD)
    rows = read_rows(named(shape, tmp_path, winner="label", responses=("answer2", "answer1")))
    assert [row.chosen for row in rows if isinstance(row, Row)] == list(BAD)


def test_a_named_column_that_is_not_there_is_told(tmp_path: Path):
    source = named(lambda i, p, g, b: {"prompt": p, "gut": g, "rejected": b}, tmp_path, chosen="gud")
    with pytest.raises(DataError, match=r"columns\.chosen: no column gud; did you mean gut\?"):
        layout_of(source)
