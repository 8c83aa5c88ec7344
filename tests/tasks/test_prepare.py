"""The stage ``prepare`` on files of every kind, broken ones too: what it writes, what it tells and when it stops."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.data import page
from tasks.data.check import Checked, check
from tasks.params.edit import override
from tasks.params.read import load
from tests.tasks.small_project import ROOT, stage, working_in

DATA = ROOT.parent / "shared" / "data"
GOOD = [{"prompt": f"what is {i}?", "chosen": f"it is {i}.", "rejected": f"who knows {i}"} for i in range(40)]
SMALL = [
    "data.max_response_length=60",
    "data.validation_fraction=0.3",
    "data.test_fraction=0.2",
    "data.near_duplicate_threshold=1",
]


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an identified base model."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(tiny, folder / "base")
    shutil.copy(ROOT / "params.yaml", folder)
    override(folder / "params.yaml", ["base.model=base", "base.quantization=none", *SMALL])
    with working_in(folder):
        stage("base")
    return folder


@pytest.fixture
def place(base: Path, tmp_path: Path) -> Iterator[Path]:
    folder = Path(shutil.copytree(base, tmp_path / "project"))
    (folder / "data").mkdir()
    with working_in(folder):
        yield folder


def write(rows: Sequence[Any], name: str = "data/preferences.jsonl") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def side(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"data/prepared/{name}.jsonl").read_text().splitlines()]


def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("data/prepared/report.json").read_text())
    return found


def stopped(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as failed:
        stage("prepare")
    assert failed.value.code == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "Traceback" not in said
    return said


def test_four_sides_hold_every_row_once_with_where_it_comes_from(place: Path):
    write(GOOD)
    found = stage("prepare")
    sides = {name: side(name) for name in ("train", "judge", "validation", "test")}
    assert sorted(r["number"] for rows in sides.values() for r in rows) == list(range(1, 41))
    assert all(sides.values())
    assert sides["train"][0].keys() == {
        "prompt_id", "messages", "prompt", "chosen", "rejected", "margin", "answer", "prefix", "source", "number",
    }  # fmt: skip
    assert {name: len(rows) for name, rows in sides.items()} == {
        name: found[f"{name}_pairs"] for name in ("train", "judge", "validation", "test")
    }
    assert found["rows"] == 40


def test_without_a_test_side_its_file_is_empty_and_its_rows_are_trained_on(place: Path):
    write(GOOD)
    stage("prepare")
    before = {name: side(name) for name in ("train", "judge", "validation", "test")}
    override(Path("params.yaml"), ["data.test_fraction=0"])
    found = stage("prepare")
    assert side("test") == []
    assert found["test_rows"] == 0
    assert (side("judge"), side("validation")) == (before["judge"], before["validation"])
    assert side("train") == sorted(before["train"] + before["test"], key=lambda row: row["number"])


def test_evaluation_may_not_cut_off_an_answer_as_long_as_the_longest(place: Path, capsys: pytest.CaptureFixture[str]):
    """The tiny tokenizer has a token a letter, and one for the end: 21 of the longest."""
    write([*GOOD, {"prompt": "how?", "chosen": "c" * 20, "rejected": "d"}])
    override(Path("params.yaml"), ["evaluate.max_response_length=20"])
    assert "longest response has 21 tokens" in (said := stopped(capsys))
    assert "set evaluate.max_response_length=21 or more" in said
    override(Path("params.yaml"), ["evaluate.max_response_length=21"])
    stage("prepare")
    assert report()["longest_response"] == 21


BREAKAGES: dict[str, tuple[list[Any], str]] = {
    "broken": ([b"{oops"], "broken JSON"),
    "wrong_type": ([{**GOOD[0], "chosen": 7}], "chosen is neither a text nor chat messages"),
    "empty": ([{**GOOD[0], "chosen": "  "}], "empty text"),
    "identical": ([{"prompt": "p", "chosen": "a", "rejected": " a"}], "chosen equals rejected"),
    "contradictory": ([{**GOOD[0], "chosen": GOOD[0]["rejected"], "rejected": GOOD[0]["chosen"]}], "both ways"),
    "duplicate": ([GOOD[0]], "repeated row"),
    "prompt_too_long": ([{**GOOD[0], "prompt": "p" * 500}], "prompt does not fit"),
    "response_too_long": ([{**GOOD[0], "chosen": "c" * 61}], "response does not fit"),
    "role_order": (
        [
            {
                "prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
                "chosen": "c",
                "rejected": "d",
            }
        ],
        "chat turns out of order",
    ),
}


@pytest.mark.parametrize("reason", BREAKAGES)
def test_what_is_broken_stops_the_stage_with_its_rows_and_is_counted_where_it_is_allowed(
    place: Path, reason: str, capsys: pytest.CaptureFixture[str]
):
    bad, text = BREAKAGES[reason]
    write([*GOOD, *bad])
    override(Path("params.yaml"), ["data.max_dropped_fraction=1", f"data.max_fraction.{reason}=0"])
    said = stopped(capsys)
    assert f"data.max_fraction.{reason} (0)" in said
    assert text in said
    assert "41" in said
    override(Path("params.yaml"), [f"data.max_fraction.{reason}=0.05"])
    found = stage("prepare")
    assert found[f"dropped/{reason}"] == found["dropped"] == (2 if reason == "contradictory" else 1)
    override(Path("params.yaml"), ["data.max_dropped_fraction=0.02"])
    if reason == "contradictory":
        assert "2 of 41 rows cannot be used, more than data.max_dropped_fraction" in stopped(capsys)


def test_a_gate_that_stops_loses_nothing(place: Path, capsys: pytest.CaptureFixture[str]):
    write(GOOD)
    stage("prepare")
    before = {p.name: p.read_bytes() for p in Path("data/prepared").iterdir()}
    write([*GOOD, b"{", b"{", b"{"])
    stopped(capsys)
    assert {p.name: p.read_bytes() for p in Path("data/prepared").iterdir()} == before
    assert [p.name for p in Path("data").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.path=data/none.jsonl", "data/none.jsonl is missing; add it, or correct its path in params.yaml$"),
        ("data.path=owner/name", r"owner/name is missing; .* goes into data.sources: \[{path: owner/name, revision"),
        ("data.validation_fraction=0.0001", "no prompt is left to evaluate on; change data.validation_fraction"),
        ("data.test_fraction=0.0001", "no prompt is left to test on; change data.test_fraction"),
        ("data.format=ranked", r"rows do not have the form ranked; keys found: prompt .*, chosen .*\n  ranked: prompt"),
        ("data.columns.chosen=good", r"data.columns.chosen: no column good; .*columns: prompt, chosen, rejected"),
    ],
)
def test_a_setting_that_does_not_fit_is_told(
    place: Path, setting: str, message: str, capsys: pytest.CaptureFixture[str]
):
    write(GOOD)
    override(Path("params.yaml"), [setting])
    assert re.search(message, stopped(capsys))


def test_sources_are_mixed_and_each_has_its_version_in_the_report(place: Path):
    write(GOOD[:20], "data/mix/a.jsonl")
    write(GOOD[20:], "data/mix/b.jsonl")
    tree = YAML()
    raw = tree.load(Path("params.yaml"))
    raw["data"]["path"] = "data/mix"
    raw["data"]["sources"] = [{"path": "data/mix/a.jsonl", "weight": 1}, {"path": "data/mix/b.jsonl", "weight": 1}]
    tree.dump(raw, Path("params.yaml"))
    assert stage("prepare")["rows"] == 40
    said = report()
    assert [(s["source"], s["rows"]) for s in said["sources"]] == [("data/mix/a.jsonl", 20), ("data/mix/b.jsonl", 20)]
    assert [d["name"] for d in said["data"]] == ["data/mix/a.jsonl", "data/mix/b.jsonl"]
    assert len({d["digest"] for d in said["data"]}) == 2


def test_a_folder_is_read_whole(place: Path):
    write(GOOD[:20], "data/all/a.jsonl")
    write(GOOD[20:], "data/all/deep/b.jsonl")
    override(Path("params.yaml"), ["data.path=data/all"])
    assert stage("prepare")["rows"] == 40


def test_plain_dvc_runs_the_stage_again_when_any_local_source_changes(tmp_path: Path):
    """The real dvc.yaml's own dependency on ``data.path``, with a command that only counts its runs."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert "${data.path}" in stages["prepare"]["deps"]
    project = tmp_path / "project"
    (project / "data/mix").mkdir(parents=True)
    for name in ("a", "b"):
        (project / f"data/mix/{name}.jsonl").write_text("{}\n")
    shutil.copy(ROOT / "params.yaml", project)
    override(project / "params.yaml", ["data.path=data/mix"])
    (project / "count.py").write_text("open('runs', 'a').write('x')\nopen('out', 'w').write('y')\n")
    (project / "dvc.yaml").write_text(
        "stages:\n  prepare:\n    cmd: python count.py\n    params: [data]\n"
        "    deps: ['${data.path}']\n    outs: [out]\n"
    )

    def do(*command: str) -> None:
        subprocess.run(command, cwd=project, check=True, capture_output=True)

    dvc = str(Path(sys.executable).with_name("dvc"))
    do("git", "init", "--quiet")
    do(dvc, "init", "--quiet")
    counts = []
    for change in (None, None, "a", "b"):
        if change:
            (project / f"data/mix/{change}.jsonl").write_text('{"prompt": "new"}\n')
        do(dvc, "repro")
        counts.append(len((project / "runs").read_text()))
    assert counts == [1, 1, 2, 3]


class Page(HTMLParser):
    """Tags that are opened and text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_the_page_stands_alone_and_shows_what_was_dropped(place: Path):
    write([*GOOD, b"{"])
    override(Path("params.yaml"), ["data.max_dropped_fraction=0.5"])
    stage("prepare")
    text = Path("data/prepared/report.html").read_text()
    page = Page(text)
    assert not [a for tag, attrs in page.tags for a in attrs if a in {"src", "href"} or tag in {"script", "link"}]
    for part in ("40 of 41 rows can be used", "broken JSON", "row 41", "repair or delete these rows"):
        assert part in page.shown
    assert "prefers-color-scheme: dark" in text


def test_texts_of_the_data_are_never_markup(place: Path):
    evil = "<script>alert(1)</script>"
    write(GOOD)
    stage("prepare")
    said = report()
    said["near_duplicates"] = [
        {"row": "1", "held_out_row": evil, "similarity": 0.9, "prompt": evil, "held_out_prompt": evil}
    ]
    said["data"][0]["name"] = evil
    text = page.render(said)
    assert "<script" not in text
    assert Page(text).shown.count(evil) == 5  # three of the pair, the name on top and its version


def test_what_is_found_goes_into_the_record(place: Path):
    write([*GOOD, b"{"])
    override(Path("params.yaml"), ["data.max_dropped_fraction=0.5"])
    stage("prepare")
    (journal,) = (place / "home/outbox").glob("prepare-*/journal.jsonl")
    notes = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [n["name"] for n in notes if n["kind"] == "artifact"] == ["report.json", "report.html"]
    assert [n["name"] for n in notes if n["kind"] == "table"] == ["data faults"]
    (started,) = [n for n in notes if n["kind"] == "start"]
    digests = {d["name"]: d["digest"] for d in started["datasets"]}
    assert report()["data"][0]["digest"].startswith(digests["data/preferences.jsonl"])


def forms(found: Checked) -> dict[str, str]:
    return {path: layout.form for path, layout in found.layouts.items() if layout}


REAL: dict[str, tuple[Callable[[bytes], int], str]] = {
    "hh-rlhf/harmless-base.jsonl.gz": (lambda raw: len(gzip.decompress(raw).splitlines()), "preference"),
    "sharegpt-dpo/dpo_en.json": (lambda raw: len(json.loads(raw)), "preference"),
    "gsm8k/train.jsonl": (lambda raw: len(raw.splitlines()), "prompt_answer"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_is_counted_to_the_last_row(place: Path, name: str):
    """The tiny tokenizer has a token a letter: nothing is too long at these limits, so that all else is looked at."""
    if not (DATA / name).exists():
        pytest.skip(f"no {DATA / name}")
    count, form = REAL[name]
    override(
        Path("params.yaml"),
        [f"data.path={DATA / name}", "data.max_prompt_length=100000", "data.max_response_length=100000",
         "evaluate.max_response_length=100000",
         "data.near_duplicate_threshold=0.8", "data.max_dropped_fraction=0.05"],
    )  # fmt: skip
    found = stage("prepare")
    assert found["rows"] == count((DATA / name).read_bytes())
    written = sum(len(side(s)) for s in ("train", "judge", "validation", "test"))
    assert found["rows"] == written + found["dropped"]
    openings = [
        {next(m["content"] for m in r["messages"] if m["role"] == "user") for r in side(s)}
        for s in ("train", "judge", "validation", "test")
    ]
    assert sum(map(len, openings)) == len(set().union(*openings))
    assert forms(check(load(Path("params.yaml")).data)) == {str(DATA / name): form}


def test_a_check_works_without_a_base_model_and_says_what_it_measured(place: Path):
    shutil.rmtree("artifacts")
    write([*GOOD, {**GOOD[0], "chosen": "word " * 300}])
    began = time.monotonic()
    found = check(load(Path("params.yaml")).data)
    assert time.monotonic() - began < 20
    assert found.report["statistics"]["unit"] == "words"
    assert found.report["dropped"] == 0
    assert (forms(found), found.problems, found.whole) == ({"data/preferences.jsonl": "preference"}, [], True)


def test_a_check_finds_a_side_that_is_left_without_prompts_as_the_stage_does(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    hello = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    chats = [{**row, "prompt": [*hello, {"role": "user", "content": row["prompt"]}]} for row in GOOD]
    write(chats)
    found = check(load(Path("params.yaml")).data)
    assert [problem.partition(";")[0].rpartition(" to ")[0] for problem in found.problems] == ["no prompt is left"] * 2
    assert "same first messages" in found.problems[0]
    assert found.problems[0] in stopped(capsys)


def test_the_report_says_as_what_each_source_was_read(place: Path):
    write(GOOD[:20], "data/mix/a.jsonl")
    write([{"question": row["prompt"], "answer": 3} for row in GOOD[20:]], "data/mix/b.jsonl")
    sources = [{"path": f"data/mix/{name}.jsonl", "weight": 1} for name in "ab"]
    override(Path("params.yaml"), ["data.path=data/mix", f"data.sources={json.dumps(sources)}"])
    stage("prepare")
    forms = [(form["name"], form["form"].partition(" ")[0]) for form in report()["forms"]]
    assert forms == [("data/mix/a.jsonl", "preference"), ("data/mix/b.jsonl", "prompt_answer")]
    assert "prompt: question, answer: answer" in Path("data/prepared/report.html").read_text()


def test_a_check_of_a_huge_file_looks_at_its_first_rows(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.data.check.FIRST", 10)
    write(GOOD)
    found = check(load(Path("params.yaml")).data)
    assert (found.report["rows"], found.whole) == (10, False)


def test_doctor_reads_the_data_as_the_stage_does(place: Path):
    from tasks.tools.doctor import LOOKS

    write(GOOD)
    well, said = LOOKS["data"]()
    assert well
    assert "40 rows" in said
    write([*GOOD, b"{", b"{"])
    well, said = LOOKS["data"]()
    assert not well
    assert "max_dropped_fraction" in said


def kinds(rows: Sequence[Mapping[str, Any]]) -> list[tuple[bool, bool]]:
    return [(r["chosen"] is not None, r["rejected"] is not None) for r in rows]


def test_readers_return_rows_by_what_they_hold(place: Path):
    from tasks.data.prepared import read_demonstrations, read_pairs, read_prepared, read_prompts

    thumbs = [{"prompt": f"say {i}", "response": "yes", "label": True} for i in range(40)]
    thumbs += [{"prompt": f"say {i}", "response": "no", "label": False} for i in range(20)]
    write(thumbs)
    found = stage("prepare")
    assert found["rows"] == 60
    assert found["unpaired"] == found["dropped"] == 0
    assert set(kinds(read_pairs("train"))) == {(True, True)}
    assert set(kinds(read_demonstrations("train"))) == {(True, True), (True, False)}
    assert len(read_prompts("train")) == len(read_prepared("train")) == found["train_prompts"]


def step_pairs() -> list[dict[str, Any]]:
    """The second row of each prompt has the first one's steps at another place."""
    return [
        {"prompt": f"sum {i}?", "prefix": prefix, "chosen": "so it is\n", "rejected": "or not\n"}
        for i in range(20)
        for prefix in ("", "first\n")
    ]


def test_step_pairs_are_pairs_for_dpo_and_no_whole_answers(place: Path):
    from tasks.data.prepared import encode_pairs, read_demonstrations, read_pairs, read_prompts
    from tasks.training.models import open_models
    from tasks.training.unpaired import read_labelled

    write([*GOOD, *step_pairs(), {"prompt": "sum 50?", "prefix": "so: ", "chosen": "a", "rejected": "b"}])
    found = stage("prepare")
    assert (found["rows"], found["dropped"]) == (81, 0)
    assert sum(contents["step_pairs"] for contents in report()["sides"].values()) == 41
    (warning,) = report()["warnings"]
    assert (warning["rows"], warning["examples"]) == (1, ["81"])
    assert "ends within a line" in warning["text"]
    train = read_pairs("train")
    steps = [row for row in train if row["prefix"] is not None]
    assert steps
    assert {row["prefix"] for row in read_demonstrations("train")} == {None}
    assert len(read_demonstrations("train")) == len(train) - len(steps)
    assert {row["prompt"] for row in steps} < {row["prompt"] for row in read_prompts("train")}
    tokenizer = open_models(load(Path("params.yaml"))).base.tokenizer
    assert len(read_labelled(tokenizer)) == 2 * (len(train) - len(steps))
    later = next(row for row in steps if row["prefix"])
    (pair,) = encode_pairs(tokenizer, [later])
    assert tokenizer.decode(pair.prompt).endswith(later["prefix"])
    assert (tokenizer.decode(pair.chosen), tokenizer.decode(pair.rejected)) == (later["chosen"], later["rejected"])


def test_step_pairs_are_as_long_as_the_answer_they_belong_to(place: Path):
    """Prefix of 6 letters, longer step of 9, an end: 16; one token less drops the rows with a prefix."""
    write([*GOOD, *step_pairs()])
    for limit, dropped in ((16, []), (15, [("response_too_long", 20)])):
        override(Path("params.yaml"), [f"data.max_response_length={limit}", "data.max_dropped_fraction=1"])
        stage("prepare")
        assert [(f["reason"], f["rows"]) for f in report()["findings"]] == dropped


def test_step_pairs_alone_are_no_demonstrations(place: Path):
    from tasks.data.prepared import LacksRows, read_demonstrations, read_pairs

    write(step_pairs())
    stage("prepare")
    assert read_pairs("train")
    with pytest.raises(
        LacksRows, match=r"no chosen response: it holds (\d+) rows.* and \1 step pairs, which are parts of"
    ):
        read_demonstrations("train")


def test_bad_answers_without_a_good_one_lie_apart_or_their_prompts_are_held_out(place: Path):
    """Thumbs down to 40 prompts of their own: kto trains on those of the training side; none is left over."""
    thumbs = [{"prompt": f"say {i}", "response": "yes", "label": True} for i in range(40)]
    write(thumbs)
    stage("prepare")
    unpaired = Path("data/prepared/unpaired.jsonl")
    assert unpaired.read_bytes() == b""
    before = {name: side(name) for name in ("train", "judge", "validation", "test")}
    write([*thumbs, *({"prompt": f"tell {i}", "response": "no", "label": False} for i in range(40))])
    found = stage("prepare")
    assert (found["rows"], found["dropped"]) == (80, 0)
    assert side("train") == before["train"]
    rows = [json.loads(line) for line in unpaired.read_text().splitlines()]
    assert set(kinds(rows)) == {(False, True)}
    assert 5 < len(rows) == found["unpaired"] < 25
    held_out = [row for name in before for row in side(name) if row not in before[name]]
    assert set(kinds(held_out)) == {(False, True)}
    assert {row["prompt"] for row in (*rows, *held_out)} == {f"tell {i}" for i in range(40)}
    for i, row in enumerate(rows):  # with a good answer each, they are rows to train on
        thumbs.append({"prompt": row["prompt"], "response": f"so {i}", "label": True})
    write(thumbs)
    assert stage("prepare")["train_rows"] == len(before["train"]) + len(rows)


def test_a_stage_that_needs_pairs_and_finds_none_says_what_can_be_run(place: Path):
    from tasks.data.prepared import LacksRows, read_demonstrations, read_pairs

    write([{"prompt": f"add {i} to {i * i + 100}", "answer": str(i)} for i in range(40)])
    stage("prepare")
    with pytest.raises(LacksRows, match=r"train\.jsonl has no pair.*you can run: ppo and grpo"):
        read_pairs("train")
    with pytest.raises(LacksRows, match="no chosen response"):
        read_demonstrations("train")
