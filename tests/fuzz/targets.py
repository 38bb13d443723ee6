"""Everything that reads what others wrote, as functions of bytes: the one list for every fuzzer.

A target may raise an IsthmusError; anything else is a finding. Samples are valid inputs to begin from.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
from nats.aio.client import Client

from controlplane.cluster.state import ClusterState
from controlplane.controller.answers import answer
from controlplane.controller.commands.requests import parse
from deploy.credentials.jwt import check, encode
from events import subjects
from events.bus.access import creds as credentials
from events.bus.access.enrolment import JoinToken, read_token
from events.bus.access.nkeys import from_seed, generate, kind_of
from events.chain import genesis
from events.cli.config import add_config, read
from events.codec import Cause, StoredMessage, decode, seal
from events.errors import IsthmusError
from events.jetstream.api import parse_headers
from events.jetstream.status_stream import StatusReader
from events.protocol.commands import COMMAND_ID, COMMANDS, SCHEMA
from events.types import ClusterDefined, NodeJoined, NodeLeft, RangeAllocated
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter

CLUSTER = "prod"


class Target(NamedTuple):
    run: Callable[[bytes], object]
    samples: tuple[bytes, ...]


# --- the command endpoint: one byte chooses the subject, the rest is headers and body -----------------

SUBJECTS = (
    *(subjects.command(CLUSTER, command.name) for command in COMMANDS),
    *(subjects.node_command(CLUSTER, "idc-1", command.name) for command in COMMANDS if command.node_scoped),
    subjects.command("other", "join"),
    "isthmus",
    "",
)


def command(data: bytes) -> None:
    number, _, rest = data.partition(b"|")
    headers, _, body = rest.partition(b"\n\n")
    subject = SUBJECTS[(number[0] if number else 0) % len(SUBJECTS)]
    pairs = dict(line.partition(":")[::2] for line in headers.decode("latin-1").splitlines())
    parse(CLUSTER, subject, pairs, body, received_s=0.0)


# --- events ----------------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 2, 14, tzinfo=UTC)
EVENTS = (
    ClusterDefined(
        cluster=CLUSTER, container_cidr="10.200.0.0/16", max_pods_per_node=64, max_services=256, range_size=64,
        service_size=256, service_cidr="10.200.255.0/24", capacity=1020,
    ),
    NodeJoined(
        node="idc-1", uid="u", kind="external", underlay="192.0.2.1", announced="192.0.2.1",
        vtep_mac="02:00:00:00:00:01",
    ),
    RangeAllocated(cidr="10.200.0.0/26", index=0, node="idc-1", uid="u", cursor_after=1),
    NodeLeft(node="idc-1", uid="u"),
)  # fmt: skip
MESSAGES, _HEAD = seal(
    CLUSTER, genesis(CLUSTER), [(Cause(command_id="c", actor="a", time=NOW, source="s"), EVENTS)]
)
STORED = [StoredMessage(i, m.subject, m.headers, m.body, 1) for i, m in enumerate(MESSAGES, 1)]


def event(data: bytes) -> None:
    headers, _, body = data.partition(b"\r\n\r\n")
    decode(StoredMessage(1, "isthmus.prod.events.node.x.left", parse_headers(headers), body, 1))


def _raw(message: StoredMessage) -> bytes:
    lines = [f"{name}: {value}" for name, value in message.headers.items()]
    return "\r\n".join(["NATS/1.0", *lines]).encode() + b"\r\n\r\n" + message.body


# --- configuration -----------------------------------------------------------------------------------------


@click.command()
@click.option("--bus")
@click.option("--cluster")
@click.option("--mtu", type=int)
@click.option("--resync", type=float)
@click.option("--kind", type=click.Choice(["cloud", "external"]))
@click.option("--gro/--no-gro", default=True)
@click.option("--label", multiple=True)
def role(**_: object) -> None:
    """Settings of every type."""


add_config(role, "agent")


def configuration(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    values, faults = read(text, role)
    if len(values) > 7 or any(fault.line < 0 for fault in faults):
        raise AssertionError(values, faults)


# --- archives ------------------------------------------------------------------------------------------------


def _archive() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.isthmus"
        writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="fuzz")
        writer.add(STORED)
        writer.finish()
        writer.close()
        return path.read_bytes()


def archive(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.isthmus"
        path.write_bytes(data)
        log = ArchiveLog(path)
        try:
            asyncio.run(_drain(log))
        finally:
            log.close()


async def _drain(log: ArchiveLog) -> None:
    async for batch in log.read():
        for message in batch.messages:
            decode(message)


# --- credentials ---------------------------------------------------------------------------------------------

_ACCOUNT, _USER = generate("account"), generate("user")
_JWT = encode(_ACCOUNT, _USER.public, "idc-1", {"type": "user"}, issued=1)
_TOKEN = JoinToken(cluster=CLUSTER, node="idc-1", servers=("tls://h:4222",), jwt=_JWT, seed=_USER.seed)


def creds(data: bytes) -> None:
    credentials.parse(data.decode("ascii", "replace"))


def token(data: bytes) -> None:
    read_token(data.decode("utf-8", "replace"), now=NOW)


def jwt(data: bytes) -> None:
    check(data.decode("utf-8", "replace"), {_ACCOUNT.public})


def nkey(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for reader in (from_seed, kind_of):
        try:
            reader(text)
        except IsthmusError:
            continue


_STATUSES = StatusReader(Client(), CLUSTER)


def status(data: bytes) -> None:
    """What an agent reports, as the controller and the replay tool read it: never an error, at most ignored."""
    _STATUSES._read(subjects.status(CLUSTER, "n"), data, 1)


def query(data: bytes) -> None:
    """An operator's question to a controller without a cluster."""
    name, _, body = data.partition(b"|")
    answer(ClusterState(CLUSTER), name.decode("latin-1"), body)


def _commands() -> Sequence[bytes]:
    head = f"{COMMAND_ID}: 1\n{SCHEMA}:1".encode()
    bodies = (
        b'{"container_cidr":"10.0.0.0/8"}',
        b'{"node":"idc-1","uid":"u","kind":"external","underlay":"192.0.2.1"}',
        b'{"node":"idc-1","uid":"u"}',
    )
    return [bytes([number]) + b"|" + head + b"\n\n" + body for number in range(4) for body in bodies]


TARGETS: dict[str, Target] = {
    "command": Target(command, tuple(_commands())),
    "event": Target(event, tuple(_raw(message) for message in STORED)),
    "configuration": Target(
        configuration,
        (b'bus = "tls://h:4222"\nmtu = 1450\nlabel = ["a", "b"]\n[x]\ny = 1\n', b'cluster = """\na"""\n'),
    ),
    "archive": Target(archive, (_archive(),)),
    "creds": Target(creds, (credentials.render(_JWT, _USER.seed).encode(),)),
    "token": Target(token, (_TOKEN.text().encode(),)),
    "jwt": Target(jwt, (_JWT.encode(),)),
    "nkey": Target(nkey, (_USER.seed.encode(), _USER.public.encode())),
    "status": Target(status, (b'{"node":"n","uid":"u","applied":1,"sent_at":"2026-03-02T14:00:00Z"}',)),
    "query": Target(query, (b"clb-list|{}", b"nodes|{}")),
}


def attempt(target: Target, data: bytes) -> None:
    """Run a target; typed refusals are what it is for."""
    try:
        target.run(data)
    except IsthmusError as error:
        if not error.message:
            raise AssertionError("a refusal without a reason") from error
