"""Decisions about join tokens: recording that one was used. Whether it is genuine is the issuer's to say.

That a token for one machine is used once needs no state: its command id is made of it, and a repeated id has
no second effect, however long ago the first was. Of a token for several machines the state knows the uses: it
never exceeds their number or its end, and never lets in a name that somebody has or had by such a token.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.nodes import join as join_node
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest, Refused
from events.protocol.commands import JoinNode, SharedUse, UseToken
from events.subjects import check_node_name, check_site
from events.types import JoinTokenUsed, SharedTokenUsed

_KEY_LENGTH = 56
"""A public nkey as text."""
_POD_LENGTH = 512
USES_MAX = 1000


def use(state: ClusterState, command: UseToken, now: datetime, context: DecisionContext) -> Decision:
    """Record the use. Refused when the cluster is not defined or a field is malformed.

    Raises BadRequest(bad_request), Refused(token_used, token_invalid, node_name_taken).
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
    if command.shared is not None:
        shared = _shared(state, command, command.shared, now)
        return Decision((shared,), msgspec.to_builtins(shared))
    event = JoinTokenUsed(
        token=command.token,
        node=command.node,
        public_key=command.public_key,
        expires=command.expires,
        pod=command.pod,
    )
    return Decision((event,), msgspec.to_builtins(event))


def _shared(state: ClusterState, command: UseToken, shared: SharedUse, now: datetime) -> SharedTokenUsed:
    """The event of a use that the token allows. Raises Refused, BadRequest."""
    check_site(shared.site)
    if not 1 <= shared.uses <= USES_MAX or shared.kind not in {"", "cloud", "external"}:
        raise BadRequest(
            "bad_request",
            f"a join token has 1 to {USES_MAX:,} uses by cloud or external nodes, not {shared.uses} by "
            f"{shared.kind[:20]!r}",
            field="shared",
        )
    if shared.until <= now:
        raise Refused(
            "token_invalid", f"the join token expired at {shared.until:%Y-%m-%d %H:%M} UTC; it is {now:%H:%M}"
        )
    last = state.last_admitted.get(command.token)
    used = 0 if last is None else state.admitted[last].use
    if last is not None and used >= shared.uses:
        latest = state.admitted[last]
        raise Refused(
            "token_used",
            f"the join token was good for {shared.uses} machines and was used by as many, last by {last!r} at "
            f"{latest.at:%Y-%m-%d %H:%M:%S} UTC (event {latest.since}); "
            f"`isthmus token show {command.token[:12]}` names them all",
            uses=shared.uses,
            node=last,
        )
    taken = state.admitted.get(command.node)
    if taken is not None or command.node in state.nodes:
        how = (
            f"let in at event {taken.since}"
            if taken
            else f"a member since event {state.nodes[command.node].joined}"
        )
        raise Refused(
            "node_name_taken",
            f"{command.node!r} was {how}: a join token for several machines takes over no name. Rename the "
            f"machine, or make a token for that name alone: `isthmus token create {command.node} --bus URL`",
            node=command.node,
        )
    return SharedTokenUsed(
        token=command.token,
        node=command.node,
        public_key=command.public_key,
        expires=command.expires,
        use=used + 1,
        uses=shared.uses,
        kind=shared.kind,
        site=shared.site,
        at=now,
        until=shared.until,
    )


def join(state: ClusterState, command: JoinNode, now: datetime, context: DecisionContext) -> Decision:
    """A node's join, within what the token says that let its name in. Raises Refused(token_limits)."""
    let_in = state.admitted.get(command.node)
    if let_in is not None:
        for what, allowed, asked in (("kind", let_in.kind, command.kind), ("site", let_in.site, command.site)):
            if allowed and asked != allowed:
                raise Refused(
                    "token_limits",
                    f"node {command.node!r} was let in with {what} {allowed!r} (event {let_in.since}) and asks "
                    f"to join with {what} {asked[:63]!r}: set {what} = {allowed!r} in its agent.toml",
                    node=command.node,
                )
    return join_node(state, command, now, context)
