"""What a kill leaves of files: the same command goes on from there, and nothing stays for ever."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from controlplane.cli.main import root
from deploy.credentials import store as store_module
from deploy.credentials.authority import Authority
from deploy.credentials.jwt import check
from deploy.credentials.prepare import prepare
from events.bus.access.creds import write_secret
from events.bus.access.temporaries import LEFT_S
from events.errors import Refused, Unavailable
from nodeagent.local_files import write_atomically
from replay.output_files import whole_file

CLUSTER = "prod"
CHANGES: dict[str, Callable[[Authority], object]] = {
    "a signing key": lambda authority: authority.rotate_key("nodes"),
    "a node": lambda authority: authority.add("node", CLUSTER, "n2"),
    "a node that is shut out": lambda authority: authority.revoke("node", CLUSTER, "n1"),
}


class KilledError(BaseException):
    """Instead of SIGKILL: nobody cleans up behind it."""


def killed_at(patch: pytest.MonkeyPatch, number: int) -> list[Path]:
    """In the middle of the file of that number; what was written until then."""
    written: list[Path] = []

    def write(path: Path, text: str | bytes, *, tidy: bool) -> None:
        written.append(path)
        if len(written) == number:
            path.with_name(f".{path.name}.0123abcd").write_text("half")
            raise KilledError
        write_secret(path, text, tidy=tidy)

    patch.setattr(store_module, "write_secret", write)
    return written


def agrees(authority: Authority) -> None:
    """Each seed is the key of the book, and each account takes what it signs, unless it is shut out."""
    book, store = authority.book, authority.store
    assert {name: store.key(name).public for name in book.keys} == book.keys
    for principal in store.principals(role="node"):
        if principal.account and not principal.revoked_at and store.has_jwt(principal.account):
            claims = check(store.jwt(principal.account), {book.keys["operator"]})
            assert book.keys["nodes"] in {scope["key"] for scope in claims["nats"]["signing_keys"]}


@pytest.mark.parametrize("what", CHANGES)
def test_a_store_is_whole_wherever_its_change_is_killed(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "sound", cluster=CLUSTER, nodes=["n1"], hosts=["127.0.0.1"])
    for number in range(1, 99):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "sound", folder)
        with monkeypatch.context() as patch:
            written = killed_at(patch, number)
            try:
                CHANGES[what](Authority.open(folder))
            except KilledError:
                agrees(Authority.open(folder))
            if len(written) < number:
                break
        left = written[-1].with_name(f".{written[-1].name}.0123abcd")
        for old in (left, folder / ".lock"):
            os.utime(old, (0, 0))
        CHANGES[what](Authority.open(folder))
        after = Authority.open(folder)
        agrees(after)
        assert not left.exists()
        for principal in after.store.principals(role="node"):
            claims = check(after.store.jwt(principal.account), {after.book.keys["operator"]})
            assert bool(principal.revoked_at) == (claims["nats"]["limits"]["conn"] == 0)
    assert number > 2


def _secret(path: Path) -> None:
    write_secret(path, "new")


def _of_the_agent(path: Path) -> None:
    write_atomically(path, b"new")


def _of_a_report(path: Path) -> None:
    with whole_file(path) as beside:
        beside.write_text("new")


@pytest.mark.parametrize(
    ("write", "left"),
    [
        (_secret, ".a.prom.0123abcd"),
        (_of_the_agent, ".a.prom.4711.new"),
        (_of_a_report, ".a.4711.new.prom"),
    ],
)
def test_the_next_write_of_a_file_removes_what_a_killed_one_left(
    tmp_path: Path, write: Callable[[Path], None], left: str
) -> None:
    old, fresh = tmp_path / left, tmp_path / left.replace("4711", "4712").replace("0123", "0124")
    others = [tmp_path / left.replace(".a.", ".b."), tmp_path / left.replace("4711", "x").replace("0123", "x")]
    for path in (old, fresh, *others):
        path.write_text("half")
        age_s = LEFT_S / 2 if path == fresh else LEFT_S * 2
        os.utime(path, (0, time.time() - age_s))
    link = tmp_path / left.replace("4711", "4713").replace("0123", "0125")
    link.symlink_to(others[0])
    write(tmp_path / "a.prom")
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.prom",
        *(path.name for path in (fresh, link, *others)),
    }


def test_a_change_that_the_servers_did_not_hear_of_says_how_they_do(tmp_path: Path) -> None:
    """Ended there and then, a rotation would shut out everybody whom the old key let in."""
    prepare(tmp_path / "a", cluster=CLUSTER, nodes=["n1"], hosts=["127.0.0.1"])
    more = ["--store", str(tmp_path / "a"), "--push", "nats://127.0.0.1:1"]
    line = ["credentials", "rotate", "key", "nodes", *more]
    away = CliRunner().invoke(root, line).exception
    assert isinstance(away, Unavailable)
    assert f"`isthmus credentials push --store {tmp_path / 'a'} nats://127.0.0.1:1`" in away.message
    again = CliRunner().invoke(root, line).exception
    assert isinstance(again, Refused)
    assert "once every server knows both keys" in again.message


def test_a_person_is_asked_before_an_old_key_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "a", cluster=CLUSTER, nodes=["n1"], hosts=["127.0.0.1"])
    Authority.open(tmp_path / "a").rotate_key("nodes")
    for module in ("deploy.credentials.cli_keep", "events.cli.options"):
        monkeypatch.setattr(f"{module}.asked", lambda: True)
    line = ["credentials", "rotate", "key", "nodes", "--finish", "--store", str(tmp_path / "a")]
    said = CliRunner().invoke(root, line, input="n\n")
    assert "has not renewed since the nodes key was replaced" in said.output
    assert "nodes" in Authority.open(tmp_path / "a").book.retired
    assert CliRunner().invoke(root, line, input="y\n").exit_code == 0
    assert Authority.open(tmp_path / "a").book.retired == {}
