"""Everything that reads what others wrote, as functions of bytes: the one list for every fuzzer.

A target may raise an IsthmusError; anything else is a finding. Samples are valid inputs to begin from.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from nats.aio.client import Client

from controlplane.cluster.state import ClusterState
from controlplane.controller.answers import answer
from controlplane.controller.requests import parse
from deploy.credentials.jwt import check, encode
from events import subjects
from events.bus.access import creds as credentials
from events.bus.access.nkeys import from_seed, generate, kind_of
from events.bus.enrolment import JoinToken, read_token
from events.chain import genesis
from events.cli.config import add_config, read
from events.codec import Cause, StoredMessage, decode, seal
from events.errors import IsthmusError
from events.jetstream.api import parse_headers
from events.jetstream.status_stream import StatusReader
from events.protocol.commands import COMMAND_ID, COMMANDS, OF_THE_BRIDGE, SCHEMA, BindNodes
from events.types import EVENT_TYPES, ClusterDefined, NodeJoined, NodeLeft, RangeAllocated
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from tests.fuzz.node_targets import NODE_TARGETS, REPORT

CLUSTER = "prod"


class Target(NamedTuple):
    """``run`` gives something that is true for an input that it takes, and raises or gives nothing else."""

    run: Callable[[bytes], object]
    samples: tuple[bytes, ...]
    foreign: tuple[bytes, ...] = ()
    """Inputs of a right form in a wrong place; more to begin from."""


# --- the command endpoint: one byte chooses the subject, the rest is headers and body -----------------

OTHERS = (subjects.command("other", "join"), "isthmus", "")
SUBJECTS = (
    *(subjects.command(CLUSTER, command.name) for command in COMMANDS if command is not BindNodes),
    *(subjects.node_command(CLUSTER, "idc-1", command.name) for command in COMMANDS if command.node_scoped),
    *(subjects.bridge_command(CLUSTER, command.name) for command in OF_THE_BRIDGE),
    *OTHERS,
)


def command(data: bytes) -> object:
    number, _, rest = data.partition(b"|")
    headers, _, body = rest.partition(b"\n\n")
    subject = SUBJECTS[(number[0] if number else 0) % len(SUBJECTS)]
    pairs = dict(line.partition(":")[::2] for line in headers.decode("latin-1").splitlines())
    return parse(CLUSTER, subject, pairs, body, received_s=0.0)


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


def event(data: bytes) -> object:
    headers, _, body = data.partition(b"\r\n\r\n")
    found = decode(StoredMessage(1, "isthmus.prod.events.node.x.left", parse_headers(headers), body, 1)).event
    return type(found) in EVENT_TYPES


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
@click.option("--gro/--no-gro", default=None)
@click.option("--label", multiple=True)
def role(**_: object) -> None:
    """Settings of every type."""


add_config(role, "agent")


def configuration(data: bytes) -> object:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    values, faults = read(text, role)
    if len(values) > 7 or any(fault.line < 0 for fault in faults):
        raise AssertionError(values, faults)
    return values


# --- archives ------------------------------------------------------------------------------------------------


def _archive() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.isthmus"
        writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="fuzz")
        writer.add(STORED)
        writer.finish()
        writer.close()
        return path.read_bytes()


def archive(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.isthmus"
        path.write_bytes(data)
        log = ArchiveLog(path)
        try:
            return asyncio.run(_drain(log))
        finally:
            log.close()


async def _drain(log: ArchiveLog) -> int:
    """How many events are in it; each is decoded."""
    return sum([len([decode(message) for message in batch.messages]) async for batch in log.read()])


# --- credentials ---------------------------------------------------------------------------------------------

_ACCOUNT, _USER = generate("account"), generate("user")
_JWT = encode(_ACCOUNT, _USER.public, "idc-1", {"type": "user"}, issued=1)
_TOKEN = JoinToken(cluster=CLUSTER, node="idc-1", servers=("tls://h:4222",), jwt=_JWT, seed=_USER.seed)


def creds(data: bytes) -> object:
    return credentials.parse(data.decode("ascii", "replace"))


def token(data: bytes) -> object:
    return read_token(data.decode("utf-8", "replace"), now=NOW)


def jwt(data: bytes) -> object:
    return check(data.decode("utf-8", "replace"), {_ACCOUNT.public})


def nkey(data: bytes) -> object:
    text = data.decode("utf-8", "replace")
    taken = []
    for reader in (from_seed, kind_of):
        try:
            taken.append(reader(text))
        except IsthmusError:
            continue
    return taken


_STATUSES = StatusReader(Client(), CLUSTER)


def status(data: bytes) -> object:
    """What an agent reports, as the controller and the replay tool read it: never an error, at most ignored."""
    return _STATUSES._read(subjects.status(CLUSTER, "n"), data, 1)


def query(data: bytes) -> object:
    """An operator's question to a controller without a cluster."""
    name, _, body = data.partition(b"|")
    return answer(ClusterState(CLUSTER), name.decode("latin-1"), body)


_NODE = '"node":"idc-1","uid":"u"'
_PLACE = '"reservation":"gw","purpose":"apiserver","port":443,"address":"192.0.2.7"'
BODIES = {
    "define-cluster": '{"container_cidr":"10.0.0.0/8","pods_per_node":64,"services":256}',
    "delete-cluster": '{"reason":"over"}',
    "append-cidr": '{"cidr":"10.9.0.0/16"}',
    "declare-network": '{"network":{"cidr":"192.168.0.0/16","kind":"idc","name":"sz"}}',
    "withdraw-network": '{"cidr":"192.168.0.0/16"}',
    "join": f'{{{_NODE},"kind":"external","underlay":"192.0.2.1"}}',
    "change-underlay": f'{{{_NODE},"underlay":"192.0.2.1"}}',
    "leave": f"{{{_NODE}}}",
    "remove-node": '{"node":"idc-1"}',
    "fence-node": '{"node":"idc-1","reason":"dead"}',
    "begin-adoption": '{"source":"flannel","plan":""}',
    "adopt-nodes": f'{{"nodes":[{{{_NODE},"kind":"cloud","underlay":"192.0.2.1","range":"10.0.0.0/26",'
    '"vtep_mac":"8a:00:00:00:00:01"}]}',
    "end-adoption": '{"reason":""}',
    "import-nodes": f'{{"nodes":[{{{_NODE},"kind":"cloud","underlay":"192.0.2.1"}}]}}',
    "reserve-clb": '{"reservation":"gw","subnet":"192.0.2.0/28"}',
    "release-clb": '{"reservation":"gw"}',
    "mark-gateway": '{"node":"idc-1","on":true}',
    "add-backend": f"{{{_PLACE}}}",
    "remove-backend": f"{{{_PLACE}}}",
    "add-entry": '{"entry":"apiserver","sources":["192.0.2.0/28"],"address":""}',
    "remove-entry": '{"entry":"apiserver"}',
    "set-encryption": '{"scope":"off"}',
    "change-key": f'{{{_NODE},"key":"k","port":51820}}',
    "bind-nodes": '{"nodes":[["idc-1","u","6f0c7d9e"]]}',
    "report-health": f'{{{_NODE},{_PLACE},"epoch":1,"protocol":"tcp","backend_port":443,"healthy":true}}',
    "use-token": '{"token":"U","node":"idc-1","public_key":"U","expires":"2026-03-02T14:00:00Z"}',
}
"""A valid body of every command."""


def _request(number: int, body: str) -> bytes:
    return bytes([number]) + b"|" + f"{COMMAND_ID}:1\n{SCHEMA}:1\n\n{body}".encode()


def _commands() -> tuple[bytes, ...]:
    """Every command on its subject, and on that of a node where it has one."""
    names = [subject.split(".")[-1] for subject in SUBJECTS[: -len(OTHERS)]]
    return tuple(_request(number, BODIES[name]) for number, name in enumerate(names) if name in BODIES)


def _misplaced() -> tuple[bytes, ...]:
    names = ("define-cluster", "join", "leave")
    return tuple(_request(number, BODIES[name]) for number in range(4) for name in names)


TARGETS: dict[str, Target] = {
    "command": Target(command, _commands(), _misplaced()),
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
    "status": Target(
        status,
        (b'{"node":"n","uid":"u","applied":1,"sent_at":"2026-03-02T14:00:00Z"}', msgspec.json.encode(REPORT)),
    ),
    "query": Target(query, (b"clb-list|{}", b"nodes|{}")),
    **{name: Target(run, samples) for name, (run, samples) in NODE_TARGETS.items()},
}


def attempt(target: Target, data: bytes) -> None:
    """Run a target; typed refusals are what it is for."""
    try:
        target.run(data)
    except IsthmusError as error:
        if not error.message:
            raise AssertionError("a refusal without a reason") from error
