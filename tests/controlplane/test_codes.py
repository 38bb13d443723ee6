"""The table of codes in the documentation is complete, and every code means something."""

from __future__ import annotations

import re
from pathlib import Path

from events import errors
from events.cli.codes_table import table
from events.codes import CODES
from events.protocol.queries import CONDITIONS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("events", "controlplane", "nodeagent", "replay", "deploy")


def test_the_document_is_what_the_code_says() -> None:
    written = (ROOT / "events" / "CODES.md").read_text()
    assert written == table(), "run: python -m events.cli.codes_table > events/CODES.md"


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
    classes = "|".join(cls for cls in vars(errors) if isinstance(getattr(errors, cls), type))
    call = re.compile(rf"\b(?:{classes})\(\s*\"([^\"]*)\"")
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found |= dict.fromkeys(call.findall(path.read_text()), str(path.relative_to(ROOT)))
    return found


def test_every_code_that_is_raised_is_in_the_table() -> None:
    places = raised()
    assert {"forbidden", "chain_broken", "bus_unreachable"} <= places.keys(), "the search finds them"
    unknown = {code: place for code, place in places.items() if code not in CODES}
    assert unknown == {}
