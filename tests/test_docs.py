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
