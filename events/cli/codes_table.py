"""The documentation's tables of codes, generated: ``python -m events.cli.codes_table > events/CODES.md``.

A test compares the file with what this prints, so that no code goes undocumented.
"""

from __future__ import annotations

from collections.abc import Iterator

from events.codes import CODES
from events.protocol.queries import CONDITIONS

_EXIT = {"Usage": 2, "Unavailable": 3, "Overloaded": 3, "OutcomeUnknown": 3}
"""Class of the error → exit code of a command that meets it; 1 for all others."""

_HEAD = """\
# Codes

Generated from `events/codes` and `events/protocol/queries.py` by `python -m events.cli.codes_table`;
do not edit.

Every error that reaches a person or a program carries one of these codes. A code is never renamed or
reused; programs test the code, people read the message. The kind says what happened: **BadRequest**
and **Refused** changed nothing (a refusal that matters is recorded, once per asker and cause),
**VerificationFailed** means that stored data contradicts itself, **Unavailable** and **Overloaded** may
be repeated, **OutcomeUnknown** may have taken effect and is repeated with the same command id.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def lines() -> Iterator[str]:
    """The document, line by line."""
    yield from _HEAD.splitlines()
    yield ""
    yield "## Errors"
    yield ""
    yield "| Code | Kind | Exit | Meaning | What to do |"
    yield "|---|---|---|---|---|"
    for name, code in CODES.items():
        exit_code = _EXIT.get(code.kind, 1)
        yield f"| `{name}` | {code.kind} | {exit_code} | {_cell(code.meaning)} | {_cell(code.remedy)} |"
    yield ""
    yield "## Conditions"
    yield ""
    yield "What `isthmus cluster show` and the console report about the present; it goes away with its cause."
    yield ""
    yield "| Code | Meaning |"
    yield "|---|---|"
    for name, meaning in CONDITIONS.items():
        yield f"| `{name}` | {_cell(meaning)} |"


def table() -> str:
    """The whole document."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201  this is a generator
