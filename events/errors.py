"""The error tree. Everything that reaches a person or another program is one of these.

::

    IsthmusError                 code, message, details
    ├── Refused                  the request was understood; the answer is no        exit 1
    │   └── BadRequest           the request itself is malformed                     exit 1
    ├── VerificationFailed       stored data is not what it should be                exit 1
    ├── Usage                    the command line or the configuration is wrong      exit 2
    └── Unavailable              the bus, or nobody behind it, answered in time      exit 3
        ├── Overloaded           a bounded queue is full: try again later            exit 3
        └── OutcomeUnknown       it may or may not have happened: ask again by id    exit 3

Each error carries a stable ``code`` out of :mod:`events.codes`; programs test the code, people
read the message. A message names both sides, the numbers and the way out.
"""

from __future__ import annotations

from typing import Any, ClassVar

from events.codes import CODES


class IsthmusError(Exception):
    """Base of the tree.

    ``details`` holds JSON-representable values only: it travels in replies and in ``--json``.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str, **details: Any) -> None:
        if code not in CODES:
            raise LookupError(f"error code {code!r} is not in events.codes")
        super().__init__(message)
        self.code = code
        self.message = message
        self.details: dict[str, Any] = details

    def __str__(self) -> str:
        return self.message


class Refused(IsthmusError):
    """The request was understood and is refused; nothing changed beyond, at most, a recorded refusal."""


class BadRequest(Refused):
    """The request is malformed: wrong types, not JSON, too large, an unknown schema. Nothing changed."""


class VerificationFailed(IsthmusError):
    """Stored data contradicts itself: a broken chain, a gap, a violated invariant, a foreign event."""


class Usage(IsthmusError):
    """The command line or a configuration file is wrong. Nothing was sent."""

    exit_code = 2


class Unavailable(IsthmusError):
    """The bus or the controller could not be reached within the deadline. Nothing is known to have changed."""

    exit_code = 3


class Overloaded(Unavailable):
    """A bounded queue is full. The request was not taken; repeating it later is safe."""


class OutcomeUnknown(Unavailable):
    """The acknowledgement was lost: the events may be stored. Repeat with the same command id to find out."""


_BY_NAME: dict[str, type[IsthmusError]] = {
    cls.__name__: cls
    for cls in (Refused, BadRequest, VerificationFailed, Usage, Unavailable, Overloaded, OutcomeUnknown)
}


def from_wire(code: str, message: str, details: dict[str, Any] | None = None) -> IsthmusError:
    """Rebuild the error that a reply carries. A code unknown here (a newer peer's) becomes ``unknown_code``."""
    known = CODES.get(code)
    if known is None:
        return Refused("unknown_code", f"{message} (code {code})", **(details or {}))
    return _BY_NAME[known.kind](code, message, **(details or {}))


def foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group to show: a refusal before time-outs that follow from it, ours before others."""
    errors = [foremost(one) if isinstance(one, BaseExceptionGroup) else one for one in group.exceptions]
    return min(errors, key=lambda error: (not isinstance(error, Refused), not isinstance(error, IsthmusError)))
