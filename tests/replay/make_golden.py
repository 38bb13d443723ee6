"""Write the golden file of each event type that has none yet: ``python -m tests.replay.make_golden``.

For whoever adds a type or a version. Existing files are never touched: once released, they are the proof that
old logs stay readable.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from events.types import EVENT_TYPES

GOLDEN = Path(__file__).parent / "golden"
MOMENT = datetime(2026, 3, 2, 8, 0, 0, 123456, tzinfo=UTC)


def sample(kind: Any, name: str) -> Any:
    """A value of the type that is no default, made of the field's name."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return arguments[-1]
    if origin in (Union, UnionType):
        return sample(next(a for a in arguments if a is not NoneType), name)
    if origin is tuple:
        items = [a for a in arguments if a is not Ellipsis]
        return tuple(sample(a, f"{name}-{i}") for i, a in enumerate(items))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind(**{key: sample(hint, f"{name}-{key}") for key, hint in _fields(kind).items()})
    return {str: f"{name}-text", int: 4711, float: 2.5, bool: True, datetime: MOMENT}[kind]


def _fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in msgspec.structs.fields(kind)}


def main() -> int:
    """Returns how many files were written."""
    written = 0
    for kind in EVENT_TYPES:
        file = GOLDEN / f"{kind.type_name()}.json"
        if not file.exists():
            event = kind(**{name: sample(hint, name) for name, hint in _fields(kind).items()})
            file.write_bytes(msgspec.json.encode(event) + b"\n")
            sys.stdout.write(f"wrote {file.name}\n")
            written += 1
    return written


if __name__ == "__main__":
    main()
