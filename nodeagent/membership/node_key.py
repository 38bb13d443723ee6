"""This node's private keys (X25519): in the agent's own folder, for its account alone, the same after a start.

Members know the public ones by the log. WireGuard encrypts with them where the node has WireGuard, and two
nodes prove who they are by the secret that only they can compute. A key is replaced in steps, each of which
survives whatever comes between it and the next one:

1. ``node.next.key`` is there, asked for by command or by age. Nothing else is different.
2. The log has it beside the one before. That becomes ``node.old.key``, the next one ``node.key``; both count.
3. The log has the new one alone: ``node.old.key`` is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from events.bus.retry import jittered_s
from events.errors import Refused
from events.input_files import read_regular
from events.status import NatMode
from nodeagent.local_files import write_atomically

KEY_FILE, NEXT_FILE, OLD_FILE, AGE_FILE = "node.key", "node.next.key", "node.old.key", "node.key.age"
KEY_FILES = (KEY_FILE, NEXT_FILE, OLD_FILE, AGE_FILE)
AGAIN_FIRST_S, AGAIN_LONGEST_S = 15.0, 300.0
"""Between tries to have the own key in the log: it is left out while anybody is of an earlier release."""
KEY_BYTES = 32
READ_LIMIT = 4096


class PrivateKey:
    """A private key (32 bytes) with its public one as base64, which is how the log has it."""

    def __init__(self, private: bytes) -> None:
        self.private = private
        self._secret = X25519PrivateKey.from_private_bytes(private)
        self.public = public_of(private)

    def shared_secret(self, peer_public: str) -> bytes:
        """The 32 bytes that this node and the one with that public key (base64) share, and nobody else has.

        Derive keys from it (HKDF), and do not use it as one. About 100 µs: remember what is derived. Raises
        ValueError for what is no key, also for one of the few by which every secret is the same.
        """
        return self._secret.exchange(X25519PublicKey.from_public_bytes(b64decode(peer_public, validate=True)))


class Told(NamedTuple):
    """What a node says of its key when it joins: the public one, the first UDP port of WireGuard (0: it has
    none), and the key that it keeps valid beside it (empty: none).
    """

    key: str
    port: int
    beside: str = ""


class OwnKey:
    """The key of this node, with the one that is to take its place (``next``), and the one before (``old``),
    which is valid as long as the log has it.
    """

    def __init__(self, directory: Path, current: PrivateKey) -> None:
        self._directory = directory
        self.current = current
        self.next: PrivateKey | None = None
        self.old: PrivateKey | None = None
        self.problem = ""
        """What is wrong with the other two files, and what to do; empty when each that is there holds a key."""

    @property
    def public(self) -> str:
        """The public key by which members are to know this node."""
        return self.current.public

    def shared_secret(self, peer_public: str) -> bytes:
        """See :meth:`PrivateKey.shared_secret`."""
        return self.current.shared_secret(peer_public)

    def told(self, port: int, *, both: bool, over: bool) -> Told:
        """What to say of it. ``both``: WireGuard needs the key before a while longer; ``over``: not any more.

        Another key waits for the end of a change that is under way: there are two slots.
        """
        if self.old is not None and not over:
            return Told(self.public, port, self.old.public)
        if self.old is None and self.next is not None:
            return Told(self.next.public, port, self.public if both else "")
        return Told(self.public, port)

    def look(self) -> None:
        """Take in what the folder has of the next key and of the one before. Raises OSError when it cannot be
        put in order.
        """
        self.problem = ""
        if self.next is None:
            self.next = self._other(NEXT_FILE)
        if self.old is None:
            self.old = self._other(OLD_FILE)
            if self.old is not None and self.old.public == self.public:  # killed between two steps
                self.drop_old()

    def _other(self, name: str) -> PrivateKey | None:
        path = self._directory / name
        try:
            return _read(path)
        except FileNotFoundError:
            return None
        except Refused as error:
            self.problem = error.message
        except OSError as error:
            quoted = shlex.quote(str(path))
            self.problem = (
                f"{path} cannot be read ({error.strerror}): give it to the account that the agent runs as, "
                f"chown --reference={shlex.quote(str(self._directory))} {quoted}, or remove it: rm {quoted}"
            )
        return None

    def grown_old(self) -> None:
        """It has the age at which it is replaced: make the next one, unless there is one. Raises OSError."""
        if self.next is None and self.old is None and not self.problem:
            self.next = new_key(self._directory, NEXT_FILE)

    def follow(self, key: str, beside: str) -> bool:
        """The log has this key of the node, and that one beside it; whether anything changed. Raises OSError.

        Killed in between, the next life finds the same, and goes on.
        """
        if self.next is not None and key == self.next.public:
            if beside == self.public:
                _write(self._directory / OLD_FILE, self.current)
            (self._directory / NEXT_FILE).replace(self._directory / KEY_FILE)
            self.old = self.current if beside == self.public else None
            self.current, self.next = self.next, None
            return True
        if self.old is not None and key == self.public and beside != self.old.public:
            self.drop_old()
            return True
        return False

    def drop_old(self) -> None:
        """The key before is not valid any more. Raises OSError."""
        (self._directory / OLD_FILE).unlink(missing_ok=True)
        self.old = None

    def by_slot(self, key: str, beside: str, slot: int) -> dict[int, PrivateKey]:
        """The keys that the log has of this node and that are held here, by slot, the newest first."""
        slots = {key: slot, beside: 1 - slot}
        held = {slots[one.public]: one for one in (self.current, self.old) if one and one.public in slots}
        return dict(sorted(held.items(), key=lambda item: item[0] != slot))


def public_of(private: bytes) -> str:
    """The public key that belongs to a private one, as base64."""
    public = X25519PrivateKey.from_private_bytes(private).public_key()
    return b64encode(public.public_bytes_raw()).decode()


def own_key(directory: Path) -> OwnKey:
    """The key in that folder, made if there is none.

    Raises Refused(identity_unreadable) for a file that holds no key: a new one in its place would cut the node
    off from every peer that knows the old one, until all have heard of it. Raises OSError.
    """
    for left in directory.glob(".node.*.new"):  # a killed process's: nobody else may write here now
        left.unlink(missing_ok=True)
    try:
        key = OwnKey(directory, _read(directory / KEY_FILE))
    except FileNotFoundError:
        return OwnKey(directory, new_key(directory))
    key.look()
    return key


def _read(path: Path) -> PrivateKey:
    try:
        text = read_regular(path, READ_LIMIT).strip()
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        text = b""
    try:
        private = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        private = b""
    if len(private) != KEY_BYTES:
        raise Refused(
            "identity_unreadable",
            f"{path} holds no key of a node: remove it, and the agent "
            f"{'makes another one' if path.name == KEY_FILE else 'goes on without'}: "
            f"rm {shlex.quote(str(path))}",
            path=str(path),
        )
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return PrivateKey(private)


def ask_for_another(directory: Path) -> str:
    """Make the key that is to follow this one, unless such a change is under way already: its public key.

    Raises Refused(identity_unreadable) also where the present key is none, with which no agent starts. Raises
    OSError.
    """
    present = _read(directory / KEY_FILE)
    with contextlib.suppress(FileNotFoundError):
        return _read(directory / NEXT_FILE).public
    with contextlib.suppress(FileNotFoundError):
        _read(directory / OLD_FILE)
        return present.public
    return new_key(directory, NEXT_FILE).public


def drop_keys(directory: Path) -> list[Path]:
    """Remove all keys of that folder, also what a killed process has left of one; which. Raises OSError."""
    found = [path for name in KEY_FILES for path in (directory / name, *directory.glob(f".{name}.*.new"))]
    there = [path for path in found if path.is_symlink() or path.exists()]
    for path in there:
        path.unlink()
    return there


def new_key(directory: Path, name: str = KEY_FILE) -> PrivateKey:
    """Another key in place of the one that is there. Raises OSError."""
    made = PrivateKey(X25519PrivateKey.generate().private_bytes_raw())
    _write(directory / name, made)
    return made


def _write(path: Path, key: PrivateKey) -> None:
    previous = os.umask(0o077)
    try:
        write_atomically(path, b64encode(key.private) + b"\n", durable=True, mode=0o600)
    finally:
        os.umask(previous)


def again_s(tries: int) -> float:
    """Seconds until the own key is said again that the log has not taken after so many tries: soon at first,
    for a cluster that is upgraded in a minute, then more rarely, for one whose upgrade takes hours; jittered.
    """
    return jittered_s(min(AGAIN_LONGEST_S, AGAIN_FIRST_S * 2.0 ** min(tries, 10)), 0.3)


def join_fields(told: Told, nat: NatMode) -> dict[str, Any]:
    """What of it a join says; controllers before 0.3 know none of these fields."""
    fields = {
        "node_key": told.key,
        "wireguard_port": told.port,
        "node_key_beside": told.beside,
        "nat": nat if nat == "on" else "",
    }
    return {name: value for name, value in fields.items() if value}
