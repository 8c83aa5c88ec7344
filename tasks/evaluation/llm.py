"""An optional language model behind an OpenAI-compatible endpoint compares policies with the reference.

Each pair of answers is shown in both orders, since such judges favour a position (Zheng et al. 2023, arXiv:2306.05685);
a judge that changes its mind with the order says "tie". A reply that names no verdict is no tie: it is counted, and its
prompt is left out.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any

import httpx

from tasks.params.sections import LlmJudge, Params
from tasks.paths import home
from tasks.policies import REFERENCE, in_order

KEY = "LLM_JUDGE_API_KEY"
BUSY = 429
INSTRUCTION = """\
You compare two answers to the same question. Prefer the one that is more helpful, more correct and easier to read. \
Length alone is no merit. Reply with {form}: A if the first answer is better, B if the second one is, C if they \
are equally good."""
FORM = {"letter": "one character", "json": 'a JSON object with one key, "better"'}
SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "C"]}},
    "required": ["better"],
    "additionalProperties": False,
}
OUTCOME = {"A": 1.0, "B": 0.0, "C": 0.5}
STATED = re.compile(
    r"(?:(?:the )?(?:final |better )?(?:answer|verdict|choice)(?: is)?:?)?[\W_]*([ABC])[\W_]*", re.IGNORECASE
)
QUESTION = "[Question]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\nWhich answer is better: A, B or C?"


def write_judgements(folder: Path, params: Params, say: Callable[[str], None]) -> dict[str, float]:
    """Compare every chosen policy with the reference and return the figures.

    Writes ``judgements/llm.jsonl`` beside the evaluations in the folder; an empty file where no endpoint is set.
    """
    section = params.llm_judge
    if section.url is None:
        say("llm_judge.url is null: no judgement is asked for")
    policies = [policy for policy in in_order(params.policies) if policy != REFERENCE]
    rows = compare_answers(section, policies, folder / "evaluations", say) if section.url else []
    path = folder / "judgements/llm.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return figures(rows)


def compare_answers(
    section: LlmJudge, policies: Sequence[str], evaluations: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return a row a policy and prompt; verdicts that were paid for before are taken from the file of answers."""
    reference = {row["prompt_id"]: row["response"] for row in _read(evaluations / REFERENCE)[: section.prompts]}
    pairs = [
        (policy, row, reference[row["prompt_id"]])
        for policy in policies
        for row in _read(evaluations / policy)
        if row["prompt_id"] in reference
    ]
    bodies = [
        _body(section, row["prompt"], *order)
        for _, row, theirs in pairs
        for order in ((row["response"], theirs), (theirs, row["response"]))
    ]
    store = ReplyStore(home() / "llm_judge" / "answers.jsonl", str(section.url))
    distinct = {store.key(body): body for body in bodies}
    known = sum(key in store for key in distinct)
    say(f"{len(distinct)} questions to {section.model} at {section.url}, {known} answered before")
    key = os.environ.get(KEY)
    with (
        httpx.Client(
            timeout=section.timeout_seconds, headers={"Authorization": f"Bearer {key}"} if key else {}
        ) as client,
        ThreadPoolExecutor(section.parallel) as threads,
    ):
        try:
            found = list(threads.map(lambda body: store.ask(client, section, body), distinct.values()))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    replies = dict(zip(distinct, found, strict=True))
    _check_readable(found, say)
    verdicts = [verdict(replies[store.key(body)]) for body in bodies]
    return [
        {"prompt_id": row["prompt_id"], "policy": policy, **_of_both_orders(first, second)}
        for (policy, row, _), first, second in zip(pairs, verdicts[::2], verdicts[1::2], strict=True)
    ]


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the rate of wins of each policy, how often the order changed it, and the share without a verdict."""
    read = [row for row in rows if row["outcome"] is not None]
    mine: dict[str, list[float]] = {}
    for row in read:
        mine.setdefault(row["policy"], []).append(row["outcome"])
    rates = {f"llm_win_rate/{policy}": fmean(outcomes) for policy, outcomes in mine.items()}
    turned = [row["orders"][0] != row["orders"][1] for row in read]
    shares = {"order_disagreement": fmean(turned), "unreadable": 1 - len(read) / len(rows)} if turned else {}
    return {"judgements": float(len(read)), **rates, **shares}


def _read(folder: Path) -> list[dict[str, Any]]:
    """Return the first answer to each prompt."""
    with (folder / "responses.jsonl").open(encoding="utf-8", newline="\n") as lines:
        return [row for row in map(json.loads, lines) if row["sample"] == 0]


def _body(section: LlmJudge, prompt: str, first: str, second: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": section.model,
        "temperature": section.temperature,
        "max_tokens": section.max_tokens,
        "messages": [
            {"role": "system", "content": INSTRUCTION.format(form=FORM[section.reply])},
            {"role": "user", "content": QUESTION.format(prompt=prompt, first=first, second=second)},
        ],
    }
    if section.reply == "json":
        schema = {"name": "verdict", "strict": True, "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {key: value for key, value in (body | section.extra_body).items() if value is not None}


def verdict(reply: str) -> float | None:
    """Return 1 where a reply names answer A, 0 for B, ½ for C, and None where it states none of them.

    What a model thinks before ``</think>`` does not count. The rest, or its last line, has to be the letter, alone or
    as in "Answer: A", or the JSON object that was asked for. A sentence about both answers is not read.
    """
    if "<think>" in reply and "</think>" not in reply:
        return None
    said = reply.rpartition("</think>")[2].strip()
    try:
        found = json.loads(said)["better"]
    except (ValueError, LookupError, TypeError):
        stated = STATED.fullmatch(said) or STATED.fullmatch(said.splitlines()[-1].strip() if said else "")
        found = stated[1].upper() if stated else None
    return OUTCOME.get(found) if isinstance(found, str) else None


def _of_both_orders(first: float | None, second: float | None) -> dict[str, Any]:
    """Return the outcome of two verdicts, of which the second saw the answers in the other order."""
    turned = None if second is None else 1 - second
    outcome = None if first is None or turned is None else first if first == turned else 0.5
    return {"outcome": outcome, "orders": [first, turned]}


def _check_readable(replies: Sequence[str], say: Callable[[str], None]) -> None:
    unread = [reply for reply in replies if verdict(reply) is None]
    if 2 * len(unread) > len(replies):
        raise NoJudge(
            f"llm_judge: {len(unread)} of {len(replies)} replies state no verdict, e.g. {unread[0][-80:]!r}; "
            "llm_judge.reply: json asks for a fixed form, and a model that reasons first needs more max_tokens"
        )
    if unread:
        stated = f"{len(unread)} of {len(replies)} replies state no verdict"
        say(f"{stated}, e.g. {unread[0][-80:]!r}; their prompts are left out")


class ReplyStore:
    """Replies of an endpoint, each written down as soon as it comes, by the hash of its question."""

    def __init__(self, path: Path, url: str) -> None:
        """Read what is there; a line cut off by a crash is left out."""
        self._path, self._url, self._lock = path, url, Lock()
        self._known: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
            try:
                self._known |= {json.loads(line)["question"]: json.loads(line)["reply"]}
            except (json.JSONDecodeError, KeyError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def key(self, body: Mapping[str, Any]) -> str:
        """Return the hash of a question and of where it goes."""
        return hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest()

    def ask(self, client: httpx.Client, section: LlmJudge, body: Mapping[str, Any]) -> str:
        """Return the reply to a question, from the file or from the endpoint.

        Raises:
            NoJudge: the endpoint cannot be reached, refuses, or answers in another form.
        """
        key = self.key(body)
        if key not in self._known:
            reply = _post(client, section, body)
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"question": key, "reply": reply}))  # after a line that was cut off
                self._known[key] = reply
        return self._known[key]


def _post(client: httpx.Client, section: LlmJudge, body: Mapping[str, Any]) -> str:

    url = f"{str(section.url).rstrip('/')}/chat/completions"
    for attempt in range(section.retries + 1):
        if attempt:
            time.sleep(section.retry_seconds * 2 ** (attempt - 1))
        try:
            response = client.post(url, json=body)
        except httpx.TransportError as error:
            problem = f"cannot be reached ({type(error).__name__}: {error})"
            continue
        if response.status_code == BUSY or response.is_server_error:
            problem = f"answers {response.status_code}: {response.text[:200]}"
            continue
        return _reply(response, url)
    raise NoJudge(f"llm_judge.url: {url} {problem}, {section.retries + 1} times; {KEPT}")


KEPT = "the replies so far are kept, the same command asks for the rest; llm_judge.url: null goes on without a judge"


def _reply(response: httpx.Response, url: str) -> str:
    if not response.is_success:
        hint = f"; the key is read from {KEY}" if response.status_code in {401, 403} else ""
        raise NoJudge(f"llm_judge.url: {url} answers {response.status_code}: {response.text[:200]}{hint}; {KEPT}")
    try:
        return str(response.json()["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError):
        raise NoJudge(f"llm_judge.url: {url} does not speak OpenAI's chat format: {response.text[:200]}") from None


class NoJudge(ValueError):
    """The endpoint gives no verdicts."""
