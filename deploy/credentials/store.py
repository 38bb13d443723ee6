"""The folder that holds the authority: its book (public facts) and its secrets, one file each.

::

    book.json            the public keys of the authority; nothing secret
    principals/          who exists: one file each (10,000 nodes must not share one); nothing secret
    tokens/              join tokens that were made: what each allows and who has used it; nothing secret
    keys/*.seed          operator, system, control, issuer, nodes, enrol, people       mode 0600
    keys/*.next.seed     one that is to take the place of such a key, once the book names it
    tls/                 certificate authority and server certificates
    nats/                operator.jwt and accounts/*.jwt: what the servers need; public
    creds/               one .creds file per principal                                 mode 0600

Keep the folder off the machines that run the bus and the nodes. Nothing in it is needed to run;
it is needed to change who may do what.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from deploy.credentials.layout import Role
from events.bus.access.creds import write_secret
from events.bus.access.nkeys import KeyPair, from_seed, generate
from events.bus.access.temporaries import LEFT_S, drop_left, pattern
from events.errors import Refused
from events.input_files import read_whole

BOOK_VERSION = 1
Kept = TypeVar("Kept")


class UserRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One issued credential; times are Unix seconds."""

    public: str
    issued: int
    expires: int


class Principal(msgspec.Struct, kw_only=True):
    """One name and what was issued to it. ``account`` is empty for users of the shared accounts."""

    role: Role
    cluster: str
    name: str
    account: str = ""
    users: list[UserRecord] = []
    revocations: dict[str, int] = {}
    revoked_at: int = 0
    kubernetes: bool = False
    """Let in by the token of a pod, and so again by another one."""
    shared_token: str = ""
    """The public key of the join token for several machines by which it was let in."""


class TokenRecord(msgspec.Struct, kw_only=True):
    """One join token: what it allows; times are Unix seconds. Not the token itself."""

    id: str
    public: str
    cluster: str
    names: str
    """The node's name; of a token for several machines the pattern of their names."""
    shared: bool = False
    uses: int = 1
    kind: str = ""
    site: str = ""
    made: int
    until: int
    revoked_at: int = 0
    taken: dict[str, str] = {}
    """Of a token for several machines: the public key of each that has asked → the name that it has."""
    skipped: list[str] = []
    """Numbered names of its pattern that are somebody else's, as the controllers said."""


TOKEN_ID_LENGTH = 12


def token_id(public: str) -> str:
    """How a join token is called: the beginning of its public key, in small letters."""
    return public[:TOKEN_ID_LENGTH].lower()


class AuthorityKeys(msgspec.Struct, kw_only=True):
    """The authority's own keys, public halves."""

    version: int = BOOK_VERSION
    name: str
    keys: dict[str, str]
    """The public key of each seed in ``keys/``."""
    retired: dict[str, str] = {}
    """Signing keys on their way out, still accepted: name → public key."""


def _decoded(file: Path, kind: type[Kept]) -> Kept:
    """Raises FileNotFoundError, Refused(credentials_missing, credentials_invalid)."""
    try:
        return msgspec.json.decode(read_whole(file), type=kind)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Refused("credentials_missing", f"{file} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused("credentials_invalid", f"{file} is damaged: {error}") from error


def _write(file: Path, content: str | bytes) -> None:
    write_secret(file, content, tidy=False)  # of 10,000 nodes: :meth:`Store.locked` looks, once an hour


class Store:
    """Access to one folder. Writing happens under a lock and by atomic replacement."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        return (self.path / "book.json").exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out while the book changes. Waits for them."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._tidy(handle)
            yield
        finally:
            os.close(handle)

    def _tidy(self, lock: int) -> None:
        """Once an hour, as the lock's time says: remove what killed processes left half written."""
        if os.fstat(lock).st_size and time.time() - os.fstat(lock).st_mtime < LEFT_S:
            return
        for folder, _, _ in os.walk(self.path):
            drop_left(Path(folder), pattern())
        os.pwrite(lock, b"\n", 0)

    def load(self) -> AuthorityKeys:
        """Raises Refused: ``credentials_missing`` without a book, ``credentials_invalid`` for a damaged one."""
        file = self.path / "book.json"
        try:
            book = _decoded(file, AuthorityKeys)
        except FileNotFoundError:
            raise Refused(
                "credentials_missing",
                f"the folder {self.path} holds no credentials authority: name the one that does by --store or "
                f"ISTHMUS_STORE, or make one: `isthmus credentials init --store {shlex.quote(str(self.path))}`",
                store=str(self.path),
            ) from None
        if book.version != BOOK_VERSION:
            raise Refused(
                "credentials_invalid",
                f"{file} has version {book.version}, this program knows {BOOK_VERSION}: use a matching release",
            )
        self.settle_keys(book)
        return book

    def save(self, book: AuthorityKeys) -> None:
        _write(self.path / "book.json", msgspec.json.format(msgspec.json.encode(book), indent=1))

    def _principal_file(self, role: str, cluster: str, name: str) -> Path:
        folder = self.path / "principals" / cluster if cluster else self.path / "principals"
        return folder / f"{role}-{name}.json"

    def principal(self, role: Role, cluster: str, name: str) -> Principal | None:
        """What is known of a name; None for nobody. Raises Refused(credentials_invalid) for a damaged file."""
        return self._read(self._principal_file(role, cluster, name))

    def _read(self, file: Path) -> Principal | None:
        try:
            return _decoded(file, Principal)
        except FileNotFoundError:
            return None

    def save_principal(self, principal: Principal) -> None:
        file = self._principal_file(principal.role, principal.cluster, principal.name)
        _write(file, msgspec.json.encode(principal))

    def principals(self, *, role: Role | None = None, cluster: str | None = None) -> Iterator[Principal]:
        """Everybody, or one role's or cluster's, in the order of their names."""
        pattern = f"{role}-*.json" if role else "*.json"
        folder = self.path / "principals" / (cluster or "")
        for file in sorted(folder.glob(pattern) if cluster is not None else folder.rglob(pattern)):
            found = self._read(file)
            if found is not None:
                yield found

    def _token_file(self, cluster: str, name: str) -> Path:
        return self.path / "tokens" / cluster / f"{name}.json"

    def token(self, cluster: str, name: str) -> TokenRecord:
        """The record of a join token. Raises Refused(token_unknown, credentials_invalid)."""
        wanted = name.strip().lower()[:TOKEN_ID_LENGTH]
        try:
            if not wanted.isalnum():
                raise FileNotFoundError  # noqa: TRY301  no such file could be one of ours
            return _decoded(self._token_file(cluster, wanted), TokenRecord)
        except FileNotFoundError:
            raise Refused(
                "token_unknown",
                f"{self.path} knows of no join token {name[:60]!r} in cluster {cluster!r}; "
                f"`isthmus token list` shows those that it knows",
            ) from None

    def save_token(self, token: TokenRecord) -> None:
        _write(self._token_file(token.cluster, token.id), msgspec.json.encode(token))

    def tokens(self, cluster: str) -> list[TokenRecord]:
        """The records of a cluster's join tokens, the oldest first."""
        files = (self.path / "tokens" / cluster).glob("*.json")
        return sorted((_decoded(file, TokenRecord) for file in files), key=lambda one: (one.made, one.id))

    def key(self, name: str) -> KeyPair:
        """The key pair of ``keys/<name>.seed``. Raises Refused(credentials_missing or credentials_invalid)."""
        file = self.path / "keys" / f"{name}.seed"
        try:
            return from_seed(file.read_text("ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(
                "credentials_missing",
                f"the key {file} cannot be read: this needs the folder with the {name} key",
                key=name,
            ) from error

    def write_key(self, name: str, pair: KeyPair) -> None:
        _write(self.path / "keys" / f"{name}.seed", pair.seed + "\n")

    def next_key(self, name: str) -> KeyPair:
        """The key that is to follow: of a change that was broken off the same one, else a new one.

        It counts from when the book names it. Raises OSError.
        """
        file = self._next_file(name)
        with suppress(OSError, UnicodeDecodeError, Refused):  # none, or a damaged one, which signed nothing
            return from_seed(file.read_text("ascii"))
        pair = generate("account")
        _write(file, pair.seed + "\n")
        return pair

    def settle_keys(self, book: AuthorityKeys) -> None:
        """Let keys that the book names take their places: who saved it may have been killed right then."""
        for name, public in book.keys.items():
            file = self._next_file(name)
            with suppress(OSError, UnicodeDecodeError, Refused):  # none, or none that this account may touch
                if from_seed(file.read_text("ascii")).public == public:
                    file.replace(self.path / "keys" / f"{name}.seed")

    def _next_file(self, name: str) -> Path:
        return self.path / "keys" / f"{name}.next.seed"

    def has_jwt(self, account: str) -> bool:
        return self._jwt_file(account).exists()

    def write_jwt(self, account: str, text: str) -> None:
        """Account and operator JWTs are public: the servers read them."""
        file = self._jwt_file(account)
        _write(file, text)
        file.chmod(0o644)

    def _jwt_file(self, account: str) -> Path:
        return self.path / "nats" / ("operator.jwt" if account == "operator" else f"accounts/{account}.jwt")

    def jwt(self, account: str) -> str:
        """Raises Refused(credentials_missing)."""
        file = self._jwt_file(account)
        try:
            return file.read_text("ascii")
        except OSError as error:
            raise Refused("credentials_missing", f"{file} cannot be read: {error.strerror}") from error

    def creds(self, principal: Principal) -> Path:
        """Where the credentials of a principal are kept."""
        folder = self.path / "creds" / principal.cluster if principal.cluster else self.path / "creds"
        return folder / f"{principal.role}-{principal.name}.creds"
