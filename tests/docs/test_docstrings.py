"""What a docstring points at exists, every package says what it is, and no module outgrows a sitting."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("events", "controlplane", "nodeagent", "replay", "deploy")
ROLE = re.compile(r":(mod|class|func|meth|data|attr|exc):`~?([A-Za-z_]\w*(?:\.\w+)+)`")
LINES_MAX, MODULES_MAX = 450, 16


def modules() -> list[Path]:
    return sorted(path for top in (*OURS, "tests") for path in (ROOT / top).rglob("*.py"))


def references() -> Iterator[tuple[str, str, str]]:
    for path in modules():
        for kind, name in ROLE.findall(path.read_text()):
            if name.split(".")[0] in (*OURS, "tests"):
                yield str(path.relative_to(ROOT)), kind, name


def exists(kind: str, name: str) -> bool:
    """Whether the dotted name is a module (for ``:mod:``), or something that a module holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:end])
        if folder.with_suffix(".py").exists() or (folder / "__init__.py").exists():
            break
    else:
        return False
    rest = parts[end:]
    if kind == "mod" or not rest:
        return not rest
    found = importlib.import_module(".".join(parts[:end]))
    for part in rest:
        if not hasattr(found, part):
            return part in getattr(found, "__annotations__", {})
        found = getattr(found, part)
    return True


def test_whatever_a_docstring_names_by_its_dotted_path_exists() -> None:
    missing = sorted({found for found in references() if not exists(*found[1:])})
    assert missing == []


@pytest.mark.parametrize(
    ("kind", "name", "there"),
    [
        ("mod", "events.types", True),
        ("mod", "events.wire", False),
        ("mod", "events.types.NodeJoined", False),
        ("class", "events.types.NodeJoined", True),
        ("class", "events.types.NodeJoyned", False),
        ("meth", "events.log.LogReader.read", True),
        ("data", "events.log.BATCH_LIMIT", True),
    ],
)
def test_the_check_tells_what_exists_from_what_does_not(kind: str, name: str, there: bool) -> None:
    assert exists(kind, name) is there


def packages() -> list[Path]:
    return [
        path for path in modules() if path.name == "__init__.py" and path.relative_to(ROOT).parts[0] in OURS
    ]


def test_every_package_says_what_it_is_and_ships_its_types() -> None:
    silent = [str(p) for p in packages() if not ast.get_docstring(ast.parse(p.read_text()))]
    untyped = [top for top in OURS if not (ROOT / top / "py.typed").exists()]
    assert (silent, untyped) == ([], [])


def test_no_module_of_the_product_is_too_long_and_no_folder_too_full() -> None:
    product = [path for path in modules() if path.relative_to(ROOT).parts[0] in OURS]
    long = {str(path.relative_to(ROOT)) for path in product if len(path.read_text().splitlines()) > LINES_MAX}
    full = {
        str(folder): count
        for folder in {path.parent for path in product}
        if (count := sum(path.parent == folder for path in product if path.name != "__init__.py")) > MODULES_MAX
    }
    assert (long, full) == (set(), {})
