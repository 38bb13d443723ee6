"""Sending commands to a controller and understanding the answer.

Used by the command line, by agents and by load generators. A command keeps its id over all tries,
so that trying again is always safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from events import subjects
from events.bus.connection import was_denied
from events.bus.retry import pauses, raise_if_cancelled
from events.errors import IsthmusError, OutcomeUnknown, Overloaded, Refused, Unavailable, from_wire
from events.ids import new_id
from events.protocol.commands import ACTOR, COMMAND_ID, DRY_RUN, SCHEMA, SCHEMA_VERSION, Command, CommandReply
from events.protocol.queries import Query

if TYPE_CHECKING:
    from events.telemetry.role import Telemetry

A = TypeVar("A", bound=msgspec.Struct)

_encode = msgspec.json.Encoder().encode
_PAUSE_FIRST_S, _PAUSE_LONGEST_S = 0.05, 1.0
_TRY_LEAST_S = 0.05
_ERROR_HEADER = "Nats-Service-Error-Code"
_reply = msgspec.json.Decoder(CommandReply)


class ControllerClient:
    """Requests to the controllers of one cluster over an open connection.

    ``actor`` names who asks (``ops@host``, ``node/idc-7``); it is stored with each event.
    """

    node = ""
    """The node whose own subject these credentials reach, if they are a node's; set behind the constructor."""
    bridge = False
    """Whether it speaks for the Kubernetes bridge, on its subjects; set behind the constructor."""

    def __init__(self, client: Client, cluster: str, *, actor: str, telemetry: Telemetry | None = None) -> None:
        """With ``telemetry`` each command gets a span, and its context travels in the headers."""
        self._nats = client
        self.cluster = cluster
        self.actor = actor
        self._telemetry = telemetry

    @property
    def server(self) -> str:
        """The bus server that this connection leads to, without credentials; empty while there is none."""
        found = self._nats.connected_url
        return f"{found.scheme}://{found.netloc.rpartition('@')[2]}" if found is not None else ""

    async def send(
        self,
        command: Command,
        *,
        command_id: str = "",
        dry_run: bool = False,
        timeout_s: float = 10.0,
        try_timeout_s: float = 3.0,
        headers: dict[str, str] | None = None,
    ) -> CommandReply:
        """Send a command and wait for its stored effect.

        Tries again with the same id until ``timeout_s`` has passed: when nobody answers, when the queue is full
        and when an acknowledgement was lost. Raises whatever error the controller answered with,
        Unavailable(no_controller) when nobody did, and OutcomeUnknown when the last try may have taken effect.
        Cancelled, the command may have taken effect all the same: the same ``command_id`` tells.
        """
        head = {
            **(headers or {}),
            COMMAND_ID: command_id or new_id(),
            ACTOR: self.actor,
            SCHEMA: str(SCHEMA_VERSION),
            **({DRY_RUN: "1"} if dry_run else {}),
        }
        telemetry = self._telemetry
        if telemetry is None or not telemetry.tracing:
            return await self._deliver(command, head, timeout_s, try_timeout_s)
        from events.telemetry.role import MESSAGING_SYSTEM, SpanKind, inject

        attributes = {
            "messaging.system": MESSAGING_SYSTEM,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.template": f"command.{command.name}",
            "isthmus.cluster": self.cluster,
            "isthmus.command.id": head[COMMAND_ID],
            "isthmus.node": str(getattr(command, "node", "")),
        }
        with telemetry.span(f"send command.{command.name}", kind=SpanKind.CLIENT, attributes=attributes):
            inject(head)
            return await self._deliver(command, head, timeout_s, try_timeout_s)

    async def _deliver(
        self, command: Command, head: dict[str, str], timeout_s: float, try_timeout_s: float
    ) -> CommandReply:
        # A node's own subject is for the node: what an operator asks for it is recorded as the operator's.
        node = getattr(command, "node", "") if command.node_scoped else ""
        if node and (node == self.node or self.actor == f"node/{node}"):
            subject = subjects.node_command(self.cluster, node, command.name)
        elif self.bridge:
            subject = subjects.bridge_command(self.cluster, command.name)
        else:
            subject = subjects.command(self.cluster, command.name)
        body = _encode(command)
        unanswered, last = False, None
        async for left_s in self._tries(timeout_s):
            try:
                return await self._once(subject, body, head, min(try_timeout_s, left_s))
            except NoRespondersError:
                last = self._nobody(timeout_s)
            except (NatsTimeoutError, TimeoutError):
                self._check_permitted(subject)
                unanswered = True
                last = None
            except (Overloaded, Unavailable) as error:
                unanswered = unanswered or isinstance(error, OutcomeUnknown)
                last = error
            except NatsError as error:
                last = Unavailable("bus_unreachable", f"the bus connection failed: {error}")
        if last is not None and not unanswered:
            raise last
        raise OutcomeUnknown(
            "outcome_unknown",
            f"no answer to {command.name} within {timeout_s:g} s; repeat it with "
            f"--command-id {head[COMMAND_ID]} to learn its outcome",
            command_id=head[COMMAND_ID],
        )

    async def ask(
        self, query: Query, shape: type[A], *, timeout_s: float = 10.0, try_timeout_s: float = 3.0
    ) -> A:
        """Ask about the present; tries again until ``timeout_s`` has passed. A question has no effect.

        ``shape`` is what the query's docstring says that it is answered with.

        Raises whatever error the controller answered with, and Unavailable(no_controller) when nobody did.
        Cancelled, the question may still be answered; it has no effect.
        """
        last: BaseException | None = None
        async for left_s in self._tries(timeout_s):
            try:
                message = await self._nats.request(
                    subjects.query(self.cluster, query.name),
                    _encode(query),
                    timeout=min(try_timeout_s, left_s),
                )
            except (NoRespondersError, NatsTimeoutError, TimeoutError) as error:
                self._check_permitted(subjects.query(self.cluster, query.name))
                last = error
                continue
            except NatsError as error:
                raise Unavailable("bus_unreachable", f"the bus connection failed: {error}") from error
            raise_if_cancelled()
            try:
                return _understand(message.data, message.headers or {}, shape)
            except Unavailable as error:
                if error.code != "no_controller":
                    raise
                last = error  # it has just lost the lead, or stops: another one knows
        raise self._nobody(timeout_s) from last

    def _tries(self, timeout_s: float) -> AsyncIterator[float]:
        deadline = asyncio.get_running_loop().time() + max(_TRY_LEAST_S, timeout_s)
        return pauses(deadline, first_s=_PAUSE_FIRST_S, longest_s=_PAUSE_LONGEST_S)

    def _nobody(self, waited_s: float) -> Unavailable:
        return Unavailable(
            "no_controller",
            f"no controller answers for cluster {self.cluster!r} (waited {waited_s:g} s): "
            f"start one with `isthmus controller` or check --cluster",
            cluster=self.cluster,
        )

    def _check_permitted(self, subject: str) -> None:
        """The server answers a forbidden request with silence; the reason came another way."""
        if was_denied(self._nats, subject):
            raise Refused(
                "forbidden",
                f"these credentials do not reach {subject!r}: they are for another cluster than "
                f"{self.cluster!r}, for another node, or for less than this",
                subject=subject,
                cluster=self.cluster,
            )

    async def _once(self, subject: str, body: bytes, head: dict[str, str], timeout_s: float) -> CommandReply:
        message = await self._nats.request(subject, body, timeout=timeout_s, headers=dict(head))
        raise_if_cancelled()
        try:
            reply = _reply.decode(message.data)
        except msgspec.MsgspecError as error:
            raise IsthmusError("internal", f"the controller's answer is unreadable: {error}") from error
        if reply.code:
            raise from_wire(reply.code, reply.message, _plain(reply.details))
        return reply


def _understand(body: bytes, headers: dict[str, str], shape: type[A]) -> A:
    """Decode an answer. Raises the error that it carries."""
    try:
        if _ERROR_HEADER in headers:
            reply = _reply.decode(body)
            raise from_wire(reply.code, reply.message, _plain(reply.details))
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as error:
        raise IsthmusError("internal", f"the controller's answer is unreadable: {error}") from error


def _plain(details: dict[str, Any]) -> dict[str, Any]:
    """Details become keyword arguments; names that the constructor itself uses get a suffix."""
    return {f"{key}_" if key in {"code", "message", "self"} else key: value for key, value in details.items()}
