"""The optional judge, over HTTP from a server of this process."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.evaluation.llm import verdict
from tasks.params.edit import override
from tasks.paths import home

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ("base", "dpo", "iterative_dpo", "ppo", "grpo")
Reply = tuple[int, str]


class Endpoint:
    """A chat endpoint whose verdict is a function of the two answers shown; it keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.decide: Callable[[str, str], str] = longer
        self.status: Callable[[int], int] = lambda number: 200

    def reply(self, body: dict[str, Any], key: str | None) -> Reply:
        self.requests.append(body)
        self.keys.append(key)
        status = self.status(len(self.requests))
        if status != 200:
            return status, "not now"
        text = body["messages"][-1]["content"]
        first, second = (text.split(f"[Answer {side}]\n")[1].split("\n\n")[0] for side in "AB")
        return 200, json.dumps({"choices": [{"message": {"content": self.decide(first, second)}}]})


def longer(first: str, second: str) -> str:
    return "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, text = found.reply(body, self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> Iterator[Callable[..., Any]]:
    """Three prompts; the reference first answers "bb" to each, a policy "a", "bb" and "cccc". Runs the stage."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LLM_JUDGE_API_KEY", raising=False)
    monkeypatch.setattr("tasks.tracking.recorder._spawn_delivery", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["llm_judge"])
    home.cache_clear()
    for policy in ("reference", *POLICIES):
        texts = ["bb", "bb", "bb"] if policy == "reference" else ["a", "bb", "cccc"]
        rows = [
            {"prompt_id": f"p{i}", "sample": sample, "prompt": f"{policy} {i}?", "response": text * (1 + sample)}
            for i, text in enumerate(texts)
            for sample in range(2)
        ]
        path = tmp_path / "evaluations" / policy / "responses.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*settings: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
        keys = [f"llm_judge.url={endpoint.url}", "llm_judge.model=judge", "llm_judge.retry_seconds=0"]  # type: ignore[attr-defined]
        override(tmp_path / "params.yaml", [*keys, *settings])
        main(["llm_judge"])
        lines = Path("judgements/llm.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], json.loads(Path("metrics/llm_judge.json").read_text())

    yield run
    home.cache_clear()


def test_both_orders_are_asked_and_agree(judge: Callable[..., Any], endpoint: Endpoint):
    rows, metrics = judge("llm_judge.prompts=3")
    assert len(rows) == 15
    assert {row["policy"] for row in rows} == set(POLICIES)
    assert [(row["prompt_id"], row["outcome"], row["orders"]) for row in rows[:3]] == [
        ("p0", 0.0, [0.0, 0.0]),
        ("p1", 0.5, [0.5, 0.5]),
        ("p2", 1.0, [1.0, 1.0]),
    ]
    assert len(endpoint.requests) == 25  # equal answers make one question of two
    assert {request["model"] for request in endpoint.requests} == {"judge"}
    assert (metrics["judgements"], metrics["llm_win_rate/ppo"], metrics["order_disagreement"]) == (15, 0.5, 0)


def test_a_judge_that_follows_the_order_says_tie(judge: Callable[..., Any], endpoint: Endpoint):
    endpoint.decide = lambda first, second: "Answer: A"
    rows, metrics = judge()
    assert {(row["outcome"], *row["orders"]) for row in rows} == {(0.5, 1.0, 0.0)}
    assert metrics["order_disagreement"] == 1


STATED = {
    1.0: ("A", " a.\n", "**A**", "[[A]]", '["A"]', "Answer: A", "The better answer is A.", "(A)", '{"better": "A"}'),
    0.0: (
        "B",
        "Final answer: **B**",
        "Both are fine.\nB is shorter.\n\nVerdict: B",
        '<think>A</think> {"better": "B"}',
    ),
    0.5: ("C", '{"better": "C"}', "<think>A? No, B.</think>\nC"),
    None: (
        *("", " ", "A is better than B.", "B is better than A.", "I prefer A over B", "A or B", "D", "AB", "Answer:"),
        *("Answer A is the better one, B rambles.", "<think>so it is\nA", "A\nbecause it is shorter"),
        *('{"better": "both"}', '{"better": 1}', "null"),
    ),
}


@pytest.mark.parametrize(("reply", "expected"), [(reply, value) for value, many in STATED.items() for reply in many])
def test_a_verdict_is_a_stated_letter_and_nothing_else(reply: str, expected: float | None):
    assert verdict(reply) == expected


def test_replies_without_a_verdict_are_counted_and_are_no_ties(
    judge: Callable[..., Any], endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
):
    endpoint.decide = lambda first, second: "It depends." if "cccc" in (first, second) else longer(first, second)
    rows, metrics = judge("llm_judge.prompts=3")
    assert [(row["outcome"], row["orders"]) for row in rows[:3]] == [
        (0.0, [0.0, 0.0]),
        (0.5, [0.5, 0.5]),
        (None, [None, None]),
    ]
    assert (metrics["judgements"], metrics["llm_win_rate/ppo"]) == (10, 0.25)
    assert metrics["unreadable"] == pytest.approx(1 / 3)
    assert "10 of 25 replies state no verdict, e.g. 'It depends.'" in capsys.readouterr().out


def test_a_judge_that_never_states_a_verdict_stops(
    judge: Callable[..., Any], endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
):
    endpoint.decide = lambda first, second: "A is better than B."
    with pytest.raises(SystemExit) as failed:
        judge()
    assert failed.value.code == 1
    assert "25 of 25 replies state no verdict, e.g. 'A is better than B.'" in capsys.readouterr().err


def test_a_request_takes_a_schema_and_further_keys(judge: Callable[..., Any], endpoint: Endpoint):
    endpoint.decide = lambda first, second: json.dumps({"better": longer(first, second)})
    extra = "{max_tokens: null, max_completion_tokens: 512, reasoning_effort: low}"
    rows, _ = judge("llm_judge.reply=json", f"llm_judge.extra_body={extra}")
    assert [row["outcome"] for row in rows[:3]] == [0.0, 0.5, 1.0]
    sent = endpoint.requests[0]
    assert sent["response_format"]["json_schema"]["schema"]["properties"]["better"]["enum"] == ["A", "B", "C"]
    assert (sent["max_completion_tokens"], sent["reasoning_effort"]) == (512, "low")
    assert "max_tokens" not in sent


def test_what_was_answered_is_not_asked_again(judge: Callable[..., Any], endpoint: Endpoint):
    first, _ = judge("llm_judge.prompts=2")
    assert len(endpoint.requests) == 15
    again, _ = judge("llm_judge.prompts=3")
    assert len(endpoint.requests) == 25
    assert [row for row in again if row["prompt_id"] != "p2"] == first


def test_a_failure_in_the_middle_loses_no_answer(
    judge: Callable[..., Any], endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
):
    endpoint.status = lambda number: 200 if number <= 7 else 500
    with pytest.raises(SystemExit) as failed:
        judge("llm_judge.parallel=1", "llm_judge.retries=1")
    assert failed.value.code == 1
    assert "answers 500: not now, 2 times; the replies so far are kept" in capsys.readouterr().err
    endpoint.status = lambda number: 200
    asked = len(endpoint.requests)
    rows, _ = judge("llm_judge.parallel=1")
    assert len(rows) == 15
    assert len(endpoint.requests) - asked == 25 - 7


def test_a_busy_server_is_asked_again(judge: Callable[..., Any], endpoint: Endpoint):
    endpoint.status = lambda number: 429 if number % 2 else 200
    rows, _ = judge("llm_judge.parallel=1", "llm_judge.retries=1")
    assert len(rows) == 15


def test_the_key_comes_from_the_environment(
    judge: Callable[..., Any], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LLM_JUDGE_API_KEY", "secret-key")
    judge()
    assert set(endpoint.keys) == {"Bearer secret-key"}
    kept = [path for path in Path.cwd().rglob("*") if path.is_file() and b"secret-key" in path.read_bytes()]
    assert not kept
    endpoint.status = lambda number: 401
    with pytest.raises(SystemExit):
        judge("llm_judge.temperature=1")
    assert "answers 401: not now; the key is read from LLM_JUDGE_API_KEY" in capsys.readouterr().err


def test_an_endpoint_that_is_not_there_is_named(judge: Callable[..., Any], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as failed:
        judge("llm_judge.url=http://127.0.0.1:9/v1", "llm_judge.retries=0")
    assert failed.value.code == 1
    said = capsys.readouterr().err
    assert "llm_judge.url: http://127.0.0.1:9/v1/chat/completions cannot be reached (ConnectError" in said
    assert "Traceback" not in said


def test_without_an_endpoint_an_empty_file_is_written(judge: Callable[..., Any], endpoint: Endpoint):
    rows, metrics = judge("llm_judge.url=null")
    assert rows == []
    assert metrics == {"judgements": 0.0}
    assert endpoint.requests == []
