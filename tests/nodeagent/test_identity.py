"""Who an installation is: damaged files make no new identity, and a member keeps its name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import IsthmusError, Refused
from events.types import Event
from nodeagent import local_files
from nodeagent.fastpath.predecessors import FILE as FASTPATH
from nodeagent.fastpath.predecessors import Predecessors
from nodeagent.identity import Identity, identify, left, remember, renew
from nodeagent.local_files import read_status, running
from nodeagent.membership.cache import Cache, Entry
from nodeagent.pods.cni import FILE_NAME, range_of, write
from tests.nodeagent.logs import DEFINED, folded, joined
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import BUS, ISTHMUS, site
from tests.waiting import wait_for as until

UID = "0192f3a0-7d7e-7c3c-9d6e-0f6f3f0f7d31"
DAMAGE = [b"", b"\n", UID[:9].encode(), b"\0" * 37, UID[:20].encode() + b"\0" * 17, b"\xff\xfe"]


def of_release_0_2(directory: Path) -> None:
    """What an agent of 0.2.0 leaves: a uid, a view, no identity file."""
    (directory / "uid").write_text(f"{UID}\n")
    view = folded([DEFINED, *joined(0)])
    view.uid = UID
    Cache(directory).snapshot(view)


@pytest.mark.parametrize("damage", [*DAMAGE, None])
@pytest.mark.parametrize("release", ["0.2", "0.3"])
def test_a_damaged_uid_file_is_mended_from_what_else_knows(
    tmp_path: Path, damage: bytes | None, release: str
) -> None:
    of_release_0_2(tmp_path)
    if release == "0.3":
        assert identify(tmp_path).uid == UID
        (tmp_path / "view.json").unlink()
    if damage is None:
        (tmp_path / "uid").unlink()
    else:
        (tmp_path / "uid").write_bytes(damage)
    assert identify(tmp_path, machine_uid="another").uid == UID
    assert (tmp_path / "uid").read_text() == f"{UID}\n", "a release before 0.3 finds it, too"


@pytest.mark.parametrize("damage", [*DAMAGE[:2], *DAMAGE[3:]])
def test_unreadable_and_nobody_else_knows_is_no_new_identity(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "uid").write_bytes(damage)
    with pytest.raises(Refused) as refused:
        identify(tmp_path, machine_uid="another")
    assert refused.value.code == "identity_unreadable"
    assert (tmp_path / "uid").read_bytes() == damage, "nothing is changed"
    assert identify(tmp_path, given=UID).uid == UID, "whoever says it by name goes on"


@pytest.mark.slow
def test_the_way_out_works_as_quoted(tmp_path: Path) -> None:
    (tmp_path / "uid").write_bytes(b"\0" * 37)
    with pytest.raises(Refused) as refused:
        identify(tmp_path)
    command = refused.value.message.rpartition(": ")[2].replace("isthmus", ISTHMUS, 1).split()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert identify(tmp_path).uid in done.stdout


@given(st.integers(0, 200), st.integers(0, 255))
def test_one_byte_changed_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    directory = tmp_path_factory.mktemp("state")
    remember(directory, Identity(uid=UID, node="n1", cluster="prod"))
    for name in ("uid", "identity.json"):
        content = bytearray((directory / name).read_bytes())
        content[at % len(content)] = byte
        (directory / name).write_bytes(bytes(content))
        with contextlib.suppress(Refused):  # rather than to go on as somebody else
            assert identify(directory, machine_uid="another").uid == UID
        remember(directory, Identity(uid=UID, node="n1", cluster="prod"))


def test_a_new_installation_takes_the_machines_uid_and_keeps_it(tmp_path: Path) -> None:
    assert identify(tmp_path, machine_uid="3d1219c7").uid == "3d1219c7"
    assert identify(tmp_path, machine_uid="another").uid == "3d1219c7"
    assert renew(tmp_path) == identify(tmp_path, machine_uid="3d1219c7").uid != "3d1219c7"


def test_a_name_is_bound_by_a_range_only(tmp_path: Path) -> None:
    of_release_0_2(tmp_path)
    assert identify(tmp_path).node == "n0"
    left(tmp_path)
    assert identify(tmp_path) == Identity(uid=UID, checksum=identify(tmp_path).checksum)


@given(st.data())
def test_one_digit_changed_in_the_cache_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Both files: the view at rest and the journal. What is loaded is what was written, or less of it."""
    directory = tmp_path_factory.mktemp("state")
    log: list[Event] = [DEFINED, *joined(0), *joined(1)]
    view, cache = folded(log), Cache(directory)
    cache.snapshot(view)
    late: list[Event] = joined(2)
    entries = [
        Entry(sequence, f"{sequence:064x}", event.type_name(), msgspec.json.encode(event), 0.0)
        for sequence, event in enumerate(late, view.sequence + 1)
    ]
    cache.append(entries)
    cache.close()
    path = directory / data.draw(st.sampled_from(["view.json", "view.journal"]))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    found = Cache(directory).load("c", "n0", "u0")
    whole = folded([*log, *late])
    known = {peer.cidr: peer for peer in whole.peers}
    assert all(known.get(peer.cidr) == peer for peer in found.peers)
    assert found.sequence in {0, 5, 6, 7}


@inside
def test_an_agent_that_is_renamed_keeps_its_name_and_confirms_nothing_else() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        before = a.rows()
        a.stop()
        a.start("--node", "a.example.com").ready(1)
        assert a.status()["node"] == "a"
        assert any("a.example.com" in text for text in a.status()["conditions"])
        assert a.rows() == before
        assert b.status()["peers"] == 1


@inside
def test_damaged_files_of_a_node_heal_without_a_change_of_the_rows() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        before, uid, epoch = a.rows(), a.status()["uid"], a.status()["epoch"]
        a.stop()
        state = a.directory / "state"
        (state / "uid").write_bytes(b"\0" * 37)
        # A cache of 0.2.0 has no checksum: one digit of a peer's address is another address.
        view = json.loads((state / "view.json").read_text())
        del view["checksum"]
        assert [member for member in view["members"] if member[0] == "b"]
        for member in view["members"]:
            if member[0] == "b":
                member[3] = member[3].replace("10.0.0.2", "10.0.0.3")
        (state / "view.json").write_text(json.dumps(view))
        a.start().ready(1)
        until(lambda: a.rows() == before, "the log's rows")
        assert (a.status()["uid"], a.status()["epoch"]) == (uid, epoch)
        assert "differs from the log" in a.log()
        assert b.status()["peers"] == 1


@inside
def test_a_cloned_machine_is_held_and_noticed_on_both_sides() -> None:
    with site("a", "b") as place:
        a, b = place.nodes["a"], place.nodes["b"]
        (c,) = place.add("c")
        before, head = b.rows(), b.status()["sequence"]
        shutil.copytree(
            a.directory / "state", c.directory / "state", ignore=shutil.ignore_patterns("lock", "*.sock")
        )
        shutil.copytree(a.directory / "cni", c.directory / "cni")
        c.start("--node", "a")
        until(lambda: any("10.0.0.1" in text for text in c.status()["conditions"]), "the copy says so", 30)
        until(lambda: c.status()["state"] == "degraded", "it is not the member")
        until(lambda: not [*(c.directory / "cni").glob("*isthmus*")], "no pod starts on the copy")
        assert "isthmus" not in c.run("ip -br link")
        said = ""

        def noticed() -> bool:
            nonlocal said
            said = place.isthmus("cluster", "show", "--json").stdout
            return "identity_twice" in said

        until(noticed, "the controller, too", 30)
        assert "10.0.0.1" in said
        assert "10.0.0.3" in said
        c.stop()
        folders = f"--state-dir {c.directory}/state --cni-dir {c.directory}/cni"
        leave = f"ip netns exec c {ISTHMUS} agent leave --yes --bus {BUS} {folders}"
        refused = subprocess.run(leave.split(), capture_output=True, text=True, check=False)
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert "identity_twice" in refused.stderr
        assert (b.rows(), b.status()["sequence"]) == (before, head), "the original keeps its place"
        subprocess.run(
            [ISTHMUS, "agent", "new-identity", "--yes", "--state-dir", c.directory / "state"], check=True
        )
        c.start("--node", "c").ready(2)


def remembered(directory: Path) -> None:
    cache = Cache(directory)
    try:
        cache.append([])
    finally:
        cache.close()


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to itself"])
@pytest.mark.parametrize(
    "name", ["uid", "identity.json", "view.json", "view.journal", "status.json", "lock", FASTPATH, FILE_NAME]
)
def test_what_stands_in_a_files_place_is_named_and_waited_for_by_nobody(
    tmp_path: Path, name: str, kind: str
) -> None:
    """Of each file that an agent keeps: opening a FIFO waits for ever, in the middle of the agent's work."""
    path = tmp_path / name
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name)
    uses: list[Callable[[], object]] = [
        lambda: identify(tmp_path, machine_uid="m"),
        lambda: Cache(tmp_path).load("c", "n0", "u0"),
        lambda: remembered(tmp_path),
        lambda: Cache(tmp_path).says_fenced(),
        lambda: Predecessors(tmp_path),
        lambda: read_status(tmp_path),
        lambda: running(tmp_path),
        lambda: range_of(tmp_path),
        lambda: write(tmp_path, b"{}"),
    ]

    def stuck(*_: object) -> None:
        raise AssertionError(f"{name} as a {kind} is waited for")

    before = signal.signal(signal.SIGALRM, stuck)
    try:
        for use in uses:
            signal.alarm(5)
            with contextlib.suppress(IsthmusError, OSError):
                use()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_closed_state_directory_is_not_taken_for_an_absent_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(local_files, "read_regular", closed)
    with pytest.raises(Refused, match="closed to this account") as refused:
        read_status(tmp_path)
    assert refused.value.code == "not_permitted"
