"""The node's own key: kept as a secret, the same after a restart, and good for proving who one is."""

from __future__ import annotations

import errno
import os
import signal
import sys
from base64 import b64encode
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from events.bus.access.creds import write_secret
from events.errors import Refused
from events.types import NodeKeyChanged
from nodeagent.clean import new_identity
from nodeagent.local_files import write_atomically
from nodeagent.membership.cache import Cache
from nodeagent.membership.node_key import KEY_FILE, NEXT_FILE, OLD_FILE, ask_for_another, new_key, own_key
from tests.nodeagent.logs import DEFINED, folded, joined


def test_the_private_key_is_for_this_account_alone_and_stays(tmp_path: Path) -> None:
    made = own_key(tmp_path)
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert own_key(tmp_path).public == made.public
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("nonsense")
    with pytest.raises(Refused, match="holds no key"):
        own_key(tmp_path)
    new_identity(tmp_path)
    assert own_key(tmp_path).public != made.public, "a cloned machine gets a key of its own"


@pytest.mark.parametrize("write", [write_atomically, write_secret])
def test_a_full_disk_is_told_of_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    durable = {"durable": True} if write is write_atomically else {}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as told:
        write(tmp_path / KEY_FILE, b"secret", **durable)
    assert told.value.filename == str(tmp_path / KEY_FILE)
    assert list(tmp_path.iterdir()) == []


def test_two_nodes_share_a_secret_that_no_third_one_has(tmp_path: Path) -> None:
    one, other, third = (new_key(tmp_path) for _ in range(3))
    shared = one.shared_secret(other.public)
    assert shared == other.shared_secret(one.public)
    assert len(shared) == 32
    assert shared not in {third.shared_secret(one.public), third.shared_secret(other.public)}
    for weak in (b64encode(bytes(32)).decode(), "", "nonsense"):
        with pytest.raises(ValueError, match=r".+"):
            one.shared_secret(weak)


def test_a_view_knows_its_members_keys_also_after_a_restart(tmp_path: Path) -> None:
    log = [DEFINED, *joined(0), *joined(1)]
    log += [
        NodeKeyChanged(node=f"n{number}", uid=uid, key=uid, port=7) for number, uid in ((0, "u0"), (1, "old"))
    ]
    view = folded(log)
    cache = Cache(tmp_path)
    cache.snapshot(view)
    for found in (view, cache.load("c", "n0", "u0")):
        assert [(one.key, one.port) for one in found.members.values()] == [("u0", 7), ("", 0)]


def changed_until_killed(folder: Path, number: int) -> tuple[bool, str]:
    """The first start of an agent and a whole change of its key, in a process that is killed before so many
    openings, renamings and removals of files with keys; whether it was, and which key was asked for.
    """
    seen, say = os.pipe()
    child = os.fork()
    if not child:
        left = [number]

        def look(event: str, arguments: tuple[object, ...]) -> None:
            if event in {"open", "os.rename", "os.remove"} and str(folder) in str(arguments[0]):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(look)
            key = own_key(folder)
            public, following = key.public, ask_for_another(folder)
            os.write(say, following.encode())
            key.look()
            os._exit(not (key.follow(following, public) and key.follow(following, "")))
        finally:
            os._exit(2)
    os.close(say)
    with os.fdopen(seen) as told:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, told.read()


def test_killed_before_any_of_its_writes_the_change_of_a_key_goes_on_in_the_next_life(tmp_path: Path) -> None:
    for number in count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed, told = changed_until_killed(folder, number)
        if not killed:
            break
        key = own_key(folder)
        assert key.problem == ""
        assert not list(folder.glob(".*")), "what was half written"
        if not told:  # nobody was told of a key that is to follow: whichever there is does
            told = ask_for_another(folder)
            key.look()
        if key.public != told:
            assert key.follow(told, key.public)
        if key.old is not None:
            assert key.follow(told, "")
        assert own_key(folder).public == told
        assert {path.name for path in folder.iterdir()} == {KEY_FILE}
    assert number > 12


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_that_root_asks_for_belongs_to_the_account_of_the_agent(tmp_path: Path) -> None:
    own_key(tmp_path)
    os.chown(tmp_path, 65534, 65533)
    ask_for_another(tmp_path)
    made = (tmp_path / NEXT_FILE).stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (65534, 65533, 0o600)


def test_a_half_written_key_is_not_replaced_beside_it_and_the_way_out_works(tmp_path: Path) -> None:
    """No agent starts with it; once it is removed, the next one makes another key, whatever else is there."""
    tmp_path /= "its folder"  # a shell takes the way out as it stands
    tmp_path.mkdir()
    first = own_key(tmp_path)
    whole = (tmp_path / KEY_FILE).read_bytes()
    (tmp_path / KEY_FILE).write_bytes(whole[:-9])
    with pytest.raises(Refused, match="makes another one"):
        ask_for_another(tmp_path)
    assert not (tmp_path / NEXT_FILE).exists()
    (tmp_path / KEY_FILE).write_bytes(whole)
    ask_for_another(tmp_path)
    first.look()
    assert first.follow(first.next.public if first.next else "", first.public)
    (tmp_path / KEY_FILE).write_bytes(b64encode(bytes(31)))
    for ask in (own_key, ask_for_another):
        with pytest.raises(Refused, match=f"holds no key of a node.*: rm '{tmp_path / KEY_FILE}'"):
            ask(tmp_path)
    assert not (tmp_path / NEXT_FILE).exists()
    (tmp_path / KEY_FILE).unlink()
    made = own_key(tmp_path)
    made.look()
    assert made.old is not None, "as long as the log has it, the one before is good"
    assert made.follow(made.public, "")
    assert not (tmp_path / OLD_FILE).exists()


def test_a_file_that_cannot_be_read_or_replaced_is_named_and_keeps_nothing_else_back(tmp_path: Path) -> None:
    key = own_key(tmp_path)
    (tmp_path / NEXT_FILE).mkdir()
    key.look()
    assert str(tmp_path / NEXT_FILE) in key.problem
    key.grown_old()
    assert (tmp_path / NEXT_FILE).is_dir(), "its age changes nothing while somebody has to look"
    (tmp_path / NEXT_FILE).rmdir()
    key.look()
    key.grown_old()
    assert key.next is not None


def test_a_new_identity_leaves_no_private_key_behind(tmp_path: Path) -> None:
    own_key(tmp_path)
    for name in (NEXT_FILE, OLD_FILE):
        new_key(tmp_path, name)
    (tmp_path / f".{KEY_FILE}.4711.new").write_text("half of a")
    new_identity(tmp_path)
    assert not [path for path in tmp_path.iterdir() if "key" in path.name]
