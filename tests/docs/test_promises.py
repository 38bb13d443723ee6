"""What a caller must know stands in the docstring: what is raised, and what a cancellation leaves behind.

Held for everything that is public. What a class, a module or the package around it says of cancellation
holds for all coroutines in there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("events", "controlplane", "nodeagent", "replay", "deploy")

HARMLESS = {"NotImplementedError", "AssertionError", "StopIteration", "StopAsyncIteration", "CancelledError"}


class Promise(NamedTuple):
    """A public function and what its docstring must speak of."""

    module: str
    function: str
    what: str

    def __str__(self) -> str:
        return f"{self.module} {self.function} {self.what}"


def raised(function: ast.AST) -> bool:
    """Whether its own body raises anything that a caller has to know of (a class in it does not count)."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = error.id if isinstance(error, ast.Name) else getattr(error, "attr", "")
            if name not in HARMLESS:
                return True
        if raised(node):
            return True
    return False


def spoken(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether its docstring is for others: a command's is its help, a route's is the API's description."""
    called = (d.func if isinstance(d, ast.Call) else d for d in function.decorator_list)
    names = {d.id if isinstance(d, ast.Name) else getattr(d, "attr", "") for d in called}
    return bool(names & {"command", "group", "get", "post", "websocket"})


Methods = frozenset[str]
parsed = cache(ast.parse)


def methods(node: ast.ClassDef) -> Methods:
    return frozenset(n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def ports(source: str) -> Iterator[Methods]:
    """The methods of each of a module's protocols: they speak for implementations without a docstring."""
    for node in ast.walk(parsed(source)) if "Protocol" in source else ():
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
            yield methods(node)


def spoken_for_in(node: ast.ClassDef, known: Collection[Methods]) -> Methods:
    """What the ports say that the class implements: those of which it has at least half of the methods."""
    own = methods(node)
    return frozenset().union(*(port for port in known if 2 * len(port & own) >= len(port)))


def missing(module: str, source: str, known: Collection[Methods] = (), package: str = "") -> Iterator[Promise]:
    """What the docstrings of the public functions of a module do not say; ``package``: its ``__init__``."""

    def visit(
        body: list[ast.stmt], path: tuple[str, ...], of_class: str = "", spoken_for: Methods = frozenset()
    ) -> Iterator[Promise]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                around = of_class + (ast.get_docstring(node) or "")
                yield from visit(node.body, (*path, node.name), around, spoken_for_in(node, known))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.name.startswith("_") or spoken(node):
                    continue
                said = ast.get_docstring(node) or ""
                if not said and node.name in spoken_for:
                    continue
                name = ".".join((*path, node.name))
                if raised(node) and not re.search(r"\b[Rr]aise", said):
                    yield Promise(module, name, "raises")
                if isinstance(node, ast.AsyncFunctionDef) and not re.search(r"\b[Cc]ancel", said + of_class):
                    yield Promise(module, name, "cancellation")

    tree = parsed(source)
    around = [ast.get_docstring(tree) or "", ast.get_docstring(parsed(package)) or ""]
    yield from visit(tree.body, (), " ".join(re.findall(r"\bCancelled, .*", "\n".join(around))))


def unsaid() -> list[str]:
    """``module function what`` for each docstring that does not say it."""
    texts = {
        str(path.relative_to(ROOT)): path.read_text() for top in OURS for path in (ROOT / top).rglob("*.py")
    }
    known = [port for text in texts.values() for port in ports(text)]
    return sorted(
        str(one)
        for module, text in texts.items()
        for one in missing(module, text, known, texts.get(str(Path(module).with_name("__init__.py")), ""))
    )


def test_docstrings_say_what_is_raised_and_what_a_cancellation_leaves_behind() -> None:
    left = unsaid()
    assert not left, f"say it in the docstring (CONTRIBUTING.md): {left}"


def test_a_port_speaks_for_implementations_without_a_docstring() -> None:
    port = "class Port(Protocol):\n    async def f(self): ...\n    def _g(self): ...\n"
    assert list(ports(port)) == [{"f", "_g"}]
    known = list(ports(port))
    implementation = "class C:\n    async def f(self):\n        raise OSError\n"
    assert list(missing("m", implementation, known)) == []
    assert [p.what for p in missing("m", "async def f():\n    pass\n", known)] == ["cancellation"]
    other = [frozenset({"f", "g", "h"})]  # a class that happens to have one method of that name is no such port
    assert [p.what for p in missing("m", implementation, other)] == ["raises", "cancellation"]


def test_a_package_speaks_for_its_modules() -> None:
    module = 'async def f():\n    """Waits."""\n'
    assert list(missing("m", module, package='"""P. Cancelled, nothing is left."""')) == []
    assert [p.what for p in missing("m", module, package='"""P."""')] == ["cancellation"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('async def f():\n    """Waits."""\n', ["cancellation"]),
        ('async def f():\n    """Waits. Cancelled, it leaves nothing."""\n', []),
        ('def f():\n    """Checks."""\n    raise ValueError\n', ["raises"]),
        ('def f():\n    """Checks. Raises ValueError."""\n    raise ValueError\n', []),
        ("def _f():\n    raise ValueError\n", []),
        ("def f():\n    raise NotImplementedError\n", []),
        ("class C:\n    async def f(self):\n        raise OSError\n", ["raises", "cancellation"]),
        (
            'class C:\n    """Cancel it."""\n    async def f(self):\n        raise OSError\n',
            ["raises"],
        ),
        ('"""M. Cancelled, any leaves nothing."""\nasync def f():\n    pass\n', []),
        ('"""About cancelling."""\nasync def f():\n    pass\n', ["cancellation"]),
        ('class C:\n    """Cancel it."""\nasync def f():\n    pass\n', ["cancellation"]),
    ],
)
def test_the_check_sees_what_is_missing(source: str, says: list[str]) -> None:
    assert [promise.what for promise in missing("m", source)] == says
