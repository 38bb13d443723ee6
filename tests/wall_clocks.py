"""Sets the wall clock of one running process, whatever it is written in, and of no other.

A process asks for the time by ``__vdso_clock_gettime``, code that the kernel maps into it (Go does so
without any C library, which is why preloading one would not do). Here that code is replaced in the memory of
the one process by the system call, and an offset is added to what it says of CLOCK_REALTIME. Monotonic clocks
stay true, as they do when an administrator or NTP sets a machine's clock. Needs root and x86-64. A process
that is started again has a true clock again.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CLOCK_GETTIME = bytes.fromhex(
    "b8e4000000"  # mov eax, 228: the system call clock_gettime(edi, rsi)
    "0f05"  # syscall
    "85ff"  # test edi, edi: CLOCK_REALTIME is 0
    "750a"  # jne to the ret
    "488b0d04000000"  # mov rcx, [rip+4]: the offset behind this code
    "48010e"  # add [rsi], rcx: whole seconds
    "c3"  # ret
)
_DYNAMIC, _STRTAB, _SYMTAB = 2, 5, 6


def can_set() -> bool:
    """Whether :func:`set_ahead` works here."""
    return platform.machine() == "x86_64" and os.geteuid() == 0


def set_ahead(pid: int, seconds: int) -> bool:
    """From now on the wall clock of that process is so many seconds ahead (negative: behind) of the truth.

    False when the process is gone, or is only just being started. Raises OSError when the kernel forbids it.
    """
    with suppress(ProcessLookupError, FileNotFoundError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if line.endswith("[vdso]"):
                begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
                    memory.seek(begin)
                    image = memory.read(end - begin)
                    for name, value in _symbols(image):
                        if name == "__vdso_clock_gettime":
                            memory.seek(begin + value)
                            memory.write(CLOCK_GETTIME + struct.pack("<q", seconds))
                return True
    return False


def _symbols(image: bytes) -> Iterator[tuple[str, int]]:
    """The functions of an ELF image and where they are in it."""
    headers, count = struct.unpack_from("<Q", image, 0x20)[0], struct.unpack_from("<H", image, 0x38)[0]
    tags: dict[int, int] = {}
    for index in range(count):
        kind, _, offset = struct.unpack_from("<IIQ", image, headers + 56 * index)
        while kind == _DYNAMIC:
            tag, value = struct.unpack_from("<qQ", image, offset)
            tags.setdefault(tag, value)
            offset += 16
            if not tag:
                break
    names, place = tags[_STRTAB], tags[_SYMTAB]
    while place < names:  # as in every image that the kernel makes: the symbols end where their names begin
        name, _, _, _, value = struct.unpack_from("<IBBHQ", image, place)
        yield image[names + name : image.index(b"\0", names + name)].decode(), value
        place += 24
