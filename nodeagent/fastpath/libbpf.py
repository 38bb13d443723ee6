"""eBPF by the system's libbpf, through ctypes: what reads the object file is the kernel developers' own.

A loader of our own would have to follow relocations and BTF; bindings on PyPI bring a compiler or kernel
headers along. libbpf 1.0 (Debian 12) suffices: tcx (kernel 6.6) is younger, but its attachments are made by the
same calls with other numbers. Nothing that libbpf or the verifier prints is shown.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from events.errors import Refused

TCX_INGRESS, TCX_EGRESS = 46, 47
_BPF_F_BEFORE, _BPF_F_AFTER, _BPF_F_ID = 1 << 3, 1 << 4, 1 << 5
_PROG_DETACH = 9
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
QUERY_LIMIT = 64
"""Programs of one hook that are looked at: the kernel's own limit."""


class _Library:
    """libbpf's functions; made once, on first use."""

    def __init__(self) -> None:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        for name, result, arguments in (
            ("libbpf_set_print", pointer, (pointer,)),
            ("bpf_object__open_mem", pointer, (ctypes.c_char_p, size, pointer)),
            ("bpf_object__load", number, (pointer,)),
            ("bpf_object__close", None, (pointer,)),
            ("bpf_object__find_program_by_name", pointer, (pointer, ctypes.c_char_p)),
            ("bpf_object__next_map", pointer, (pointer, pointer)),
            ("bpf_map__name", ctypes.c_char_p, (pointer,)),
            ("bpf_map__fd", number, (pointer,)),
            ("bpf_program__fd", number, (pointer,)),
            ("bpf_map_update_elem", number, (number, pointer, pointer, ctypes.c_uint64)),
            ("bpf_map_delete_elem", number, (number, pointer)),
            ("bpf_map_lookup_elem", number, (number, pointer, pointer)),
            ("bpf_map_update_batch", number, (number, pointer, pointer, pointer, pointer)),
            ("bpf_map_lookup_batch", number, (number, pointer, pointer, pointer, pointer, pointer, pointer)),
            ("bpf_prog_attach", number, (number, number, number, ctypes.c_uint)),
            ("bpf_prog_detach2", number, (number, number, number)),
            ("bpf_prog_query", number, (number, number, ctypes.c_uint32, pointer, pointer, pointer)),
            ("bpf_prog_get_fd_by_id", number, (ctypes.c_uint32,)),
            ("bpf_map_get_fd_by_id", number, (ctypes.c_uint32,)),
            ("bpf_obj_get_info_by_fd", number, (number, pointer, pointer)),
        ):  # fmt: skip
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.libbpf_set_print(None)

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:  # for type checkers: set in __init__
        raise AttributeError(name)


_loaded: list[_Library] = []


def library() -> _Library:
    """The library. Raises Refused(prerequisite_missing) where it is not installed."""
    if not _loaded:
        try:
            _loaded.append(_Library())
        except (OSError, AttributeError) as error:
            raise Refused(
                "prerequisite_missing",
                "libbpf (version 1) is not installed: apt-get install libbpf1 (or dnf install libbpf)",
                program="libbpf",
            ) from error
    return _loaded[0]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno() or -result
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class Loaded:
    """Programs and maps of one object file, held by descriptors. ``programs`` are (descriptor, id) by name."""

    def __init__(self, content: bytes, programs: Sequence[str]) -> None:
        """Raises IsthmusError and OSError; nothing is attached then, and nothing left behind."""
        bpf = library()
        self._object = bpf.bpf_object__open_mem(content, len(content), None)
        if not self._object:
            raise OSError(errno.EINVAL, "the object file cannot be read")
        try:
            _check(bpf.bpf_object__load(self._object), "load")
            self.programs: dict[str, tuple[int, int]] = {}
            for name in programs:
                found = bpf.bpf_object__find_program_by_name(self._object, name.encode())
                fd = _check(bpf.bpf_program__fd(found) if found else -errno.ENOENT, f"program {name}")
                self.programs[name] = fd, info(fd)[0]
            self.maps: dict[str, int] = {}
            each = bpf.bpf_object__next_map(self._object, None)
            while each:
                name = bpf.bpf_map__name(each).decode()
                self.maps[name.rpartition(".")[2]] = bpf.bpf_map__fd(each)
                each = bpf.bpf_object__next_map(self._object, each)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go; what is attached stays attached."""
        if self._object:
            library().bpf_object__close(self._object)
            self._object = None


def info(fd: int) -> tuple[int, str, tuple[int, ...]]:
    """Id and name of a program, and the ids of its maps. Raises OSError."""
    record, ids, length = ctypes.create_string_buffer(256), (ctypes.c_uint32 * 64)(), ctypes.c_uint32(256)
    ctypes.c_uint32.from_buffer(record, 52).value = len(ids)
    ctypes.c_uint64.from_buffer(record, 56).value = ctypes.addressof(ids)
    _check(library().bpf_obj_get_info_by_fd(fd, record, ctypes.byref(length)), "info")
    count = ctypes.c_uint32.from_buffer(record, 52).value
    number = ctypes.c_uint32.from_buffer(record, 4).value
    return number, record.raw[64:80].rstrip(b"\0").decode(), tuple(ids[:count])


def attach(program_fd: int, ifindex: int, hook: int) -> None:
    """Put a program at the end of a device's hook; it stays without this process. Raises OSError."""
    _check(library().bpf_prog_attach(program_fd, ifindex, hook, 0), "attach")


def detach(program_fd: int, ifindex: int, hook: int) -> None:
    """Take a program off a device's hook. Raises OSError (ENOENT: it was not there)."""
    _check(library().bpf_prog_detach2(program_fd, ifindex, hook), "detach")


def attached(ifindex: int, hook: int) -> list[int]:
    """Ids of the programs of a device's hook, in their order. Raises OSError (ENODEV: no such device)."""
    ids, count = (ctypes.c_uint32 * QUERY_LIMIT)(), ctypes.c_uint32(QUERY_LIMIT)
    result = library().bpf_prog_query(ifindex, hook, 0, None, ids, ctypes.byref(count))
    if result < 0 and ctypes.get_errno() == errno.ENOENT:
        return []
    _check(result, "query")
    return list(ids[: count.value])


def detach_id(number: int, ifindex: int, hook: int) -> bool:
    """Take a program off by its id, without holding it; whether it was there. Raises OSError.

    This is how a process with no more than CAP_NET_ADMIN and CAP_BPF takes over from an earlier one: opening a
    program by its id would need CAP_SYS_ADMIN, naming its neighbour in the hook does not.
    """
    there = attached(ifindex, hook)
    if number not in there:
        return False
    place = there.index(number)
    if place == 0:
        flags, relative = _BPF_F_BEFORE, number  # before the first: the first itself
    elif place == len(there) - 1:
        flags, relative = _BPF_F_AFTER, number
    else:
        flags, relative = _BPF_F_BEFORE, there[place + 1]
    system_call = _SYSCALL.get(os.uname().machine)
    if system_call is None:
        raise OSError(errno.ENOSYS, f"detach: not known for {os.uname().machine}")
    attributes = (ctypes.c_uint32 * 32)(ifindex, 0, hook, flags | _BPF_F_ID, 0, relative, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.syscall(system_call, _PROG_DETACH, attributes, ctypes.sizeof(attributes)), "detach")
    return True


def name_of(number: int) -> str:
    """The name of a program; empty when it has gone. Raises PermissionError without CAP_SYS_ADMIN."""
    fd = library().bpf_prog_get_fd_by_id(number)
    if fd < 0:
        if ctypes.get_errno() in {errno.EPERM, errno.EACCES}:
            raise PermissionError(ctypes.get_errno(), "the program may not be looked at")
        return ""
    try:
        return info(fd)[1]
    finally:
        os.close(fd)


def map_of(program: int, name: str) -> int:
    """A descriptor of a program's map, for the caller to close. Raises OSError (EPERM: needs CAP_SYS_ADMIN)."""
    fd = _check(library().bpf_prog_get_fd_by_id(program), "program")
    try:
        maps = info(fd)[2]
    finally:
        os.close(fd)
    for number in maps:
        found = _check(library().bpf_map_get_fd_by_id(number), "map")
        record, length = ctypes.create_string_buffer(128), ctypes.c_uint32(128)
        _check(library().bpf_obj_get_info_by_fd(found, record, ctypes.byref(length)), "info")
        if record.raw[24:40].rstrip(b"\0").decode().endswith(name):
            return found
        os.close(found)
    raise OSError(errno.ENOENT, f"the program has no map {name}")


def put(map_fd: int, entries: Mapping[bytes, bytes]) -> None:
    """Write entries by one batch. Raises OSError."""
    if not entries:
        return
    keys, values = b"".join(entries), b"".join(entries.values())
    count = ctypes.c_uint32(len(entries))
    _check(library().bpf_map_update_batch(map_fd, keys, values, ctypes.byref(count), None), "map update")


def drop(map_fd: int, key: bytes) -> None:
    """Remove an entry; one that is gone already is what was wanted. Raises OSError."""
    if library().bpf_map_delete_elem(map_fd, key) < 0 and ctypes.get_errno() != errno.ENOENT:
        raise OSError(ctypes.get_errno(), f"map delete: {os.strerror(ctypes.get_errno())}")


def read(map_fd: int, key: bytes, size: int) -> bytes | None:
    """The value of one entry; of a per-CPU map all CPUs' values, one after another. Raises OSError."""
    value = ctypes.create_string_buffer(size)
    if library().bpf_map_lookup_elem(map_fd, key, value) < 0:
        if ctypes.get_errno() == errno.ENOENT:
            return None
        raise OSError(ctypes.get_errno(), f"map lookup: {os.strerror(ctypes.get_errno())}")
    return value.raw


def dump(map_fd: int, key_size: int, value_size: int, limit: int) -> dict[bytes, bytes]:
    """All entries of a map of at most ``limit``. Raises OSError."""
    keys, values = (
        ctypes.create_string_buffer(key_size * limit),
        ctypes.create_string_buffer(value_size * limit),
    )
    count, after = ctypes.c_uint32(limit), ctypes.create_string_buffer(max(key_size, 4))
    result = library().bpf_map_lookup_batch(map_fd, None, after, keys, values, ctypes.byref(count), None)
    if result < 0 and ctypes.get_errno() != errno.ENOENT:  # ENOENT: this was the last of them
        _check(result, "map dump")
    found = count.value
    return dict(zip(_split(keys, key_size, found), _split(values, value_size, found), strict=True))


def _split(buffer: ctypes.Array[ctypes.c_char], size: int, count: int) -> Iterator[bytes]:
    """The first ``count`` fields of a buffer."""
    return chain.from_iterable(struct.iter_unpack(f"{size}s", ctypes.string_at(buffer, size * count)))


def cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:  # noqa: PTH123  no path object needed
        ranges = file.read().strip().split(",")
    return sum(int(part.rpartition("-")[2]) - int(part.partition("-")[0]) + 1 for part in ranges)
