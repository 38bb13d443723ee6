"""Write the golden file of each event type that has none yet: ``python -m tests.replay.make_golden``.

For whoever adds a type, a version or a field. Existing files are never touched: once released, they are the
proof that old logs stay readable. A type that got a field gets a further file with all of today's fields,
``TYPE+WHAT.json``; with ``--release`` the schemas of all types are written down too, under our version.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from events.types import EVENT_TYPES, Event

GOLDEN = Path(__file__).parent / "golden"
RELEASED = Path(__file__).parent / "released"
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


def files(type_name: str) -> list[Path]:
    """The golden files of a type, in the order in which its shapes came."""
    return sorted(GOLDEN.glob(f"{type_name}*.json"), key=lambda file: (len(fields_in(file)), file.name))


def fields_in(file: Path) -> set[str]:
    """The fields that a golden file has."""
    return set(msgspec.json.decode(file.read_bytes()))


def shape(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """What a reader of the type accepts: its JSON schema, with those of the structs in it, without prose."""
    _, components = msgspec.json.schema_components([kind])
    return {name: _without_prose(schema) for name, schema in components.items()}


def _without_prose(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _without_prose(value)
            for key, value in schema.items()
            if not (key in {"title", "description"} and isinstance(value, str))
        }
    return [_without_prose(item) for item in schema] if isinstance(schema, list) else schema


def shapes(types: tuple[type[Event], ...] = EVENT_TYPES) -> str:
    """The schemas of all types, one type a line."""
    lines = ",\n".join(f"{json.dumps(kind.type_name())}: {json.dumps(shape(kind))}" for kind in types)
    return f"{{\n{lines}\n}}\n"


def main(words: list[str]) -> None:
    """Write what is missing."""
    for kind in EVENT_TYPES:
        known = files(kind.type_name())
        new = sorted(set(_fields(kind)) - fields_in(known[-1])) if known else []
        if not known or new:
            file = GOLDEN / f"{'+'.join([kind.type_name(), *new])}.json"
            event = kind(**{name: sample(hint, name) for name, hint in _fields(kind).items()})
            file.write_bytes(msgspec.json.encode(event) + b"\n")
            sys.stdout.write(f"wrote {file.name}\n")
    released = RELEASED / f"{version('isthmus')}.json"
    if "--release" in words and not released.exists():
        released.write_text(shapes())
        sys.stdout.write(f"wrote {released.name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
