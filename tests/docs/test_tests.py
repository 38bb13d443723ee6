"""What tests share lives outside of test modules, none sleeps or hits others, no folders import in a circle."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import LONG_S
from tests.nodeagent.sandbox import inside

ROOT = Path(__file__).parents[2]
OURS = ("events", "controlplane", "nodeagent", "replay", "deploy")
SLEEP_MAX_S = 0.1
"""The pace at which a condition is looked at; anything longer is a wait for an outcome, and has to name it."""


def sources() -> list[Path]:
    return sorted(path for path in (ROOT / "tests").rglob("*.py") if "bench" not in path.parts)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def from_tests(source: str) -> list[str]:
    """Test modules that are imported."""
    return [name for name in imports(ast.parse(source)) if ".test_" in name] if ".test_" in source else []


def sleeps(source: str) -> list[float]:
    """Fixed sleeps that are longer than a look."""
    if "sleep(" not in source:
        return []
    found = [
        float(node.args[0].value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, int | float)
    ]
    return [seconds for seconds in found if seconds > SLEEP_MAX_S]


def test_no_test_module_is_imported_by_another() -> None:
    found = {
        str(path.relative_to(ROOT)): names for path in sources() if (names := from_tests(path.read_text()))
    }
    assert found == {}, "put what is shared into a module of its own"


@inside
def test_a_signal_of_a_sandbox_to_its_own_process_group_stays_there() -> None:
    """`kill(0)` reaches all of the group, whatever its process namespace: here that would be every test."""
    assert os.getpgrp() == os.getpid()


def test_no_test_sleeps() -> None:
    # A virtual clock passes at once in the simulation; two tests put a sleeper where it is interrupted.
    there = {"tests/simulation", "tests/events/test_cancelling.py"}
    found = {
        name: long
        for path in sources()
        if (long := sleeps(path.read_text()))
        and not any((name := str(path.relative_to(ROOT))).startswith(other) for other in there)
    }
    assert found == {}, "wait for what the sleep stands for: tests/waiting.py"


@pytest.mark.parametrize(
    ("source", "says"),
    [("await asyncio.sleep(3)", [3.0]), ("time.sleep(0.05)", []), ("await asyncio.sleep(PACE_S)", [])],
)
def test_a_sleep_is_seen(source: str, says: list[float]) -> None:
    assert sleeps(f"async def f():\n    {source}\n") == says
    assert from_tests("from tests.events.test_live import Following") == ["tests.events.test_live"]


# --- circles -------------------------------------------------------------------------------------------


def folder_imports() -> dict[str, set[str]]:
    """Folder → the folders beside it that its modules import when they are loaded (not late, not for types).

    A folder and what is inside of it are one room: its parts use what they share, and it puts them together.
    """
    found: dict[str, set[str]] = {}
    folders = {str(init.parent.relative_to(ROOT)).replace("/", ".") for top in OURS for init in (ROOT / top).rglob("__init__.py")}  # fmt: skip  # noqa: E501
    for top in OURS:
        for path in (ROOT / top).rglob("*.py"):
            own = ".".join(path.relative_to(ROOT).parent.parts)
            body = ast.Module([n for n in ast.parse(path.read_text()).body if not isinstance(n, ast.If)], [])
            loaded = [n for n in body.body if isinstance(n, ast.Import | ast.ImportFrom)]
            for name in imports(ast.Module(list(loaded), [])):
                if name.split(".")[0] in OURS:
                    target = name if name in folders else name.rpartition(".")[0]
                    if not (target + ".").startswith(own + ".") and not (own + ".").startswith(target + "."):
                        found.setdefault(own, set()).add(target)
    return found


def circles(graph: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """The groups of folders in which each is reached from each (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while True:
                group.append(stack.pop())
                if group[-1] == node:
                    break
            if len(group) > 1:
                found.append(tuple(sorted(group)))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_no_folders_import_each_other_in_a_circle() -> None:
    assert circles(folder_imports()) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]
    assert circles({"a": {"b"}, "b": {"c"}}) == []


def test_every_file_that_is_named_as_a_long_one_is_there() -> None:
    assert [name for name in LONG_S if not (ROOT / "tests" / name).exists()] == []
