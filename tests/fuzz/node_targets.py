"""What an agent reads: packets of the network, files of its own folder, calls of the CNI plugin."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from events.input_files import read_regular
from events.status import AgentStatus, NatReport, PeerWay, WaysReport
from nodeagent.direct import packets as direct
from nodeagent.health import packets as health
from nodeagent.local_files import STATUS_FILE, LocalStatus, read_status
from nodeagent.membership import node_key
from nodeagent.membership.cache import Cache, Entry
from nodeagent.membership.key_age import KeyAge
from nodeagent.membership.peers import Peer
from nodeagent.mesh import packets as mesh
from nodeagent.nat import kept, packets
from nodeagent.nat.book import NatBook
from nodeagent.nat.packets import ANSWER, CONFIRM, DONE, HELLO, Endpoint, Message
from nodeagent.netlink.rows import address_bytes, split_cidr
from nodeagent.pods.plugin import requests
from tests.nodeagent.logs import DEFINED, folded, joined

OWN = Peer("n1", "u1", 7, "172.16.0.0/26", "66:00:00:00:00:01", "10.0.0.1", "k1")
OTHER = Peer("n2", "u2", 9, "172.16.0.64/26", "66:00:00:00:00:02", "10.0.0.2", "k2")
PLACE = Endpoint(address_bytes("198.51.100.9"), 30000)
KEY = bytes(range(32))
THERE, PROBED = address_bytes("172.16.0.127"), address_bytes("172.16.0.63")


# --- packets of the network --------------------------------------------------------------------------


def nat(data: bytes) -> object:
    """Packets one after another. Content that is no message ends at the form; what a member could have sealed
    goes into the book.

    After whatever came, the book has at most one place for each member, and can still be asked everything.
    """
    book = NatBook(entropy=bytes, seed=1)
    book.be(OWN, 8472, 0.0)
    book.follow({OTHER.epoch: OTHER}, [OTHER], 0.0)
    taken = 0
    for now, start in enumerate(range(0, min(len(data), 1 << 14), packets.HEADERS + packets.BYTES), 1):
        for peer in book.look(float(now)):
            book.hello(peer, float(now))
        opened = packets.opened(data[start : start + packets.HEADERS + packets.BYTES])
        message = packets.read(opened[2]) if opened is not None else None
        if opened is None or message is None:
            continue
        taken += 1
        reply = book.received(message, OTHER, opened[1], float(now))
        if reply is not None:
            written = packets.seal(reply, KEY)
            if len(written) > len(opened[2]) or packets.read(written) is None:
                raise AssertionError("an answer is larger than its question, or is none")
        book.keeps(float(now))
        if len(book) != 1 or len(book.ways()) > 1 or book.seen(float(now)).address.count(".") not in {0, 3}:
            raise AssertionError(book.ways())
    with tempfile.TemporaryDirectory() as folder:
        file = kept.Kept(Path(folder))
        file.save(book.number, book.floors(), asked=True)
        if kept.Kept(Path(folder)).floors != book.floors():
            raise AssertionError("what is kept cannot be read again")
    return taken


def _said(kind: int, number: int, **more: object) -> bytes:
    network, length = split_cidr(OTHER.cidr)
    message = Message(kind, OTHER.epoch, OWN.epoch, network, length, number)._replace(**more)
    return packets.datagram(
        packets.seal(message, KEY), PLACE.address, Endpoint(address_bytes(OWN.underlay), 8472), 30000
    )


_TALK = b"".join(
    (_said(HELLO, 5), _said(CONFIRM, 5), _said(ANSWER, 2, seen=PLACE), _said(DONE, 2), _said(HELLO, 6))
)


def direct_probe(data: bytes) -> object:
    """A question or answer on the link."""
    found = direct.decode(data)
    if found is not None and direct.decode(direct.encode(found)) != found:
        raise AssertionError(found)
    return found


def mesh_packet(data: bytes) -> object:
    """A question or answer between probe addresses."""
    return mesh.understand(data, PROBED)


def health_packet(data: bytes) -> object:
    """What comes out of the probe device: its answer is never larger."""
    found = health.parse(data, PROBED)
    if isinstance(found, health.ProbeRequest) and any(len(answer) > len(data) + 28 for answer in found.passing):
        raise AssertionError("an answer is larger than its question and an ICMP header")
    return found


# --- files of the agent's folder -----------------------------------------------------------------------


def _in_folder(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(data)
            return read(Path(folder))

    return run


def _nat_file(folder: Path) -> object:
    file = kept.Kept(folder)
    used = file.number + 1
    file.save(used, dict(file.floors), asked=True)
    again = kept.Kept(folder)
    if again.number < used or again.floors != file.floors:
        raise AssertionError("a number is used again")
    return again


def _view(folder: Path) -> object:
    view = Cache(folder).load("c", "n1", "u1")
    for peer in view.peers:
        peer.rows()
    return view.members


def _journal_sample() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        cache.append(
            [
                Entry(sequence, "00" * 32, event.type_name(), msgspec.json.encode(event), 1.0)
                for sequence, event in enumerate([DEFINED, *joined(1)], 1)
            ]
        )
        cache.close()
        return (Path(folder) / "view.journal").read_bytes()


def _key_file(folder: Path) -> object:
    key = node_key._read(folder / node_key.KEY_FILE)
    age = KeyAge(folder).of(key.public, 1.0)
    return key.public and age == 0


def _age_file(folder: Path) -> object:
    age = KeyAge(folder)
    return 0 <= age.of("k1", 5.0) <= age.of("k1", 6.0)


def _view_sample() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Cache(Path(folder)).snapshot(folded([DEFINED, *joined(1), *joined(2)], node="n1", uid="u1"))
        return read_regular(Path(folder) / "view.json")


def _call(command: str, body: str) -> bytes:
    head = requests.HEAD + f"\0CNI_COMMAND={command}\0CNI_CONTAINERID=c1\0CNI_IFNAME=eth0".encode()
    return head + b"\0CNI_ARGS=K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\0\0" + body.encode()


REPORT = AgentStatus(
    node="n", uid="u", applied=1, sent_at=datetime(2026, 3, 2, 14, tzinfo=UTC), conditions=("x",),
    nat=NatReport(behind=True, seen_as="198.51.100.9", seen_by=("a", "b")),
    ways=WaysReport(tunnel=1, nat=1, peers=(PeerWay(9, "nat", 1.0, "198.51.100.9:30000", False, "x"),)),
)  # fmt: skip
"""A report with all that 0.3 adds to it."""

NODE_TARGETS: dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...]]] = {
    "nat-probe": (nat, (_TALK, _said(HELLO, packets.NUMBER_MAX))),
    "direct-probe": (direct_probe, tuple(direct.encode(direct.Probe(kind, 9, 7, bytes(8))) for kind in (1, 2))),
    "mesh-probe": (
        mesh_packet,
        tuple(
            mesh.message(THERE, PROBED, kind, bytes(8), bytes(8), **more)
            for kind, more in itertools.product((1, 2), ({}, {"large": True, "size": 300}))
        ),
    ),
    "health-probe": (
        health_packet,
        tuple(health.call(source, "172.16.0.63", b"12345678") for source in ("172.16.0.127", "10.0.0.9")),
    ),
    "cni-call": (
        requests.parse,
        (
            _call("ADD", '{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"172.16.0.2/26"}]}}'),
            _call("GC", '{"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}'),
        ),
    ),
    "nat-file": (_in_folder(kept.FILE, _nat_file), (b'{"number":5,"floors":{"9":7}}', b"{}")),
    "view-file": (_in_folder("view.json", _view), (_view_sample(),)),
    "view-journal": (_in_folder("view.journal", _view), (_journal_sample(),)),
    "key-file": (_in_folder(node_key.KEY_FILE, _key_file), (b"A" * 43 + b"=\n",)),
    "age-file": (_in_folder(node_key.AGE_FILE, _age_file), (b'{"key":"k1","seconds":12.5}',)),
    "status-file": (
        _in_folder(STATUS_FILE, read_status),
        (msgspec.json.encode(LocalStatus(node="n", uid="u", cluster="c", pid=1, started_at=1, written_at=2)),),
    ),
}  # fmt: skip
"""What is read, and valid samples of it."""
