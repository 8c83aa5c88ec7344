"""Rows from the records of each form."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from alignflow.data.forms.faults import (
    ALL_TIED,
    BAD_CHOICE,
    BAD_MARGIN,
    BAD_SCORE,
    BAD_WINNER,
    EMPTY,
    MEDIA,
    NO_RANKED_REPLIES,
    NOT_AN_ANSWER,
    ONE_RESPONSE,
    ORDER,
    PROMPT_END,
    TIE,
    UNLIKE_LENGTHS,
    Unusable,
)
from alignflow.data.forms.kinds import is_empty
from alignflow.data.forms.layout import Layout
from alignflow.data.forms.names import words_of_name
from alignflow.data.forms.turns import (
    ROLES,
    Turns,
    apart,
    check_order,
    prompt_turns,
    turns_of,
    with_system,
)
from alignflow.data.forms.values import at, decoded, label_of, number_of, plain, right_answer, text_of
from alignflow.data.rows import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ORDINALS = {"first": 0, "second": 1, "third": 2, "left": 0, "right": 1, "one": 0, "two": 1}
TIES = re.compile(r"\b(tie|tied|both|neither|equal|same|draw|none)\b")
COMPARISON = re.compile(r"\[*\s*(\w)\s*(<+|>+|=+)\s*(\w)\s*\]*")


class Fields:
    """A record by the roles of its columns."""

    def __init__(self, content: Mapping[str, Any], layout: Layout) -> None:
        self._content, self.layout = content, layout
        self.left_out: list[str] = []
        """Why single answers of several are not used."""

    def __contains__(self, role: str) -> bool:
        return role in self.layout.roles

    def __getitem__(self, role: str) -> Any:
        """Return a role's value, or None; of several columns, the list of their values."""
        paths = self.layout.roles.get(role, ())
        if len(paths) > 1:
            return [at(self._content, path) for path in paths]
        return at(self._content, paths[0]) if paths else None

    def name(self, role: str) -> str:
        """Return the name of a role's column, for messages."""
        return " + ".join(self.layout.roles.get(role, (role,)))


def _prompt(fields: Fields) -> Turns | None:
    """Return the turns before the answer, from the columns of the prompt and of earlier turns; None without these."""
    if not is_empty(decoded(fields["media"])):
        raise Unusable(MEDIA)
    value, name = None if fields.layout.rounds else fields["prompt"], fields.name("prompt")
    if isinstance(value, list) and len(fields.layout.roles["prompt"]) > 1:
        value = "\n\n".join(text_of(part, name) for part in value if not is_empty(part))
    more = fields["input"]
    if isinstance(value, str) and isinstance(more, str) and more.strip():
        value = f"{value}\n{more}"  # the second part of an instruction in Alpaca's form
    history = decoded(fields["history"])
    before = () if is_empty(history) else turns_of(history, fields.name("history"))
    if is_empty(value) and value is not None and not before:
        raise Unusable(EMPTY)
    return before + (() if is_empty(value) else prompt_turns(value, name)) or None


def _row(
    fields: Fields, prompt: Turns, chosen: str | None = None, rejected: str | None = None, margin: float = 0.0
) -> Row:
    messages = with_system(prompt, fields["system"], fields["tools"])
    check_order(messages)
    if messages[-1]["role"] != "user":
        raise Unusable(PROMPT_END)
    return Row(messages, chosen, rejected, margin, right_answer(fields["answer"]))


def _answers(fields: Fields, values: Mapping[str, Any]) -> tuple[Turns, list[str]]:
    """Return the prompt and the answers' texts."""
    return apart(_prompt(fields), [turns_of(value, name) for name, value in values.items()])


def _step_pair(fields: Fields) -> list[Row]:
    """Return two next steps after a prefix, with their white space: it says where a step begins."""
    prompt, prefix = _prompt(fields), fields["prefix"]
    if prompt is None:
        raise Unusable("prompt is missing")
    for role in ("chosen", "rejected", *(["prefix"] if prefix != "" else [])):
        text_of(fields[role], fields.name(role))
    row = _row(fields, prompt, fields["chosen"], fields["rejected"], _margin(fields))
    return [replace(row, prefix=prefix)]


def _preference(fields: Fields) -> list[Row]:
    if fields["prefix"] is not None:
        return _step_pair(fields)
    if "best_first" in fields:
        pair = fields["best_first"]
        if not isinstance(decoded(pair), list) or len(decoded(pair)) != 2:
            raise Unusable(ONE_RESPONSE)
        chosen, rejected = decoded(pair)
    else:
        rejected = fields["rejected"]
        role = next(role for role in ("chosen", "response", "chat") if role in fields)
        chosen = fields[role]
    prompt, (better, worse) = _answers(fields, {"chosen": chosen, "rejected": rejected})
    return [_row(fields, prompt, better, worse, _margin(fields))]


def _margin(fields: Fields) -> float:
    """Return the margin, or the difference of the two scores, or 0."""
    value = fields["margin"]
    scores = [fields["score_chosen"], fields["score_rejected"]]
    pair = decoded(fields["pair_scores"])
    if value is None and None in scores:
        if not isinstance(pair, list) or len(pair) != 2:
            return 0.0
        first, second = (number_of(score, BAD_MARGIN) for score in pair)
        return abs(first - second)  # in the order of the pair before it was sorted, or after
    margin = number_of(value, BAD_MARGIN) if value is not None else _difference(scores)
    if margin < 0:
        raise Unusable(BAD_MARGIN)
    return margin


def _difference(scores: Sequence[Any]) -> float:
    chosen, rejected = (number_of(score, BAD_MARGIN) for score in scores)
    return chosen - rejected


def _responses(fields: Fields) -> list[Any]:
    values, name = decoded(fields["responses"]), fields.name("responses")
    if values is None:
        raise Unusable(f"{name} is missing")
    if not isinstance(values, list):
        raise Unusable(f"{name} is not a list")
    return values


def _ranked(fields: Fields) -> list[Row]:
    """Return all pairs of responses with different scores, the largest margin first."""
    role = "scores" if "scores" in fields else "ranks"
    responses, scores = _responses(fields), decoded(fields[role])
    if not isinstance(scores, list):
        raise Unusable(f"{fields.name(role)} is not a list")
    if len(scores) != len(responses):
        raise Unusable(UNLIKE_LENGTHS)
    sign = 1 if role == "scores" else -1  # rank 1 is the best
    judged = zip(responses, (_score(score, sign) for score in scores), strict=True)
    return _pairs(fields, list(judged), ALL_TIED)


def _score(value: Any, sign: int) -> float | str:
    try:
        return sign * number_of(value, BAD_SCORE)
    except Unusable as error:
        return str(error)


def _pairs(fields: Fields, judged: Sequence[tuple[Any, float | str]], tied: str) -> list[Row]:
    """Return the pairs of answers with different scores; an answer that is unusable is left out, its reason kept."""
    scored: list[tuple[Turns, float]] = []
    for response, score in judged:
        try:
            if isinstance(score, str):
                raise Unusable(score)
            turns = _rounds(fields, response) if fields.layout.rounds else turns_of(response, "response")
            if turns[-1]["role"] != "assistant":
                raise Unusable(NOT_AN_ANSWER)
            scored.append((turns, score))
        except Unusable as error:
            fields.left_out.append(str(error))
    if len(scored) < 2:
        raise Unusable(fields.left_out[0] if fields.left_out else ONE_RESPONSE)
    scored.sort(key=lambda found: -found[1])
    prompt, texts = apart(_prompt(fields), [turns for turns, _ in scored])
    rows = [
        _row(fields, prompt, better, worse, high - low)
        for (better, high), (worse, low) in combinations(zip(texts, (score for _, score in scored), strict=True), 2)
        if high > low
    ]
    if not rows:
        raise Unusable(tied)
    return sorted(rows, key=lambda row: -row.margin)


def _rounds(fields: Fields, response: Any) -> Turns:
    """Return a conversation of which questions and answers are two lists."""
    questions, answers = decoded(fields["prompt"]), decoded(response)
    if not (isinstance(questions, list) and isinstance(answers, list) and len(questions) == len(answers)):
        raise Unusable(ORDER)
    return turns_of([list(pair) for pair in zip(questions, answers, strict=True)], fields.name("prompt"))


def _compared(fields: Fields) -> list[Row]:
    responses = _responses(fields)
    if "flags" in fields:
        won = [place for place, flag in enumerate(fields["flags"]) if plain(flag) in {"1", "true"}]
        better, strength = (won[0] if len(won) == 1 else None), 0.0
    else:
        better, strength = _better(fields["winner"], responses, fields)
    if better is None:
        raise Unusable(TIE)
    rows = _pairs(fields, [(text, float(place == better)) for place, text in enumerate(responses)], ALL_TIED)
    margin = strength if fields["margin"] is None else _margin(fields)
    return [Row(row.messages, row.chosen, row.rejected, margin, row.answer) for row in rows]


def _better(value: Any, responses: Sequence[Any], fields: Fields) -> tuple[int | None, float]:
    """Return which response is better, None for a tie, and how much; 0 if that is not said."""
    if value is None:
        raise Unusable(f"{fields.name('winner')} is missing")
    text = plain(value)
    if fields.layout.count == "signed":
        strength = number_of(value, BAD_WINNER)
        return (None if strength == 0 else int(strength > 0)), abs(strength)
    written = [one.strip().lower() if isinstance(one, str) else None for one in responses]
    if text in written:
        return written.index(text), 0.0
    if found := COMPARISON.fullmatch(text):
        left, sign, right = found.groups()
        names = left if sign[0] == ">" else right
        return (None if sign[0] == "=" else _place(names, fields, len(responses))), 0.0
    if TIES.search(text.replace("_", " ")) or "bothbad" in text or (text == "0" and fields.layout.count == "one"):
        return None, 0.0
    return _place(text, fields, len(responses)), 0.0


def _place(text: str, fields: Fields, number: int, reason: str = BAD_WINNER) -> int:
    """Return the place that a number, a letter or a name such as ``model_a`` or ``first`` means."""
    last = (words_of_name(text) or [""])[-1]
    places, count = fields.layout.places, fields.layout.count
    place = -1
    if last in ORDINALS:
        place = ORDINALS[last]
    elif last in places and (count == "names" or not last.isdigit() or last != text):
        place = places.index(last)
    elif last.isdigit():
        place = int(last) - (count == "one" or last != text)
    elif len(last) == 1 and last.upper() in LETTERS:
        place = LETTERS.index(last.upper())
    if not 0 <= place < number:
        raise Unusable(reason)
    return place


def _thumbs(fields: Fields) -> list[Row]:
    role = next(role for role in ("response", "judged_answer", "chat") if role in fields)
    prompt, (text,) = _answers(fields, {fields.name(role): fields[role]})
    good = label_of(fields["label"], fields.name("label"))
    return [_row(fields, prompt, text if good else None, None if good else text)]


def _choices(fields: Fields) -> list[Row]:
    """Return the question with its lettered choices; the correct answer is a letter."""
    prompt = _prompt(fields)
    if prompt is None:
        raise Unusable("prompt is missing")
    texts = list(_options(fields))
    if not 2 <= len(texts) <= len(LETTERS):
        raise Unusable(ONE_RESPONSE)
    value = fields["correct"]
    if value is None:
        raise Unusable(f"{fields.name('correct')} is missing")
    written = [text.lower() for _, text in texts]
    names = [name.lower() for name, _ in texts]
    said = plain(value)
    if said in written:
        place = written.index(said)
    elif said in names:
        place = names.index(said)
    else:
        place = _place(said, fields, len(texts), BAD_CHOICE)
    listed = "\n".join(f"{LETTERS[i]}. {text}" for i, (_, text) in enumerate(texts))
    last = prompt[-1]
    asked = (*prompt[:-1], {"role": last["role"], "content": f"{last['content']}\n\n{listed}"})
    row = _row(fields, asked)  # type: ignore[arg-type]
    return [Row(row.messages, answer=LETTERS[place])]


def _options(fields: Fields) -> Iterator[tuple[str, str]]:
    """Yield name and text of each choice; the name may be empty."""
    value = decoded(fields["choices"])
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        names = value.get("label") or value.get("labels") or [""] * len(value["text"])
        pairs = list(zip(map(str, names), value["text"], strict=False))
    elif isinstance(value, Mapping):
        pairs = [(str(name), text) for name, text in value.items() if text is not None]
    elif isinstance(value, list):
        pairs = [("", one.get("text") if isinstance(one, Mapping) else one) for one in value if one is not None]
    else:
        pairs = []
    for name, text in pairs:
        yield name, text_of(text, fields.name("choices"))


def _prompt_answer(fields: Fields) -> list[Row]:
    answer = right_answer(fields["answer"])
    if answer is None:
        raise Unusable(f"{fields.name('answer')} is missing")
    (row,) = _single(fields)
    if row.chosen is not None:
        return [row]
    told = fields["solution"] if "solution" in fields else fields["answer"]
    solution = told.strip() if isinstance(told, str) else ""
    longer = len(solution) > len(answer)
    return [Row(row.messages, solution if longer else None, row.rejected, 0.0, row.answer)]


def _single(fields: Fields) -> list[Row]:
    """Return a prompt with what is known of its answers, one at most of each kind."""
    good = next((role for role in ("chosen", "response", "chat") if not is_empty(fields[role])), None)
    values = {} if good is None else {fields.name(good): fields[good]}
    if not is_empty(fields["rejected"]):
        values[fields.name("rejected")] = fields["rejected"]
    prompt, texts = _answers(fields, values)
    chosen = texts[0] if good else None
    return [_row(fields, prompt, chosen, texts[-1] if len(texts) > bool(good) else None)]


def _demonstrations(fields: Fields) -> list[Row]:
    role = next(role for role in ("chosen", "response", "chat") if role in fields)
    if is_empty(fields[role]):
        raise Unusable(f"{fields.name(role)} is missing")
    return _single(fields)


def _tree(fields: Fields) -> list[Row]:
    """Return the pairs of ranked replies to each of the user's messages."""
    rows: list[Row] = []
    root = decoded(fields["tree"])
    if not isinstance(root, Mapping):
        raise Unusable(f"{fields.name('tree')} is missing")
    for prompt, replies in _branches(root, ()):
        ranked = [(reply.get("text"), _score(reply.get("rank"), -1)) for reply in replies]
        judged = [(text, score) for text, score in ranked if isinstance(score, float | int)]
        if len(judged) > 1:
            rows += _pairs_of_replies(fields, prompt, judged)
    if not rows:
        raise Unusable(NO_RANKED_REPLIES)
    return rows


def _pairs_of_replies(fields: Fields, prompt: Turns, judged: Sequence[tuple[Any, float]]) -> list[Row]:
    best = sorted(judged, key=lambda found: -found[1])
    return sorted(
        (
            _row(fields, prompt, text_of(better, "text"), text_of(worse, "text"), high - low)
            for (better, high), (worse, low) in combinations(best, 2)
            if high > low
        ),
        key=lambda row: -row.margin,
    )


def _branches(node: Mapping[str, Any], before: Turns) -> Iterator[tuple[Turns, list[Mapping[str, Any]]]]:
    """Yield each conversation that ends with the user, and the assistant's replies to it."""
    role = ROLES.get(str(node.get("role", "")).lower())
    if role not in ("user", "assistant"):
        raise Unusable(NOT_AN_ANSWER)
    turns: Turns = (*before, {"role": role, "content": text_of(node.get("text") or node.get("content"), "text")})
    replies = [one for one in node.get("replies") or [] if isinstance(one, Mapping) and not one.get("deleted")]
    if role == "user":
        yield turns, replies
    for reply in replies:
        yield from _branches(reply, turns)


READERS: Mapping[str, Callable[[Fields], list[Row]]] = {
    "tree": _tree,
    "step_pair": _preference,
    "preference": _preference,
    "ranked": _ranked,
    "compared": _compared,
    "thumbs": _thumbs,
    "choices": _choices,
    "prompt_answer": _prompt_answer,
    "demonstrations": _demonstrations,
    "prompts": _single,
}
"""The reader of each form of ``forms.table``."""
