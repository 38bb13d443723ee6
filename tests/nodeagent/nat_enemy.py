"""What a member with keys of its own, and a stranger without any, can send to a node's port for probes.

Run in the namespace of whoever it is: ``python -m tests.nodeagent.nat_enemy FACTS`` (JSON) prints how many
answers came back to each kind of packet, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from nodeagent.membership import node_key
from nodeagent.membership.peers import Peer
from nodeagent.nat import packets
from nodeagent.nat.packets import ANSWER, CONFIRM, DONE, HELLO, Endpoint, Message
from nodeagent.netlink.rows import address_bytes, split_cidr

PORT = 8472
QUIET_S = 0.4
NOBODY = "10.0.0.77"


class Facts(msgspec.Struct):
    """``me`` is whose key and namespace this is, ``target`` who is attacked, ``victim`` is behind NAT and seen
    at ``place`` (ADDRESS, port); ``recorded`` are packets of the victim as they came, in hexadecimal.
    """

    me: Peer
    key_file: str
    target: Peer
    victim: Peer
    place: tuple[str, int]
    recorded: list[str] = []


class Enemy:
    """Sends with any source, and hears what the target sends it."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.target = facts, Endpoint(address_bytes(facts.target.underlay), PORT)
        self._secret = node_key._read(Path(facts.key_file))
        self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._in = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._in.bind(("eth0", 0x0800))
        self._numbers = count(time.time_ns() // 1000 + 10**12)
        self.own = Endpoint(address_bytes(facts.me.underlay), PORT)
        self.place = Endpoint(address_bytes(facts.place[0]), facts.place[1])

    def key(self, one: Peer, other: Peer, public: str) -> bytes:
        """As two peers would derive it from the secret of this key and that public one."""
        return packets.pair_key(self._secret.shared_secret(public), one, other)

    def send(self, content: bytes, source: Endpoint) -> None:
        """One datagram from there."""
        self._out.sendto(
            packets.datagram(content, source.address, self.target, source.port), (self.facts.target.underlay, 0)
        )

    def raw(self, packet: bytes) -> None:
        """A whole IP packet."""
        self._out.sendto(packet, (self.facts.target.underlay, 0))

    def heard(self) -> list[tuple[bytes, Message]]:
        """What came from the target to this machine, until it is quiet."""
        found, until = [], time.monotonic() + QUIET_S
        while (left := until - time.monotonic()) > 0:
            self._in.settimeout(left)
            try:
                packet, (_, _, kind, *_) = self._in.recvfrom(2048)
            except TimeoutError:
                break
            opened = packets.opened(packet) if kind == 0 else None
            message = packets.read(opened[2]) if opened and opened[1].address == self.target.address else None
            if opened is not None and message is not None:
                found.append((opened[2], message))
        return found

    def say(self, kind: int, who: Peer, network: Peer, challenge: bytes = packets.NOTHING) -> Message:
        """A message in the name of ``who`` (its epoch), with the range of ``network``."""
        first, length = split_cidr(network.cidr)
        return Message(
            kind,
            who.epoch,
            self.facts.target.epoch,
            first,
            length,
            next(self._numbers),
            self.place,
            False,
            challenge,
        )

    # --- what it tries ---------------------------------------------------------------------------------------

    def forged(self) -> Iterator[tuple[bytes, Endpoint]]:
        """In the victim's name, or half of it, by every key that a member can compute, from every place."""
        me, target, victim = self.facts.me, self.facts.target, self.facts.victim
        older = msgspec.structs.replace(me, epoch=me.epoch - 1)
        keys = [
            self.key(one, other, public)
            for one in (me, victim, older)
            for other in (target, victim)
            for public in (target.key, victim.key, me.key)
        ]
        names = [(victim, victim), (me, victim), (victim, me), (older, me), (target, target), (target, victim)]
        for source in (
            self.own,
            self.own._replace(port=9999),
            self.place,
            Endpoint(address_bytes(NOBODY), PORT),
        ):
            for who, network in names:
                for kind in (HELLO, ANSWER, CONFIRM, DONE):
                    for key in keys:
                        yield packets.seal(self.say(kind, who, network, bytes(16)), key), source

    def replayed(self) -> Iterator[tuple[bytes, Endpoint]]:
        """What the victim said, from its own place and from others."""
        for text in self.facts.recorded:
            opened = packets.opened(bytes.fromhex(text))
            assert opened is not None
            for source in (self.place, self.own, Endpoint(address_bytes(NOBODY), PORT)):
                yield opened[2], source

    def in_its_own_name_from_the_victims_place(self) -> None:
        """The answer and its challenge go to the victim, which did not ask; what is confirmed is a guess."""
        me, target = self.facts.me, self.facts.target
        key = self.key(me, target, target.key)
        for guess in (bytes(16), packets.NOTHING, b"\\1" * 16):
            self.send(packets.seal(self.say(HELLO, me, me), key), self.place)
            self.send(packets.seal(self.say(CONFIRM, me, me, guess), key), self.place)

    def moves_itself(self, port: int) -> bool:
        """The honest exchange, from a port of its own; whether it was told that it has moved."""
        me, target = self.facts.me, self.facts.target
        key, source = self.key(me, target, target.key), self.own._replace(port=port)
        hello = self.say(HELLO, me, me)
        self.send(packets.seal(hello, key), source)
        for content, answer in self.heard():
            assert packets.is_sealed(content, key)
            if answer.kind == ANSWER and answer.number == hello.number:
                confirm = hello._replace(kind=CONFIRM, challenge=answer.challenge)
                self.send(packets.seal(confirm, key), source)
        return any(answer.kind == DONE for _, answer in self.heard())


def main(facts: Facts) -> dict[str, Any]:
    """All of it; what came back."""
    enemy, found = Enemy(facts), dict[str, Any]()
    own = enemy.key(facts.me, facts.target, facts.target.key)
    for name, sent in (("forged", enemy.forged()), ("replayed", enemy.replayed())):
        number = 0
        for number, (content, source) in enumerate(sent, 1):
            enemy.send(content, source)
            if not number % 256:
                time.sleep(0.05)
        found[f"{name} sent"], found[name] = number, len(enemy.heard())
    enemy.in_its_own_name_from_the_victims_place()
    found["from another's place"] = len(enemy.heard())
    hello = packets.seal(enemy.say(HELLO, facts.me, facts.me), own)
    enemy.send(hello, enemy.own)
    enemy.send(hello, enemy.own)
    said = enemy.heard()
    found["the same twice"] = len(said)
    for content, _ in said:  # the target's own words, with the right seal, come back to it
        for source in (enemy.own, enemy.place):
            enemy.send(content, source)
    found["reflected"] = len(enemy.heard())
    found["moved"] = enemy.moves_itself(9999)
    return found


if __name__ == "__main__":
    print(json.dumps(main(msgspec.json.decode(sys.argv[1], type=Facts))))
