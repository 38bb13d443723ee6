"""A request's bytes and headers → a checked command, or a typed error. Pure; writes nothing.

What is checked here is everything that can be said without the cluster's state: the subject's
cluster and node, the schema version, the size, the JSON and its types. Whether the command makes
sense is decided later, on the state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from controlplane.cluster.decision import Tick
from events import subjects
from events.errors import BadRequest, Refused
from events.ids import new_id
from events.printable import printable
from events.protocol.commands import (
    ACTOR,
    COMMAND_ID,
    COMMANDS,
    DRY_RUN,
    INSTANCE,
    OF_THE_BRIDGE,
    PAYLOAD_LIMIT_BYTES,
    SCHEMA,
    SCHEMA_VERSION,
    BindNodes,
    Command,
    UseToken,
    token_command_id,
)

NODE_BODY_LIMIT_BYTES = 16 * 1024
"""Largest request on a node's own subject."""

_DECODERS: dict[str, Callable[[bytes], Command]] = {
    cls.name: msgspec.json.Decoder(cls).decode for cls in COMMANDS
}
_NODE_SCOPED = {cls.name for cls in COMMANDS if cls.node_scoped}
_COMMAND_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ACTOR_LIMIT = 256
CORRELATION, CAUSATION = "ce-correlationid", "ce-causationid"
TRACE_PARENT, TRACE_STATE = "traceparent", "tracestate"
_SCHEMA_VERSION = str(SCHEMA_VERSION)
NODE_IDS = "node/"
BRIDGE_IDS = f"{subjects.BRIDGE}-"
"""What the ids of the Kubernetes bridge's commands begin with, by which the log says that they were its."""
_BRIDGE = {command.name for command in OF_THE_BRIDGE}
_RESERVED = (NODE_IDS, token_command_id(""), "tick-", "park-", BRIDGE_IDS)
_NOT_AN_OPERATOR = re.compile(rf"(?i)(^|\bvia\s+)\s*(node|controller|{subjects.BRIDGE})/")


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One checked command (or one of the controller's own) and who asks.

    ``received_s`` is of the steady clock (``time.monotonic``; uvloop's own counts whole milliseconds).
    """

    command: Command | Tick
    command_id: str
    actor: str
    received_s: float
    node: str = ""
    """Whose subject it came on; empty for an operator's."""
    instance: str = ""
    """Which process of the node's agent asks; empty for everybody else, and for agents before 0.3."""
    dry_run: bool = False
    correlation_id: str = ""
    causation_id: str = ""
    traceparent: str = ""
    tracestate: str = ""


def parse(
    cluster: str, subject: str, headers: Mapping[str, str] | None, body: bytes, *, received_s: float
) -> Request:
    """Check one request as it came from the bus.

    Raises BadRequest (``wrong_cluster``, ``unknown_command``, ``unsupported_schema``,
    ``payload_too_large``, ``bad_request``) or Refused(forbidden) when a node asks for another node.
    """
    headers = headers or {}
    name, node, bridge = _address(cluster, subject)
    decoder = _DECODERS.get(name)
    if decoder is None:
        raise BadRequest(
            "unknown_command",
            f"there is no command {name[:64]!r}; there are: {', '.join(sorted(_DECODERS))}",
            command=name[:64],
        )
    stated = headers.get(SCHEMA, _SCHEMA_VERSION)
    if stated != _SCHEMA_VERSION:
        raise BadRequest(
            "unsupported_schema",
            f"the request has command schema {stated[:16]!r}, this controller knows {SCHEMA_VERSION}",
            stated=stated[:16],
            supported=[SCHEMA_VERSION],
        )
    limit = PAYLOAD_LIMIT_BYTES if node is None else NODE_BODY_LIMIT_BYTES
    if len(body) > limit:
        raise BadRequest(
            "payload_too_large",
            f"the request has {len(body):,} bytes; at most {limit:,} are accepted",
            size=len(body),
            limit=limit,
        )
    try:
        command = decoder(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("bad_request", f"{name}: {error}", command=name) from error
    if node is not None and subjects.token(command.node) != node:  # type: ignore[attr-defined]
        stated_node = printable(command.node, 253)  # type: ignore[attr-defined]
        raise Refused(
            "forbidden",
            f"a request on the subject of node {subjects.node_from_token(node)!r} names node {stated_node!r}: "
            f"a node asks for itself only",
            subject_node=subjects.node_from_token(node),
            body_node=stated_node,
        )
    asker: str = command.node if node is not None else ""  # type: ignore[attr-defined]
    return Request(
        command=command,
        command_id=_command_id(headers, asker, command, bridge=bridge),
        actor=_actor(headers, f"node/{asker}" if asker else f"{subjects.BRIDGE}/" if bridge else ""),
        received_s=received_s,
        node=asker,
        # Which of these there are is asked for every request, and hardly any has one.
        instance=_text(headers, INSTANCE, 64) if INSTANCE in headers else "",
        dry_run=DRY_RUN in headers and headers[DRY_RUN] in {"1", "true"},
        correlation_id=_text(headers, CORRELATION, 128) if CORRELATION in headers else "",
        causation_id=_text(headers, CAUSATION, 128) if CAUSATION in headers else "",
        traceparent=_traceparent(headers) if TRACE_PARENT in headers else "",
        tracestate=_text(headers, TRACE_STATE, 512) if TRACE_STATE in headers else "",
    )


def _address(cluster: str, subject: str) -> tuple[str, str | None, bool]:
    """The command's name, the node's token when the subject is node-scoped, and whether it is the bridge's."""
    tokens = subject.split(".")
    if len(tokens) == 6 and tokens[5] in _NODE_SCOPED and tokens[:4] == ["isthmus", cluster, "command", "node"]:
        return tokens[5], tokens[4], False  # nearly all
    if len(tokens) < 4 or tokens[0] != "isthmus" or tokens[2] != "command":
        raise BadRequest("unknown_command", f"{subject[:128]!r} is no command subject", subject=subject[:128])
    if tokens[1] != cluster:
        raise BadRequest(
            "wrong_cluster",
            f"the request is for cluster {tokens[1][:63]!r}, this controller serves {cluster!r}",
            asked=tokens[1][:63],
            served=cluster,
        )
    if tokens[3] == "node" and len(tokens) == 6:
        if tokens[5] in _DECODERS and tokens[5] not in _NODE_SCOPED:
            raise Refused(
                "forbidden",
                f"{tokens[5]!r} is an operator's command; a node's subject does not carry it",
                command=tokens[5],
            )
        return tokens[5], tokens[4], False
    if tokens[3] == subjects.BRIDGE and len(tokens) == 5:
        if tokens[4] in _DECODERS and tokens[4] not in _BRIDGE:
            raise Refused(
                "forbidden", f"{tokens[4]!r} is no command of the Kubernetes bridge", command=tokens[4]
            )
        return tokens[4], None, True
    if len(tokens) != 4:
        raise BadRequest("unknown_command", f"{subject[:128]!r} is no command subject", subject=subject[:128])
    if tokens[3] == BindNodes.name:
        raise Refused(
            "forbidden",
            f"{tokens[3]!r} is for the Kubernetes bridge alone; an operator's subject does not carry it",
            command=tokens[3],
        )
    return tokens[3], None, False


def _command_id(headers: Mapping[str, str], node: str, command: Command, *, bridge: bool) -> str:
    """The id by which the request is known: bound to who sent it, so that nobody can use up another's.

    A node's ids are its own (``node/NAME/ID``), whatever others have named theirs; a join token's use has the
    one id that is made of the token, and no other request can have such an id. Those of the Kubernetes
    bridge are told from an operator's.
    """
    if isinstance(command, UseToken):
        return token_command_id(command.token, command.public_key if command.shared else "")
    stated = _stated_id(headers)
    if node:
        return f"{NODE_IDS}{node}/{stated}"
    if bridge:
        return stated if stated.startswith(BRIDGE_IDS) else f"{BRIDGE_IDS}{stated}"
    if stated.startswith(_RESERVED):
        raise BadRequest(
            "bad_request",
            f"{COMMAND_ID} {stated[:40]!r} begins as those of nodes, tokens, bridges and controllers do: take "
            f"another",
            field=COMMAND_ID,
        )
    return stated


def _stated_id(headers: Mapping[str, str]) -> str:
    stated = headers.get(COMMAND_ID, "")
    if not stated:
        return new_id()
    if not _COMMAND_ID.fullmatch(stated):
        raise BadRequest(
            "bad_request",
            f"{COMMAND_ID} must be 1 to 128 printable ASCII characters without spaces, not {stated[:40]!r}",
            field=COMMAND_ID,
        )
    return stated


def _actor(headers: Mapping[str, str], proven: str) -> str:
    """Who asks, printable. ``proven`` is what the subject says: a node, or a bridge by whatever name.

    On a node's own subject the node is always named: its credentials may reach no further.
    """
    stated = _text(headers, ACTOR, _ACTOR_LIMIT)
    if not proven:
        # An operator who takes the name of a node, a bridge or a controller is recorded as who did so.
        return f"operator as {stated}" if _NOT_AN_OPERATOR.search(stated) else stated or "anonymous"
    if proven.endswith("/"):
        return stated if stated.startswith(proven) else f"{proven}{stated}"
    return proven if stated in {"", proven} else f"{stated} via {proven}"


def _traceparent(headers: Mapping[str, str]) -> str:
    """The W3C trace context, or nothing when it is malformed (the specification says: ignore it)."""
    value = headers.get(TRACE_PARENT, "")
    return value if value and _TRACEPARENT.fullmatch(value) else ""


def _text(headers: Mapping[str, str], name: str, limit: int) -> str:
    value = headers.get(name)
    return printable(value, limit) if value else ""
