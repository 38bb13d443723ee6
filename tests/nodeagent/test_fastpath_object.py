"""The eBPF object that is shipped is what its source makes, and what the agent knows of it is what is in it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from events.errors import Refused
from nodeagent.fastpath import layout, libbpf, programs
from nodeagent.membership.peers import Peer
from tests.nodeagent.sandbox import inside

FOLDER = Path(programs.__file__).parent
SOURCE = (FOLDER / "fastpath.bpf.c").read_text()
COMPILER = "14"
"""The major version of clang that the shipped object is made by: Debian 12's. Others lay out code otherwise."""


def _clang() -> str:
    program = shutil.which("clang")
    if (
        program is None
        or shutil.which("llvm-strip") is None
        or not Path("/usr/include/bpf/bpf_helpers.h").exists()
    ):
        return ""
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", text)
    return found[1] if found else ""


@pytest.mark.slow
@pytest.mark.skipif(not _clang(), reason="needs clang, llvm and libbpf-dev (bash deploy/setup.sh test)")
def test_the_object_is_built_from_its_source(tmp_path: Path) -> None:
    built = tmp_path / "fastpath.bpf.o"
    subprocess.run(["bash", str(FOLDER / "build.sh"), str(built)], check=True, capture_output=True)
    if _clang() != COMPILER:
        pytest.skip(f"clang {_clang()} builds it, but only clang {COMPILER} builds the same bytes")
    same = built.read_bytes() == (FOLDER / programs.FILE).read_bytes()
    assert same, "run nodeagent/fastpath/build.sh and commit fastpath.bpf.o"


def test_the_agent_knows_the_records_of_the_programs() -> None:
    assert layout.RANGE.size == 8
    assert layout.PEER.size == 20
    assert layout.NODE.size == 48
    assert layout.HELD.size == 16
    (names,) = re.findall(r"enum \{ (FAST_OUT,.+?),\s+COUNTERS = (\d+) \}", SOURCE, re.DOTALL)
    assert tuple(name.strip().lower() for name in names[0].split(",")) == layout.COUNTERS
    assert int(names[1]) == layout.COUNTERS_ROOM
    assert int(re.findall(r"struct range\); .+?max_entries, (\d+)", SOURCE, re.DOTALL)[0]) == layout.PEERS_LIMIT
    assert set(programs.NAMES) == set(re.findall(r"SEC\(\"tc\"\) int (\w+)", SOURCE))
    assert all(name.startswith(programs.PREFIX) and len(name) <= 15 for name in programs.NAMES)


def test_no_licence_but_ours_is_claimed() -> None:
    assert 'SEC("license") = "Apache-2.0"' in SOURCE


@inside
def test_ten_thousand_peers_are_written_by_one_batch_and_read_back() -> None:
    loaded = programs.load()
    entries = dict(
        layout.peer_entry(
            Peer(
                f"n{n}",
                f"u{n}",
                n,
                f"10.{n >> 8}.{n & 255}.0/24",
                f"66:00:00:00:{n >> 8:02x}:{n & 255:02x}",
                "10.0.0.1",
            ),
            1450,
            8472,
        )
        for n in range(1, 10_001)
    )
    loaded.put_peers(entries)
    assert loaded.peers() == entries
    gone = [*entries][:100]
    loaded.drop_peers(gone)
    assert loaded.peers() == {key: value for key, value in entries.items() if key not in gone}
    loaded.drop_peers(gone)  # what is gone already is what was wanted
    assert libbpf.read(loaded._peers, gone[0], layout.PEER.size) is None
    loaded.close()


@inside
def test_a_kernel_without_the_hooks_is_told_in_words() -> None:
    """Before Linux 6.6 the programs load, and any call that names such a hook is refused as unknown."""
    query, refused, allowed = 16, 0x00050000 | errno.EINVAL, 0x7FFF0000
    system_call = libbpf._SYSCALL[os.uname().machine]
    # BPF of seccomp: the number at 0, the first argument at 16; load, jump if equal, return.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 3, system_call), (0x20, 0, 0, 16), (0x15, 0, 1, query),
             (0x06, 0, 0, refused), (0x06, 0, 0, allowed)]  # fmt: skip
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP, a filter
    with pytest.raises(Refused) as found:
        programs.load()
    assert "Linux 6.6 or newer" in found.value.message
