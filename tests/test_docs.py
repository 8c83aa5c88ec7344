"""Files, names and tests in the documents exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREE = ROOT / "docs/tree.md"


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))])
def test_every_link_of_a_document_leads_to_a_file_and_a_heading(document: str) -> None:
    for path, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", (ROOT / document).read_text()):
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document} links to {path}, which does not exist"
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in anchors, f"{document} links to #{heading}, which is no heading of {target.name}"


@pytest.mark.parametrize(
    "document", ["README.md", "docs/architecture.md", "docs/data.md", "docs/notation.md", "docs/tree.md"]
)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    named = set(
        re.findall(r"`((?:alignflow|tasks|flows|infra|tests|docs|data)/[\w./-]*\w)`", (ROOT / document).read_text())
    )
    named -= {path for path in named if path.startswith("data/prepared")}  # a run makes it
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_table_of_places_names_functions_that_exist() -> None:
    rows = re.findall(r"\| `([\w/]+\.py)` ((?:`\w+`(?:, )?)+)", TREE.read_text())
    assert rows
    for path, names in rows:
        source = (ROOT / path).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in source, f"{name} is not in {path}"


@pytest.mark.parametrize("package", ["alignflow", "tasks", "flows"])
def test_every_module_has_its_line_in_the_tree(package: str) -> None:
    """In the lines of its own folder: two modules of one name need two places."""
    lines = _tree()
    for path in (ROOT / package).rglob("*.py"):
        if path.name != "__init__.py":
            folder = path.parent.relative_to(ROOT).as_posix()
            assert re.search(rf"\b{path.stem}\b", lines.get(folder, "")), f"{path.relative_to(ROOT)} is not in the tree"


def _tree() -> dict[str, str]:
    """Return by folder its text and the names of its files, without the texts of these files."""
    folders: list[str] = []
    said: dict[str, str] = {}
    for line in TREE.read_text().partition("```")[2].partition("```")[0].splitlines():
        depth, (name, _, text) = (len(line) - len(line.lstrip())) // 2, line.strip().partition(" ")
        if name.endswith("/") and depth <= len(folders):
            folders = [*folders[:depth], name.rstrip("/")]
            said["/".join(folders)] = text
        elif name.endswith(".py") and depth <= len(folders):
            folders = folders[:depth]
            said["/".join(folders)] += f" {name}"
        elif folders:
            said["/".join(folders)] += f" {line}"
    return said


def test_every_promise_names_a_test_that_exists() -> None:
    rows = [
        line.split("|")[1:-1] for line in (ROOT / "docs/reliability.md").read_text().splitlines() if "test_" in line
    ]
    promises = [row for row in rows if len(row) == 2]
    assert len(promises) > 20
    for promise, named in promises:
        path, *tests = re.findall(r"`([\w/.]+)`", named)
        source = (ROOT / "tests" / path).read_text()
        assert tests, promise
        for test in tests:
            assert f"def {test}(" in source, f"{test} is not in {path}"


def test_every_equation_points_at_code_and_tests_that_exist() -> None:
    """A cell names a file and then what is in it; a row without code names the test of a stage."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (ROOT / "docs/equations.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| what", "|---"))
    ]
    assert len(rows) > 50
    for row in rows:
        code, tests = row[-2:]
        assert tests, row[0]
        for cell, folder, pattern in ((code, "alignflow", r"(def|class) {}\b"), (tests, "tests", r"def {}\(")):
            path = None
            for name in re.findall(r"`([^`]+)`", cell):
                if name.endswith(".py"):
                    path = ROOT / folder / name
                    assert path.exists(), name
                else:
                    assert path is not None, f"{row[0]}: {name} has no file before it"
                    assert re.search(pattern.format(name), path.read_text()), f"{name} is not in {path.name}"
