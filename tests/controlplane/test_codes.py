"""The table of codes in the documentation is complete, and every code means something."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from events import errors
from events.codes import CODES
from events.codes_table import table
from events.protocol.queries import CONDITIONS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("events", "controlplane", "nodeagent", "replay", "deploy")


def test_the_document_is_what_the_code_says() -> None:
    written = (ROOT / "events" / "CODES.md").read_text()
    assert written == table(), "run: python -m events.codes_table > events/CODES.md"


def test_every_code_has_a_kind_a_meaning_and_a_remedy() -> None:
    for name, code in CODES.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert issubclass(getattr(errors, code.kind), errors.IsthmusError), name
        assert code.meaning.endswith("."), name
        assert code.remedy.endswith("."), name
    for name, meaning in CONDITIONS.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert meaning.endswith("."), name


def raised() -> dict[str, str]:
    """Code → a place in the sources that raises it by its literal name."""
    found: dict[str, str] = {}
    classes = {cls for cls in vars(errors) if isinstance(getattr(errors, cls), type)}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in classes
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                ):
                    found[str(node.args[0].value)] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def test_every_code_that_is_raised_is_in_the_table() -> None:
    unknown = {code: place for code, place in raised().items() if code not in CODES}
    assert unknown == {}
