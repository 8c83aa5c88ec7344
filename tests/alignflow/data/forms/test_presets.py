"""Well-known data sets: rows built like theirs give the pairs that they mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignflow.data.formats import layout_of, read_rows
from alignflow.data.forms.presets import PRESETS
from alignflow.data.rows import Row
from alignflow.data.sources import Source
from tasks.data.settings import paths_of

P, G, B = "How long should tea steep?", "About four minutes, if it is black.", "It depends on many things."
ASKED = [{"role": "user", "content": P}]


def answered(text: str) -> list[dict[str, str]]:
    return [*ASKED, {"role": "assistant", "content": text}]


LIKE: dict[str, tuple[dict[str, Any], tuple[str | None, str | None, float, str | None]]] = {
    "ultrafeedback": (
        {"prompt": P, "prompt_id": "ab", "chosen": answered(G), "rejected": answered(B), "messages": answered(G),
         "score_chosen": 8.0, "score_rejected": 6.5}, (G, B, 1.5, None)),
    "helpsteer3": (
        {"domain": "general", "language": "english", "context": ASKED, "response1": B, "response2": G,
         "overall_preference": 2, "individual_preference": [{"score": 2, "reasoning": "Response 2 says how long."}]},
        (G, B, 2.0, None)),
    "hh": ({"chosen": f"\n\nHuman: {P}\n\nAssistant: {G}", "rejected": f"\n\nHuman: {P}\n\nAssistant: {B}"},
           (G, B, 0.0, None)),
    "pku-saferlhf": (
        {"prompt": P, "prompt_source": "x", "response_0": B, "response_1": G, "is_response_0_safe": True,
         "response_0_harm_category": {"Fraud": False}, "better_response_id": 1, "safer_response_id": 0},
        (G, B, 0.0, None)),
    "nectar": (
        {"prompt": f"\n\nHuman: {P}\n\nAssistant: ", "answers": [
            {"answer": B, "model": "m", "rank": 3.0}, {"answer": G, "model": "n", "rank": 1.0}],
         "turns": 1, "num_responses": 2, "source": ["x"], "good_natured": True}, (G, B, 2.0, None)),
    "shp": (
        {"post_id": "x", "domain": "ask", "history": P, "human_ref_A": B, "human_ref_B": G, "score_A": 2,
         "score_B": 7, "labels": 0, "score_ratio": 3.5}, (G, B, 5.0, None)),
    "orca-dpo": ({"system": "", "question": P, "chosen": G, "rejected": B}, (G, B, 0.0, None)),
    "openassistant": (
        {"message_tree_id": "t", "prompt": {"text": P, "role": "prompter", "replies": [
            {"text": B, "role": "assistant", "rank": 1, "replies": []},
            {"text": G, "role": "assistant", "rank": 0, "replies": []}]}}, (G, B, 1.0, None)),
    "gsm8k": ({"question": P, "answer": "2 + 2 = 4\n#### 4"}, ("2 + 2 = 4\n#### 4", None, 0.0, "4")),
    "math": ({"problem": P, "level": "Level 1", "type": "Algebra", "solution": "So it is $\\boxed{4}$."},
             ("So it is $\\boxed{4}$.", None, 0.0, "4")),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_rows_like_those_of_the_data_set_are_read(name: str, tmp_path: Path):
    record, expected = LIKE[name]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    named, plain = Source(str(path), columns=paths_of(PRESETS[name].columns)), Source(str(path))
    for source in (named, plain) if name != "pku-saferlhf" else (named,):
        (row,) = read_rows(source)
        assert isinstance(row, Row)
        assert (row.prompt, row.chosen, row.rejected, row.margin, row.answer) == (P, *expected)
    assert layout_of(named) is not None


def test_a_commit_is_named_in_full():
    assert all(len(preset.revision or "0" * 40) == 40 for preset in PRESETS.values())
    assert all("/" in preset.hub for preset in PRESETS.values())
