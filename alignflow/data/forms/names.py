"""What the names of columns say: a table of the names of each role, and the words that longer names are made of.

A name is cut into its words: ``chosen-avg_rating`` and ``chosenAvgRating`` are ``chosen avg rating``. A word for the
better or worse answer, or a number or letter, together with a word for an answer or a measure, gives a role.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

OPTION = re.compile(r"^op([a-h])$")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+")

NAMES: Mapping[str, tuple[str, ...]] = {
    "tree": (".", "prompt", "tree", "message", "root", "conversation"),
    "prompt": (
        *("prompt", "question", "instruction", "query", "problem", "conversations", "messages", "conversation"),
        *("dialogue", "dialog", "user_prompt", "user_input", "user_message", "user", "question_stem", "stem", "ctx"),
        *("post", "context", "history", "sentence", "input", "inputs"),
    ),
    "input": ("input",),
    "history": (
        *("history", "chat_history", "conversation_history", "dialogue_history", "previous_turns", "previous", "past"),
        "context",
    ),
    "system": ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt", "system_text"),
    "tools": ("tools", "functions", "tool_definitions"),
    "chat": (
        *("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns", "prompt", "completion"),
        "text",
    ),
    "prefix": ("prefix", "initial_reason_steps"),
    "chosen": (),
    "rejected": (),
    "best_first": ("output", "chosen_rejected"),
    "response": ("response", "completion", "output", "generation", "reply", "assistant", "model_output"),
    "judged_answer": ("answer",),
    "responses": (
        *("responses", "completions", "answers", "outputs", "candidates", "generations", "replies", "samples"),
        "response",
    ),
    "scores": ("score", "scores", "overall_score", "rating", "ratings", "reward", "rewards", "labels", "grades"),
    "ranks": ("rank", "ranks"),
    "winner": (
        *("better", "winner", "preferred", "preference", "overall_preference", "preference_strength", "best", "chosen"),
        *("better_response", "preferred_response", "best_response", "human_preference", "preference_score", "choice"),
        *("verdict", "label", "labels", "human_label", "safer_response_id"),
    ),
    "flags": (),
    "label": (
        *("label", "kto_tag", "thumb", "thumbs", "feedback", "is_desirable", "desirable", "is_good", "is_chosen"),
        *("liked", "like", "vote", "binary_label", "labels", "good", "rating", "score", "reward"),
    ),
    "margin": ("margin", "score_margin", "preference_margin", "preference_strength", "strength"),
    "score_chosen": (),
    "score_rejected": (),
    "pair_scores": ("rating", "ratings", "scores"),
    "choices": ("choices", "options", "endings", "answer_choices", "candidates"),
    "correct": (
        *("answer", "answer_key", "answer_idx", "answer_index", "answer_id", "correct", "correct_answer"),
        *("correct_option", "correct_choice", "correct_index", "correct_idx", "gold", "gold_index", "label", "target"),
        *("cop", "answers", "solution"),
    ),
    "answer": (
        *("ground_truth", "gold_answer", "final_answer", "correct_answer", "expected_answer", "reference_answer"),
        *("target", "gold", "expected", "answer", "solution"),
    ),
    "solution": ("solution", "answer", "worked_solution", "rationale"),
    "media": (
        *("image", "images", "img", "picture", "pictures", "video", "videos", "audio", "audios", "image_url"),
        *("image_path", "pixel_values"),
    ),
}
"""Names of each role, the surest first. Roles without names have longer names alone, as ``meaning`` reads them."""

CHOSEN = {"chosen", "preferred", "accepted", "better", "winning", "positive", "pos", "good", "best", "accept", "yw"}
REJECTED = {
    *("rejected", "dispreferred", "nonpreferred", "unpreferred", "worse", "losing", "negative", "neg", "bad", "worst"),
    *("reject", "loser", "yl"),
}
NOT = {"non", "not", "less", "un", "dis"}
"""Words that turn one for the better answer round."""
ANSWERS = {
    *("response", "responses", "answer", "answers", "output", "outputs", "completion", "completions", "generation"),
    *("reply", "message", "messages", "conversation", "conversations", "candidate", "ref", "continuation", "summary"),
    *("turns", "dialogue"),
}
MEASURES = {"score", "scores", "rating", "ratings", "reward", "rewards", "grade", "quality", "helpfulness", "logit"}
STRENGTH = {"strength", "overall"}
"""Words of a signed preference, whichever of its numbers are seen: below 0 the first response is better."""
WINS = {"winner", "win", "wins", "won"}
CHOICES = {"option", "choice", "opt", "op", "ending"}
KEYS = {"id", "index", "idx", "key", "letter", "number", "label", "option", "position"}
FILL = {
    *("text", "full", "content", "contents", "raw", "string", "str", "body", "value", "the", "human", "model", "llm"),
    *("avg", "average", "mean", "overall", "total", "final", "assistant", "generated", "only"),
}
NO_USE = {
    *("id", "ids", "uid", "uuid", "guid", "source", "sources", "dataset", "datasets", "origin", "model", "models"),
    *("meta", "metadata", "info", "extra", "lang", "language", "locale", "time", "timestamp", "tstamp", "date"),
    *("created", "updated", "author", "url", "urls", "uri", "link", "links", "split", "category", "categories"),
    *("topic", "topics", "domain", "domains", "subject", "task", "tasks", "type", "types", "tag", "tags", "annotator"),
    *("annotators", "annotations", "judge", "turn", "num", "count", "counts", "length", "len", "token", "tokens"),
    *("hash", "sha", "md", "index", "idx", "version", "licence", "license", "quote", "quotes", "critique", "comment"),
    *("comments", "justification", "reason", "reasoning", "explanation", "rationale", "feedback", "statement"),
    *("elaboration", "similar", "unprocessed", "individual", "principle", "generator", "temperature", "seed"),
    *(
        "config",
        "params",
        "status",
        "state",
        "flag",
        "flags",
        "safe",
        "safer",
        "severity",
        "level",
        "toxic",
        "toxicity",
    ),
    *("moderation", "truncated", "country", "emojis", "synthetic", "review", "detoxify", "ratio", "difference", "utc"),
    *("upvote", "ability", "style", "difficulty", "file", "filename", "path", "row", "worker", "batch", "order"),
    *("anony", "concept", "flaw", "name", "tie"),
}
"""Last words of the names of columns that no training uses."""
NO_USE_ABOVE = {
    "meta",
    "metadata",
    "info",
    "extra",
    "annotations",
    "moderation",
    "config",
    "quotes",
    "detoxify",
    "usage",
}
"""Words of the names of objects whose whole content no training uses."""


class Meaning(NamedTuple):
    """A role that a name may stand for."""

    role: str
    rank: int
    """0 for the surest of the role's names."""
    position: str = ""
    """Number or letter of one of several columns of the role."""


def words_of_name(name: str) -> list[str]:
    """Return the words of a name, in lower case; ``opa`` to ``oph`` are options."""
    return [part for word in WORD.findall(name) for part in OPTION.sub(r"op \1", word.lower()).split()]


def meanings(path: str) -> list[Meaning]:
    """Return the roles that a column may have by its name."""
    if path == ".":
        return [Meaning("tree", 0)]
    last = path.rpartition(".")[2]
    names = [words_of_name(last)]
    if "[]." in path:
        return _in_objects(names[0])
    if "." in path:
        above = [word for word in words_of_name(path) if word not in FILL]
        names = [above, *names] if set(names[0]) <= FILL else [*names, above]
    found = [meaning for words in names for meaning in (*_in_table(words), *_composed(words))]
    return list({(meaning.role, meaning.position): meaning for meaning in reversed(found)}.values())[::-1]


def _in_objects(words: list[str]) -> list[Meaning]:
    """Return the roles of a key of the objects of a list, each of which holds an answer."""
    told = [word for word in words if word not in FILL]
    if told == ["rank"]:
        return [Meaning("ranks", 0)]
    if told and set(told) <= MEASURES:
        name = "_".join(words)
        return [Meaning("scores", NAMES["scores"].index(name) if name in NAMES["scores"] else 30)]
    if set(told) <= ANSWERS and set(words) & (ANSWERS | {"text", "content", "value", "body"}):
        return [Meaning("responses", len(words))]
    return []


def _in_table(words: list[str]) -> list[Meaning]:
    name = "_".join(words)
    return [Meaning(role, names.index(name)) for role, names in NAMES.items() if name in names]


def _composed(words: list[str]) -> list[Meaning]:
    """Return the roles of a name of several words, and of a word for the better or worse answer alone."""
    sides = [word for word in words if word in CHOSEN | REJECTED]
    if len(sides) == 1:
        rest = [word for word in words if word not in (*sides, *NOT)]
        good = sides[0] in CHOSEN and not NOT.intersection(words)
        return _of_side("chosen" if good else "rejected", rest)
    places = [word for word in words if len(word) == 1 and (word.isdigit() or word in "abcdefgh")]
    if len(places) == 1:
        return _of_place(places[0], [word for word in words if word not in places])
    if words[:1] == ["system"] and set(words[1:]) <= FILL | {"prompt", "message", "instruction"}:
        return [Meaning("system", 9)]
    return []


def _of_side(side: str, rest: list[str]) -> list[Meaning]:
    told = [word for word in rest if word not in FILL]
    if any(word in MEASURES for word in told) and set(told) <= MEASURES | ANSWERS:
        return [Meaning(f"score_{side}", len(rest))]
    if set(told) <= ANSWERS and "model" not in rest:
        return [Meaning(side, len(rest))]
    if side == "chosen" and KEYS.intersection(told) and set(told) <= ANSWERS | KEYS:
        return [Meaning("winner", len(rest))]
    return []


def _of_place(place: str, rest: list[str]) -> list[Meaning]:
    told = [word for word in rest if word not in FILL]
    if any(word in WINS for word in told):
        return [Meaning("flags", 0, place)]
    if any(word in MEASURES for word in told) and set(told) <= MEASURES | ANSWERS:
        return [Meaning("scores", 20, place)]
    if "rank" in told and set(told) <= ANSWERS | {"rank"}:
        return [Meaning("ranks", 20, place)]
    if told and set(told) <= ANSWERS:
        return [Meaning("responses", 20, place)]
    if (told and set(told) <= CHOICES) or (not rest and place.isalpha()):
        return [Meaning("choices", 20, place)]
    return []


def is_of_no_use(path: str) -> bool:
    """Return whether a column's name says that it holds nothing to train on."""
    *above, last = path.replace("[]", "").split(".")
    words = words_of_name(last)
    if any(word in NO_USE_ABOVE for name in above for word in words_of_name(name)):
        return True
    spoken = [word for word in words if word.isalpha() and len(word) > 1]
    if not spoken or spoken[-1] in NO_USE:
        return bool(spoken)
    return spoken[0] in NO_USE and spoken[-1] not in ANSWERS | CHOICES | FILL | set(NAMES["prompt"])
