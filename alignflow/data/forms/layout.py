"""Finds out what each column of a source is: its role, of no use, or something that nothing would read.

The first form of the table whose roles are all there is taken. A column that no form reads, and that looks like a part
of the data, is an error: nothing is lost in silence.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from alignflow.data.forms.faults import BAD_LABELS, GOOD_LABELS, Unusable
from alignflow.data.forms.kinds import ValueKind, is_empty, kinds_of, words
from alignflow.data.forms.names import KEYS, MEASURES, STRENGTH, Meaning, is_of_no_use, meanings, words_of_name
from alignflow.data.forms.table import FORMS, IGNORE, READ_BY_NAME, Form
from alignflow.data.forms.turns import is_turn
from alignflow.data.forms.values import decoded, number_of, plain
from alignflow.data.rows import DataError
from alignflow.data.sources import Source

Content = Mapping[str, Any]
Paths = tuple[str, ...]
RolePaths = Mapping[str, Paths]
Numbering = Literal["names", "zero", "one", "signed"]

DEPTH = 3
"""Levels of objects within objects that are looked into."""
SHOWN = 20
"""Number of columns that a message names."""
LONG_TEXT = 4
"""Texts of at least so many words on average may be a part of the data."""

MOST = 0.9
"""Share of a column's texts that are used already, if it repeats others."""

SPOKEN = frozenset({ValueKind.TEXT, ValueKind.TURNS, ValueKind.CHAT})
VALUE = frozenset({ValueKind.TEXT, ValueKind.NUMBER, ValueKind.MARK})
CONVERSATION = frozenset({ValueKind.CHAT, ValueKind.SCRIPT})
NUMBER = frozenset({ValueKind.NUMBER})
LISTS = frozenset({ValueKind.NUMBERS})
KINDS: Mapping[str, frozenset[ValueKind]] = {
    "tree": frozenset({ValueKind.TREE}),
    "prompt": frozenset({ValueKind.TEXT, ValueKind.TURNS}),
    "input": frozenset({ValueKind.TEXT}),
    "history": frozenset({ValueKind.ROUNDS, ValueKind.TURNS, ValueKind.CHAT, ValueKind.SCRIPT}),
    "system": frozenset({ValueKind.TEXT}),
    "tools": frozenset({ValueKind.TEXT, ValueKind.OBJECTS, ValueKind.OBJECT}),
    "chat": CONVERSATION,
    "prefix": frozenset({ValueKind.TEXT}),
    "chosen": SPOKEN,
    "rejected": SPOKEN,
    "best_first": frozenset({ValueKind.TEXTS}),
    "response": SPOKEN,
    "judged_answer": SPOKEN,
    "responses": frozenset({ValueKind.TEXTS}),
    "scores": LISTS,
    "ranks": LISTS,
    "winner": VALUE,
    "label": VALUE,
    "margin": NUMBER,
    "score_chosen": NUMBER,
    "score_rejected": NUMBER,
    "pair_scores": LISTS,
    "choices": frozenset({ValueKind.TEXTS, ValueKind.OBJECT, ValueKind.OBJECTS}),
    "correct": VALUE,
    "answer": frozenset({ValueKind.TEXT, ValueKind.NUMBER, ValueKind.TEXTS}),
    "solution": frozenset({ValueKind.TEXT}),
    "media": frozenset(ValueKind),
}
"""Kinds of values that a column of each role may have."""
MEMBERS: Mapping[str, frozenset[ValueKind]] = {
    "responses": SPOKEN,
    "scores": NUMBER,
    "ranks": NUMBER,
    "flags": VALUE,
    "choices": frozenset({ValueKind.TEXT}),
}
"""Roles whose values may be spread over numbered columns or the objects of a list, and the kinds of each part."""


class Column(NamedTuple):
    """A column, or what the objects of a column hold under one key."""

    path: str
    values: list[Any]
    """Those that are not empty."""
    kinds: frozenset[ValueKind]


class Unread(NamedTuple):
    """A column that no form reads."""

    path: str
    what: str
    """What it seems to hold; empty if its name says that it is of no use to training."""
    role: str
    """The role that it might have; empty if nothing is lost without it."""


@dataclass(frozen=True)
class Layout:
    """What the columns of a source are."""

    form: str
    roles: RolePaths
    """Paths of each role's columns."""
    places: tuple[str, ...]
    """Numbers or letters of the responses or choices, where each has a column."""
    count: Numbering
    """How a number says which one is meant: by the names of the columns, from 0, from 1, or by its sign."""
    rounds: bool
    """Whether prompt and answers are lists of texts, one for each round of the conversation."""
    known: frozenset[str]
    """Keys of a record whose columns were looked at."""
    unread: tuple[Unread, ...]

    def lines(self) -> Iterator[str]:
        """Yield in words what is read as what, and what is not read."""
        yield ", ".join(f"{role}: {' + '.join(paths)}" for role, paths in self.roles.items())
        told = [f"{one.path} ({one.what})" if one.what else one.path for one in self.unread]
        if told:
            more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
            yield f"not used: {', '.join(told[:SHOWN])}{more}"


def understand(sample: Sequence[Content], *, form: str, source: Source) -> Layout:
    """Return the layout of a source.

    Args:
        sample: its first records.
        form: a name in ``FORMS``, or ``auto``.
        source: where they are from, with the paths of roles that the user names, and those under ``IGNORE``.

    Raises:
        DataError: no form fits, or nothing would read a column that looks like a part of the data.
    """
    seen, columns = collect(sample), source.columns
    named = {role: paths for role, paths in columns.items() if role != IGNORE}
    _check_named(columns, seen, source)
    allowed = FORMS if form == "auto" else {form: FORMS[form]}
    told = [_keys_of(content) for content in sample]
    fits = {keys: _fitting(keys, seen, allowed, columns) for keys in set(told)}
    votes = Counter(fits[keys] for keys in told if fits[keys])
    if not votes:
        raise DataError(_no_form(source, form, seen, named))
    name = max((found for found in allowed if votes[found]), key=lambda found: votes[found])
    read = [content for content, keys in zip(sample, told, strict=True) if fits[keys] == name]
    seen = collect(read)
    roles, places = _fit(FORMS[name], seen, columns) or ({}, ())
    _check_prompt(name, roles, seen, source)
    _check_labels(roles, seen, source)
    unread = tuple(_unread(roles, seen, columns.get(IGNORE, ())))
    if lost := [one for one in unread if one.role]:
        raise DataError(_lost(source, name, roles, lost))
    known = frozenset(path for path in seen if seen[path].kinds or any(path in paths for paths in roles.values()))
    spoken = [seen[path].kinds for role in ("prompt", "responses") for path in roles.get(role, ())]
    rounds = len(places) > 1 and all({ValueKind.TEXT, ValueKind.TEXTS} <= kinds for kinds in spoken)
    return Layout(name, roles, places, _count(name, roles, places, seen, columns, source), rounds, known, unread)


def collect(sample: Sequence[Content]) -> dict[str, Column]:
    """Return all columns of records, those within objects too, in the order of their appearance."""
    values: dict[str, list[Any]] = defaultdict(list)
    for content in sample:
        for path, value in leaves(content):
            values[path].append(value)
    return {
        path: Column(path, [v for v in found if not is_empty(v)], kinds_of(found)) for path, found in values.items()
    }


def leaves(content: Content, above: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield paths and values of a record, and of the objects in it."""
    if not above and isinstance(content.get("replies"), list):
        yield ".", content
        return
    for key, value in content.items():
        path, inside = f"{above}{key}", decoded(value)
        yield path, value
        if isinstance(inside, Mapping) and depth < DEPTH and not is_turn(inside) and "replies" not in inside:
            yield from leaves(inside, f"{path}.", depth + 1)
        elif isinstance(inside, list) and inside and all(isinstance(one, Mapping) for one in inside):
            # the messages of a conversation are no list of answers
            scored = any(MEASURES.union({"rank"}).intersection(words_of_name(str(k))) for one in inside for k in one)
            if scored or not all(map(is_turn, inside)):
                yield from ((f"{path}[].{k}", v) for one in inside for k, v in one.items())


def _keys_of(content: Content) -> frozenset[str]:
    return frozenset(path for path, _ in leaves(content))


def _fitting(keys: frozenset[str], seen: Mapping[str, Column], forms: Mapping[str, Form], columns: RolePaths) -> str:
    """Return the first form that fits records with these paths; empty if none does."""
    here = {path: column for path, column in seen.items() if path in keys}
    return next((name for name, form in forms.items() if _fit(form, here, columns)), "")


def _fit(form: Form, seen: Mapping[str, Column], columns: RolePaths) -> tuple[dict[str, Paths], tuple[str, ...]] | None:
    """Return the paths of a form's roles and the names of numbered columns, or None if it does not fit."""
    named = {role: paths for role, paths in columns.items() if role != IGNORE}
    for needs in form.needs:
        roles, places = dict(named), tuple[str, ...]()
        if not set(named) <= {*needs, *form.may}:
            continue
        for role in (*needs, *form.may):
            taken = {path for paths in (*roles.values(), columns.get(IGNORE, ())) for path in paths}
            if role in roles:
                continue
            found = _best(role, seen, taken, places if role in ("scores", "ranks", "flags") else ())
            if found is None and role in needs:
                break
            if found is not None:
                roles[role], at = found
                places = places or at
        else:
            return roles, places
    return None


def _best(
    role: str, seen: Mapping[str, Column], taken: set[str], places: tuple[str, ...]
) -> tuple[Paths, tuple[str, ...]] | None:
    """Return the surest columns of a role that are not taken, with the names of numbered ones."""
    alone: list[tuple[int, str]] = []
    groups: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for path, column in seen.items():
        if any(_related(path, other) for other in taken):
            continue
        for meaning in meanings(path):
            if meaning.role == role and _may_be(meaning, column):
                if meaning.position:
                    stem = tuple(word for word in words_of_name(path) if word != meaning.position)
                    groups[stem][meaning.position] = path
                else:
                    alone.append((meaning.rank, path))
    if alone and not places:
        return (min(alone, key=lambda found: found[0])[1],), ()
    for group in sorted(groups.values(), key=len, reverse=True):
        at = tuple(sorted(group))
        if len(at) > 1 and at == (places or at):
            return tuple(group[place] for place in at), at
    return None


def _related(path: str, other: str) -> bool:
    """Return whether two paths are the same, or one lies within the other; siblings in a list are not."""
    return path == other or path.startswith((f"{other}.", f"{other}[]")) or other.startswith((f"{path}.", f"{path}[]"))


def _may_be(meaning: Meaning, column: Column) -> bool:
    """Return whether a column's values fit a role; a column without values fits a role that its name states."""
    role, spread = meaning.role, bool(meaning.position) or "[]" in column.path
    kinds = MEMBERS.get(role, frozenset()) if spread else KINDS.get(role, frozenset())
    if not column.kinds:
        return role in (
            "prefix",
            "system",
            "history",
            "tools",
            "input",
            "media",
            "margin",
            "score_chosen",
            "score_rejected",
        )
    if not column.kinds & kinds:
        return False
    fits = LOOKS.get(role)
    return fits is None or fits(column)


def _label_like(column: Column) -> bool:
    known = sum(plain(value).removesuffix(".0") in {*GOOD_LABELS, *BAD_LABELS} for value in column.values)
    named = "label" in words_of_name(column.path) or "kto" in words_of_name(column.path)
    return 2 * known > len(column.values) or (named and all(words(plain(value)) == 1 for value in column.values))


def _pair_like(column: Column) -> bool:
    return all(len(value) == 2 for value in map(decoded, column.values) if isinstance(value, list))


LOOKS = {"label": _label_like, "best_first": _pair_like, "pair_scores": _pair_like}
"""What must hold, besides the kind, for all values of a role."""


# What nothing reads -----------------------------------------------------------------------------------------------


def _unread(roles: RolePaths, seen: Mapping[str, Column], ignored: Sequence[str]) -> Iterator[Unread]:
    used = [path for paths in roles.values() for path in paths]
    texts = set(_texts([seen[path].values for path in used if path in seen]))
    for path, column in seen.items():
        if any(path == other or path.startswith((f"{other}.", f"{other}[]")) for other in used):
            continue
        if any(other.startswith((f"{path}.", f"{path}[]")) for other in seen):
            continue  # what is in it is looked at, part for part
        if any(_related(path, other) for other in ignored):
            yield Unread(path, "ignored", "")
        elif _repeats(column, texts):
            yield Unread(path, "repeats what is used", "")
        elif is_of_no_use(path):
            yield Unread(path, "", "")
        else:
            what, role = guess(column)
            beside = "[]" in path and any(other.startswith(path.partition("[]")[0]) for other in used)
            yield Unread(path, what, "" if beside or (role == "scores" and JUDGED & set(roles)) else role)


JUDGED = {"scores", "ranks", "score_chosen", "margin", "pair_scores", "winner", "flags"}
"""RolePaths beside which another score is a remark: one judgement is used."""


def guess(column: Column) -> tuple[str, str]:
    """Return what a column seems to hold, and the role that it might have; empty if nothing is lost without it."""
    kinds = column.kinds
    if kinds & {ValueKind.TURNS, ValueKind.CHAT, ValueKind.ROUNDS, ValueKind.SCRIPT}:
        return "turns of a conversation", "history" if ValueKind.ROUNDS in kinds else "prompt"
    if ValueKind.MEDIA in kinds:
        return "images, sound or video", IGNORE
    if kinds & {ValueKind.NUMBER, ValueKind.NUMBERS}:
        return ("scores", "scores") if MEASURES.intersection(words_of_name(column.path)) else ("numbers", "")
    if ValueKind.TEXTS in kinds:
        long = [text for value in map(decoded, column.values) if isinstance(value, list) for text in value]
        return ("a list of texts: answers or choices", "responses") if _wordy(long, 2) else ("short words", "")
    return _guess_text(column) if ValueKind.TEXT in kinds else ("objects, marks or nothing", "")


def _guess_text(column: Column) -> tuple[str, str]:
    if not _wordy(column.values, LONG_TEXT):
        return "short words", ""
    if "system" in words_of_name(column.path) or (
        len(column.values) > 1 and all(value == column.values[0] for value in column.values)
    ):
        return "a system text", "system"
    return "texts: an answer or a part of the prompt", "chosen"


def _wordy(values: Sequence[Any], least: int) -> bool:
    texts = [value for value in values if isinstance(value, str)]
    return bool(texts) and sum(map(words, texts)) >= least * len(texts)


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts within a value, stripped."""
    value = decoded(value)
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)


def _repeats(column: Column, texts: set[str]) -> bool:
    """Return whether a column's texts, names and short words apart, are all but a few among those that are used."""
    long = [text for text in _texts(column.values) if words(text) > 1]
    return bool(long) and sum(text in texts for text in long) >= MOST * len(long)


# Messages ---------------------------------------------------------------------------------------------------------


def _check_named(columns: RolePaths, seen: Mapping[str, Column], source: Source) -> None:
    for role, paths in columns.items():
        for path in paths:
            if path not in seen:
                near = difflib.get_close_matches(path, seen, n=1)
                hint = f"did you mean {near[0]}?" if near else f"columns: {', '.join([*seen][:SHOWN])}"
                raise DataError(f"{source.path}: {source.setting}.{role}: no column {path}; {hint}")


def _check_prompt(form: str, roles: RolePaths, seen: Mapping[str, Column], source: Source) -> None:
    """Check that there is a prompt, in its column or within the answers, and that answers are whole."""
    if (roles.get("responses"), roles.get("scores")) == (("completions",), ("labels",)):
        raise DataError(
            f"{source.path}: rows of completions with labels, one a step, hold rejected steps only (the first "
            "false label); a step pair needs prompt, prefix, chosen and rejected"
        )
    if form == "tree" or {"prompt", "history", "chat"}.intersection(roles):
        return
    answers = [path for role in ("chosen", "rejected", "response", "responses") for path in roles.get(role, ())]
    if not any(seen[path].kinds & (CONVERSATION | {ValueKind.TURNS, ValueKind.TEXTS}) for path in answers):
        there = ", ".join(path for path in seen if path not in answers) or "none"
        raise DataError(
            f"{source.path}: read as {form}, but no column seems to be the prompt; say which, as in "
            f"{source.setting}.prompt=NAME; other columns: {there}"
        )


def _check_labels(roles: RolePaths, seen: Mapping[str, Column], source: Source) -> None:
    """Check that numbers are no stars: of 1 to 5, a 1 would be read as good."""
    for path in roles.get("label", ()):
        strange = [number for number in _numbers(seen[path].values) if number not in (-1.0, 0.0, 1.0)]
        if strange and 3 * len(strange) >= len(seen[path].values):  # fewer are faults of their rows
            raise DataError(
                f"{source.path}: {path} holds {max(strange):g}, and a label is 1 (good) or 0 or -1 (bad); write it so, "
                "or write all answers to a prompt into one row: responses, with their scores"
            )


def _no_form(source: Source, form: str, seen: Mapping[str, Column], named: RolePaths) -> str:
    found = [f"{path} ({guess(column)[0]})" for path, column in seen.items() if "." not in path][:SHOWN]
    forms = "".join(f"\n  {name}: {one.keys}" for name, one in FORMS.items() if form in ("auto", name))
    if {"message_id", "parent_id"} <= set(seen):
        return f"{source.path}: a row a message of a tree; read the file of whole trees instead (…trees.jsonl)"
    what = "rows of no known form" if form == "auto" else f"rows do not have the form {form}"
    if named:
        what += f" with {source.setting} {', '.join(named)}"
    return (
        f"{source.path}: {what}; keys found: {', '.join(found) or 'none'}; say what they are, as in "
        f"{source.setting}.prompt=NAME (roles: {', '.join(READ_BY_NAME)}; a CSV file names its columns in the "
        f"first row), so that they make a form:{forms}"
    )


def _lost(source: Source, form: str, roles: RolePaths, lost: Sequence[Unread]) -> str:
    read = ", ".join(f"{role}: {' + '.join(paths)}" for role, paths in roles.items())
    lines = "".join(f"\n  {one.path} seems to hold {one.what}{_proposal(one, roles, source)}" for one in lost[:SHOWN])
    ignore = f"[{','.join(one.path for one in lost)}]"
    return (
        f"{source.path}: read as {form} ({read}), but nothing would read{lines}\n"
        f"set {source.setting}, or, if they are of no use: {source.setting}.{IGNORE}={ignore}"
    )


def _proposal(one: Unread, roles: RolePaths, source: Source) -> str:
    if one.role == IGNORE:
        return ""
    if one.role == "scores" and "responses" not in roles:
        return "; write all answers to a prompt into one row: responses, with their scores"
    if one.role == "chosen" and "prompt" in roles:
        joined = ",".join((*roles["prompt"], one.path))
        return (
            f"; a part of the prompt: {source.setting}.prompt=[{joined}], an answer: {source.setting}.chosen={one.path}"
        )
    return f": {source.setting}.{one.role}={one.path}"


# Numbers that name an answer ---------------------------------------------------------------------------------------


def _count(
    form: str, roles: RolePaths, places: tuple[str, ...], seen: Mapping[str, Column], columns: RolePaths, source: Source
) -> Numbering:
    """Return how the numbers of a column say which answer is better, or which choice is correct."""
    role = {"compared": "winner", "choices": "correct"}.get(form, "")
    if role not in roles:
        return "names"
    (path,) = roles[role]
    numbers = set(_numbers(seen[path].values))
    if role == "winner" and (any(number < 0 for number in numbers) or STRENGTH.intersection(words_of_name(path))):
        return "signed"
    if not numbers or numbers <= {float(place) for place in places if place.isdigit()}:
        return "names" if numbers else "zero"
    if float(_most(roles["responses" if form == "compared" else "choices"], seen)) in numbers:
        return "one"
    words = words_of_name(path)
    if role in columns or form == "choices" or (0.0 in numbers and not places) or KEYS.intersection(words) - {"label"}:
        return "zero"
    if 0.0 in numbers and not any(place.isdigit() for place in places) and not {"label", "labels"}.intersection(words):
        return "zero"
    raise DataError(
        f"{source.path}: unclear which response the numbers of {path} mean; if 0 means the first, set "
        f"{source.setting}.winner={path}; if 1 means the first, also list {source.setting}.responses in turn"
    )


def _most(paths: Paths, seen: Mapping[str, Column]) -> int:
    """Return the number of responses or choices, the greatest where it differs."""
    if len(paths) > 1:
        return len(paths)
    (path,) = paths
    if "[]" in path:
        return 0  # unknown from single elements
    return max(
        (len(value) for value in map(decoded, seen[path].values) if isinstance(value, list | Mapping)), default=0
    )


def _numbers(values: Sequence[Any]) -> Iterator[float]:
    for value in values:
        try:
            yield number_of(value, "")
        except Unusable:
            continue
