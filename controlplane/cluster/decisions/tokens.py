"""Decisions about join tokens: recording that one was used. Whether it is genuine is the issuer's to say.

That a token is used once needs no state: its command id is made of it, and a repeated id has no
second effect, however long ago the first was.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest
from events.protocol.commands import UseToken
from events.subjects import check_node_name
from events.types import JoinTokenUsed

_KEY_LENGTH = 56
"""A public nkey as text."""
_POD_LENGTH = 512


def use(state: ClusterState, command: UseToken, now: datetime, context: DecisionContext) -> Decision:
    """Record the use. Refused when the cluster is not defined or a field is malformed.

    Raises BadRequest(bad_request).
    """
    del context
    definition_of(state)
    check_node_name(command.node)
    for what, key in (("token", command.token), ("public_key", command.public_key)):
        if len(key) != _KEY_LENGTH or not (key.isascii() and key.isalnum() and key.startswith("U")):
            raise BadRequest("bad_request", f"{what} {key[:60]!r} is no public key of a user", field=what)
    if len(command.pod) > _POD_LENGTH or not command.pod.isprintable():
        raise BadRequest("bad_request", f"pod {command.pod[:60]!r} is no pod's name and uid", field="pod")
    if command.expires <= now:
        raise BadRequest(
            "bad_request",
            f"the credentials would have expired at {command.expires.isoformat()}",
            field="expires",
        )
    event = JoinTokenUsed(
        token=command.token,
        node=command.node,
        public_key=command.public_key,
        expires=command.expires,
        pod=command.pod,
    )
    return Decision((event,), msgspec.to_builtins(event))
