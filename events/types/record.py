"""Events about join tokens, and about the log itself."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from events.types.base import Event


class JoinTokenUsed(Event, frozen=True, kw_only=True, gc=False):
    """A join token was redeemed: the holder of ``public_key`` got the node's credentials.

    ``token`` is the token's own public key, so that the log holds nothing secret; ``expires`` is
    when the credentials end. A token is good once: the command's id is made of the token.

    ``pod`` (namespace/name and uid) proved itself by its ServiceAccount token instead; ``token`` is then the
    new key itself.
    """

    aggregate: ClassVar[str] = "token"
    verb: ClassVar[str] = "used"
    token: str
    node: str
    public_key: str
    expires: datetime
    pod: str = ""

    @property
    def entity(self) -> str:
        return self.token


class SharedTokenUsed(Event, frozen=True, kw_only=True, gc=False):
    """One of the ``uses`` of a join token that several machines may redeem; this is number ``use``, from 1.

    The holder of ``public_key`` got the credentials of ``node``, a name that nobody had before; they end at
    ``expires``. The node joins as ``kind`` and in ``site``, where the token says so. ``at`` is the moment of
    the use, ``until`` the end of the token (its public key is ``token``).
    """

    aggregate: ClassVar[str] = "token"
    verb: ClassVar[str] = "shared-used"
    token: str
    node: str
    public_key: str
    expires: datetime
    use: int
    uses: int
    kind: str = ""
    site: str = ""
    at: datetime
    until: datetime

    @property
    def entity(self) -> str:
        return self.token


class EventsParked(Event, frozen=True, kw_only=True, gc=False):
    """The events ``first`` … ``last`` count as if they had never been written: everybody leaves them out.

    They are what one command wrote (half a decision is none), and one of them, ``poison``, could not be
    followed: its id and type, and the error's code and words as ``code`` and ``reason``.
    """

    aggregate: ClassVar[str] = "event"
    verb: ClassVar[str] = "parked"
    first: int
    last: int
    poison: int
    poison_id: str
    poison_type: str
    code: str
    reason: str

    @property
    def entity(self) -> str:
        return str(self.first)
