"""The map and the guide for contributors name files, functions and tests that exist, and leave no room out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from controlplane.console.reference import document, reference

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "deploy/README.md")
TOP = ("controlplane", "nodeagent", "events", "replay", "deploy", "tests")
INVARIANTS = 19


def named_paths(text: str) -> set[str]:
    """Everything in backticks that is a path below one of the top folders."""
    words = re.findall(r"`([^`\s]+)`", text)
    return {word for word in words if word.split("/")[0] in TOP and "/" in word}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document: str) -> None:
    missing = [
        path
        for path in named_paths((ROOT / document).read_text())
        if "<" not in path and not any(ROOT.glob(path.rstrip("/")))
    ]
    assert missing == []


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / path).exists(), target
        assert path or anchor.strip("-") in {known.strip("-") for known in anchors}, target


def test_each_invariant_is_there_once_and_names_a_file_with_tests() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, INVARIANTS + 1))
    for number, holders in rows:
        files = re.findall(r"`([^`]+)`", holders)
        assert files, number
        for file in files:
            text_of = (ROOT / file).read_text()
            assert "def test_" in text_of or ".TestCase" in text_of, file


def test_every_function_that_the_map_names_is_in_the_file_beside_it() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    found = re.findall(r"`([a-z/_]+\.py)` \(((?:`[a-z_]+`(?:, )?)+)\)", text)
    assert len(found) >= 6
    for path, names in found:
        tree = ast.parse((ROOT / path).read_text())
        defined = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert set(re.findall(r"`([a-z_]+)`", names)) <= defined, path


def test_the_map_names_every_room() -> None:
    """Every package at any depth, by its folder's name."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {init.parent for top in TOP[:-1] for init in (ROOT / top).rglob("*/__init__.py")}
    unnamed = [str(room.relative_to(ROOT)) for room in rooms if not re.search(rf"\b{room.name}(/|\b)", text)]
    assert sorted(unnamed) == []


def test_every_package_says_what_it_is() -> None:
    silent = [
        str(init.relative_to(ROOT))
        for top in TOP[:-1]
        for init in (ROOT / top).rglob("__init__.py")
        if not ast.get_docstring(ast.parse(init.read_text()))
    ]
    assert silent == []


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        .strip()
        .replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("page", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "deploy").glob("*.md")))
def test_every_link_of_the_guides_leads_to_a_page_and_a_section(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not target.startswith("http") and (
            not path.exists() or (anchor and anchor.strip("-") not in {one.strip("-") for one in anchors(path)})
        ):
            broken.append(target)
    assert broken == []


def test_the_reference_of_the_api_is_what_the_console_serves() -> None:
    stale = "run: python -m controlplane.console.reference"
    assert (ROOT / "deploy" / "API.md").read_text() == reference(document()), stale
