"""Inside of every package its modules and sub-packages import one another without a circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("events", "controlplane", "nodeagent", "replay", "deploy")
PACKAGES = sorted(path.parent for top in OURS for path in (ROOT / top).rglob("__init__.py"))


@cache
def imported(file: Path) -> set[str]:
    """Every dotted name that a module imports, also where it only needs it for its annotations."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(package: Path, root: Path = ROOT) -> dict[str, set[str]]:
    """Each module and sub-package → those beside it that it imports."""
    inside = {path.stem: [path] for path in package.glob("*.py") if path.stem != "__init__"}
    inside |= {path.parent.name: sorted(path.parent.rglob("*.py")) for path in package.glob("*/__init__.py")}
    prefix = ".".join(package.relative_to(root).parts) + "."
    uses: dict[str, set[str]] = {}
    for room, files in inside.items():
        names = {
            name.removeprefix(prefix).split(".")[0]
            for f in files
            for name in imported(f)
            if name.startswith(prefix)
        }
        uses[room] = (names & inside.keys()) - {room}
    return uses


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: ".".join(path.relative_to(ROOT).parts))
def test_no_circle(package: Path) -> None:
    try:
        TopologicalSorter(rooms(package)).prepare()
    except CycleError as error:
        pytest.fail(f"{package.relative_to(ROOT)}: {' ← '.join(error.args[1])}")


def test_a_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    (package / "room" / "__init__.py").touch()
    (package / "hall.py").write_text("from house.room.chair import seat\n")
    (package / "room" / "chair.py").write_text("def sit():\n    import house.hall\n")
    assert rooms(package, tmp_path) == {"hall": {"room"}, "room": {"hall"}}
    with pytest.raises(CycleError):
        TopologicalSorter(rooms(package, tmp_path)).prepare()
