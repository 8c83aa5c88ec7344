"""The documents point at things that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"`((?:alignflow|tasks|flows|infra|tests|docs|data)/[\w./-]*\w)`", text))
    linked = {ROOT / document / ".." / link for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)}
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing + [str(path) for path in linked if not path.resolve().exists()]


def test_the_table_of_places_names_functions_that_exist() -> None:
    rows = re.findall(r"\| `([\w/]+\.py)` ((?:`\w+`(?:, )?)+)", (ROOT / "README.md").read_text())
    assert rows
    for path, names in rows:
        source = (ROOT / path).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in source, f"{name} is not in {path}"


def test_every_module_of_the_core_has_its_line_in_the_tree() -> None:
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("## Where")[0]
    for path in (ROOT / "alignflow").rglob("*.py"):
        if path.name != "__init__.py" and path.parent.name not in {"data"}:
            assert re.search(rf"\b{path.stem}\b", tree), f"{path.relative_to(ROOT)} is not in the README's tree"


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
