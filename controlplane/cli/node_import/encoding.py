"""The bytes of a file → text, or a refusal that names what they are instead."""

from __future__ import annotations

import codecs

from events.errors import BadRequest

SIZE_MAX_BYTES = 512 * 1024 * 1024
"""More than ``kubectl get nodes -o json`` prints of 10,000 nodes."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; those of UTF-32 begin like those of UTF-16, so they come first."""


def text_of(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 and UTF-32 with a byte order mark. Raises BadRequest(import_unreadable)."""
    if len(data) > SIZE_MAX_BYTES:
        raise unreadable(f"the file is larger than {SIZE_MAX_BYTES // 2**20:,} MiB: import it in parts")
    mark, name = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(name)
    except UnicodeDecodeError as error:
        where = f"byte {len(mark) + error.start + 1} (0x{error.object[error.start]:02x})"
        raise unreadable(f"the file is not {name.upper()}: {where}; save it as UTF-8") from error
    nul = text.find("\0")
    if nul >= 0:
        half = len(data) > 3 and 0 in (data[0], data[1])
        what = "it looks like UTF-16 without a byte order mark; " if half else ""
        line = text.count("\n", 0, nul) + 1
        raise unreadable(f"line {line} holds a NUL character: {what}save it as UTF-8")
    return text


def unreadable(message: str, **details: object) -> BadRequest:
    """The error for a file of nodes that cannot be read."""
    return BadRequest("import_unreadable", message, **details)
