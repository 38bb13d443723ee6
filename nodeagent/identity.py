"""Who this installation is: its uid and, while it is a member, its name. Kept where a damage is noticed.

``identity.json`` has a checksum; ``uid`` beside it is what releases before 0.3 read and wrote. The cached view
and the last status say it, too. Unreadable is never absent: a damaged file is mended from the others, and when
nothing else knows, the agent does not start rather than fence its own predecessor with a new uid.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from events.errors import Refused
from events.ids import new_id
from events.input_files import read_regular
from nodeagent.local_files import STATUS_FILE, VIEW_LIMIT_BYTES, write_atomically

log = logging.getLogger("isthmus.agent")

UID_FILE, IDENTITY_FILE, VIEW_FILE = "uid", "identity.json", "view.json"
UID_LIMIT = 128
READ_LIMIT = 4096


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """``node`` is the name under which the uid was last a member of ``cluster``; empty when it left."""

    uid: str
    node: str = ""
    cluster: str = ""
    checksum: int = 0


class _Mentioned(msgspec.Struct, frozen=True):
    """What the cached view and the last status say of it."""

    uid: str
    node: str
    cluster: str
    ranges: tuple[tuple[str, int, str], ...] = ()  # of the view: CIDR, epoch, owner
    range: str = ""  # of the status

    def identity(self) -> Identity:
        """A name is bound only by a range."""
        member = bool(self.range) or any(owner == self.node for _, _, owner in self.ranges)
        return Identity(uid=self.uid, node=self.node if member else "", cluster=self.cluster)


class _UidFile(NamedTuple):
    there: bool
    uid: str
    """Empty when the file holds no uid."""


def identify(directory: Path, *, given: str = "", machine_uid: str = "") -> Identity:
    """The remembered identity, mended if need be; else ``given``, the machine's uid, or a new one.

    ``given`` is a uid given on the command line, and wins. Whatever is returned is written down before.
    Raises Refused(identity_unreadable), OSError.
    """
    file, known = _uid_file(directory), known_of(directory)
    uid = given or _settled(directory, file, known)
    if not uid:
        uid = machine_uid or new_id()
    elif uid != file.uid:
        log.warning("the uid of this installation is %s; %s is written anew", uid, directory / UID_FILE)
    if known is None or known.uid != uid:
        found = Identity(uid=uid)
    else:
        found = Identity(uid=uid, node=known.node, cluster=known.cluster)
    remember(directory, found)
    return found


def _settled(directory: Path, file: _UidFile, known: Identity | None) -> str:
    """The uid on which the files agree, or that the sound one says; empty when this is a new installation."""
    if known is None:
        witnesses = damaged(directory)
        if file.uid or (not file.there and not witnesses):
            return file.uid
        path = directory / (UID_FILE if file.there else witnesses[0])
        raise Refused(
            "identity_unreadable",
            f"{path} holds no uid, and nothing else in {directory} says who this installation is: restore "
            f"that file, give the uid that the cluster knows (`isthmus node list` shows it) by --uid, or make "
            f"this a new node: isthmus agent new-identity --yes --state-dir {shlex.quote(str(directory))}",
            path=str(path),
        )
    if not file.uid or known.uid.startswith(file.uid):
        return known.uid
    if known.checksum:  # the two were written together: one of them is not what we wrote
        raise Refused(
            "identity_unreadable",
            f"{directory / UID_FILE} says uid {file.uid!r}, {IDENTITY_FILE} beside it {known.uid!r}: say "
            f"which it is by --uid {known.uid}, or make this a new node: isthmus agent new-identity --yes "
            f"--state-dir {shlex.quote(str(directory))}",
            path=str(directory / UID_FILE),
            uid=known.uid,
        )
    return file.uid


def remember(directory: Path, identity: Identity) -> None:
    """Write it down, past a loss of power. Raises OSError."""
    sealed = msgspec.structs.replace(identity, checksum=_checksum(identity))
    content = msgspec.json.encode(sealed)
    path = directory / IDENTITY_FILE
    if _bytes(path) != content:
        write_atomically(path, content, durable=True)
    if _uid_file(directory).uid != identity.uid:
        write_atomically(directory / UID_FILE, f"{identity.uid}\n".encode(), durable=True)


def left(directory: Path) -> None:
    """The node is a member no more: its next name may be another one. Raises OSError."""
    known = known_of(directory)
    if known is not None:
        remember(directory, Identity(uid=known.uid))


def renew(directory: Path) -> str:
    """Give this installation a new uid, whatever it was; return it. Raises OSError."""
    uid = new_id()
    for name in (IDENTITY_FILE, UID_FILE):
        (directory / name).unlink(missing_ok=True)
    remember(directory, Identity(uid=uid))
    return uid


def forget(directory: Path) -> list[str]:
    """Remove it; the names of the files that were there. Raises OSError."""
    present = [name for name in (UID_FILE, IDENTITY_FILE) if (directory / name).exists()]
    for name in present:
        (directory / name).unlink()
    return present


def known_of(directory: Path) -> Identity | None:
    """What files other than ``uid`` say; the one with a checksum first."""
    with contextlib.suppress(OSError, ValueError, RecursionError):  # no such file, or damaged: the next one
        identity = msgspec.json.decode(read_regular(directory / IDENTITY_FILE), type=Identity)
        if identity.checksum == _checksum(identity) and _is_uid(identity.uid):
            return identity
        log.warning("%s is damaged", directory / IDENTITY_FILE)
    for name in (VIEW_FILE, STATUS_FILE):
        with contextlib.suppress(OSError, ValueError, RecursionError):  # likewise
            said = msgspec.json.decode(read_regular(directory / name, VIEW_LIMIT_BYTES), type=_Mentioned)
            if _is_uid(said.uid):
                return said.identity()
    return None


def damaged(directory: Path, more: tuple[str, ...] = ()) -> list[str]:
    """Where :func:`known_of` knows of nobody: its files that are there all the same, and those of ``more``."""
    return [name for name in (IDENTITY_FILE, VIEW_FILE, *more) if (directory / name).exists()]


def kept_uid(directory: Path) -> str:
    """What the file ``uid`` says; empty when that is no uid. Raises OSError."""
    return _uid_file(directory).uid


def _checksum(identity: Identity) -> int:
    """Never 0, which says that there is none."""
    return crc32(f"{identity.uid}\n{identity.node}\n{identity.cluster}".encode()) or 1


def _uid_file(directory: Path) -> _UidFile:
    content = _bytes(directory / UID_FILE)
    if content is None:
        return _UidFile(there=False, uid="")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    return _UidFile(there=True, uid=text if _is_uid(text) else "")


def _bytes(path: Path) -> bytes | None:
    """The file's content (its beginning); None when there is no such file. Raises OSError."""
    try:
        return read_regular(path)[:READ_LIMIT]
    except FileNotFoundError:
        return None


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= UID_LIMIT and text.isprintable() and not any(c.isspace() for c in text)
