"""Decisions about encryption: what the cluster encrypts, how far it is on the way there, and nodes' keys.

Who is to be reached encrypted must have WireGuard: a cluster with members that have none is not encrypted,
and one that encrypts admits none of them. On the way from one scope to another the cluster takes a step when
all members have applied the one before, also those that do not report: what they do not know costs packets.
"""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any

from controlplane.cluster.decision import AdvanceEncryption, Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.nodes import own
from controlplane.cluster.decisions.time import laggards
from controlplane.cluster.identity import another_process
from controlplane.cluster.keys import can_encrypt, checked, key_events
from controlplane.cluster.state import ClusterState
from events.errors import Refused
from events.protocol.commands import ChangeKey, SetEncryption
from events.protocol.encryption import Encryption
from events.types import ClusterEncryptionChanged, EncryptionScope

SHOWN = 8


def set_scope(state: ClusterState, command: SetEncryption, now: datetime, context: DecisionContext) -> Decision:
    """Want this encrypted from now on. The same again writes nothing.

    Raises Refused(wireguard_missing) where members cannot encrypt.
    """
    del now, context
    definition_of(state)
    here = state.encrypts
    if here.scope == command.scope:
        return Decision((), described(state, here))
    if command.scope != "off":
        _check_members(state, command.scope)
    event = begun(state, command.scope)
    return Decision((event,), described(state, Encryption.of(event, state.sequence + 1)))


def begun(state: ClusterState, scope: EncryptionScope) -> ClusterEncryptionChanged:
    """The event by which the cluster sets out to that scope; with no member it is there at once."""
    here = state.encrypts
    wanted = Encryption(scope, here.within_sites, here.between_sites)
    within, between = (here.within_sites, here.between_sites) if state.nodes else wanted.wanted
    return ClusterEncryptionChanged(cluster=state.name, scope=scope, within_sites=within, between_sites=between)


def advance(
    state: ClusterState, command: AdvanceEncryption, now: datetime, context: DecisionContext
) -> Decision:
    """Take the next step when every member has applied the last one."""
    del now, context
    here = state.encrypts
    if state.definition is None or state.deleted or here.settled:
        return Decision()
    if laggards(state, command.applied, here.since, 1):
        return Decision()
    within, between = here.next()
    event = ClusterEncryptionChanged(
        cluster=state.name, scope=here.scope, within_sites=within, between_sites=between
    )
    return Decision((event,), {"changed": 1})


def described(state: ClusterState, here: Encryption) -> dict[str, Any]:
    """Where the cluster is on its way."""
    return {
        "cluster": state.name,
        "scope": here.scope,
        "within_sites": here.within_sites,
        "between_sites": here.between_sites,
        "settled": here.settled,
    }


def _check_members(state: ClusterState, scope: str) -> None:
    missing = [name for name in state.nodes if not can_encrypt(state.keys.get(name))]
    if not missing:
        return
    shown = ", ".join(islice(sorted(missing), SHOWN)) + (", …" if len(missing) > SHOWN else "")
    raise Refused(
        "wireguard_missing",
        f"{len(missing):,} of {len(state.nodes):,} members have no WireGuard ({shown}): to encrypt "
        f"{scope!r} would cut them off. Upgrade their agents, and let `isthmus doctor` say what "
        f"is missing; a member that is gone: isthmus node remove NODE",
        scope=scope,
        nodes=sorted(missing)[:SHOWN],
        missing=len(missing),
    )


def change_key(state: ClusterState, command: ChangeKey, now: datetime, context: DecisionContext) -> Decision:
    """The node has another key; the one that it has writes nothing.

    Raises BadRequest(bad_request), Refused(node_key_in_use, node_unknown, node_fenced, identity_twice).
    """
    del now
    member = own(state, command.node, command.uid)
    given = checked(command.key, command.port, command.beside)
    twin = another_process(member, context, "else start it again once the other is silent")
    if twin is not None:
        raise twin
    events = key_events(state, member.name, member.uid, given)
    return Decision(tuple(events), {"node": member.name, "key": given.key, "port": given.port})
