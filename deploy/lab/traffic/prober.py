"""A pod's application: answers numbered UDP packets, sends its own, and counts every one of both.

Runs by itself inside a pod's network namespace with the standard library only, so that a dozen of them
start in no time. Commands come as JSON lines on standard input, answers go as JSON lines to standard
output. It must never send to an address that no command named.

    {"id": 1, "op": "probe", "targets": ["10.200.0.66"], "count": 10, "interval_ms": 1, "timeout_ms": 2000}
    {"id": 2, "op": "flow-start", "target": "10.200.0.66", "interval_ms": 5}
    {"id": 3, "op": "flow-stop", "at_least": 200, "timeout_ms": 1000}
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time

PORT = 7007
PACKET = struct.Struct("!4sBIId")  # magic, question or answer, conversation, number, sent at (monotonic s)
MAGIC = b"ISTH"
QUESTION, ANSWER = 0, 1
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # linux/in.h: never fragment, so that a size that arrives did fit


class Conversation:
    """Numbered packets to one target and which of their answers came back."""

    def __init__(self, target: str, interval_s: float, count: int | None, size: int = 0) -> None:
        self.target = target
        self.interval_s = interval_s
        self.count = count  # None: until stopped
        self.padding = b"\0" * max(0, size - PACKET.size)
        self.sent = 0
        self.refused = 0
        self.next_at = time.monotonic()
        self.answered: set[int] = set()
        self.duplicates = 0
        self.rtt_min_s = float("inf")
        self.rtt_max_s = 0.0
        self.rtt_sum_s = 0.0
        self.last_answer_at: float | None = None
        self.longest_silence_s = 0.0

    @property
    def sending(self) -> bool:
        return self.count is None or self.sent < self.count

    @property
    def complete(self) -> bool:
        return not self.sending and len(self.answered) == self.sent - self.refused

    def answer(self, number: int, sent_at: float) -> None:
        now = time.monotonic()
        if number in self.answered:
            self.duplicates += 1
            return
        self.answered.add(number)
        rtt_s = now - sent_at
        self.rtt_min_s = min(self.rtt_min_s, rtt_s)
        self.rtt_max_s = max(self.rtt_max_s, rtt_s)
        self.rtt_sum_s += rtt_s
        if self.last_answer_at is not None:
            self.longest_silence_s = max(self.longest_silence_s, now - self.last_answer_at)
        self.last_answer_at = now

    def report(self) -> dict[str, object]:
        received = len(self.answered)
        return {
            "target": self.target,
            "sent": self.sent,
            "received": received,
            "lost": [number for number in range(self.sent) if number not in self.answered][:20],
            "duplicates": self.duplicates,
            "refused": self.refused,
            "rtt_min_ms": self.rtt_min_s * 1e3 if received else None,
            "rtt_avg_ms": self.rtt_sum_s / received * 1e3 if received else None,
            "rtt_max_ms": self.rtt_max_s * 1e3 if received else None,
            "longest_silence_ms": self.longest_silence_s * 1e3,
        }


class Prober:
    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        self.socket.bind(("0.0.0.0", PORT))
        self.socket.setblocking(False)
        self.conversations: dict[int, Conversation] = {}
        self.next_conversation = 1
        self.pending: list[tuple[int, list[int], float]] = []  # command id, conversations, deadline
        self.flow = 0
        self.buffered = b""

    def start(self, target: str, interval_s: float, count: int | None, size: int = 0) -> int:
        number = self.next_conversation
        self.next_conversation += 1
        self.conversations[number] = Conversation(target, interval_s, count, size)
        return number

    def command(self, line: bytes) -> None:
        message = json.loads(line)
        interval_s = message.get("interval_ms", 1) / 1e3
        patience_s = message.get("timeout_ms", 1000) / 1e3
        if message["op"] == "probe":
            size = message.get("size", 0)
            count = message["count"]
            numbers = [self.start(target, interval_s, count, size) for target in message["targets"]]
            deadline = time.monotonic() + patience_s + count * interval_s
            self.pending.append((message["id"], numbers, deadline))
        elif message["op"] == "flow-start":
            self.flow = self.start(message["target"], interval_s, None)
            self.say({"id": message["id"]})
        elif message["op"] == "flow-stop":
            conversation = self.conversations[self.flow]
            conversation.count = max(conversation.sent, message.get("at_least", 0))
            patience_s += (conversation.count - conversation.sent) * conversation.interval_s
            self.pending.append((message["id"], [self.flow], time.monotonic() + patience_s))

    @staticmethod
    def say(message: dict[str, object]) -> None:
        os.write(1, json.dumps(message).encode() + b"\n")

    def receive(self) -> None:
        while True:
            try:
                packet, sender = self.socket.recvfrom(65536)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier packet; the packet counts as lost
            if len(packet) < PACKET.size:
                continue
            magic, kind, conversation, number, sent_at = PACKET.unpack_from(packet)
            if magic != MAGIC:
                continue
            if kind == QUESTION:
                answer = PACKET.pack(MAGIC, ANSWER, conversation, number, sent_at) + packet[PACKET.size :]
                self.transmit(answer, sender)
            elif conversation in self.conversations:
                self.conversations[conversation].answer(number, sent_at)

    def transmit(self, packet: bytes, address: tuple[str, int]) -> bool:
        try:
            self.socket.sendto(packet, address)
        except OSError:
            return False
        return True

    def send_due(self) -> None:
        now = time.monotonic()
        for number, conversation in self.conversations.items():
            while conversation.sending and conversation.next_at <= now:
                packet = PACKET.pack(MAGIC, QUESTION, number, conversation.sent, time.monotonic())
                if not self.transmit(packet + conversation.padding, (conversation.target, PORT)):
                    conversation.refused += 1
                conversation.sent += 1
                conversation.next_at += conversation.interval_s

    def settle(self) -> None:
        now = time.monotonic()
        waiting = []
        for command, numbers, deadline in self.pending:
            done = all(self.conversations[number].complete for number in numbers)
            if done or now >= deadline:
                self.say(
                    {"id": command, "results": [self.conversations.pop(number).report() for number in numbers]}
                )
            else:
                waiting.append((command, numbers, deadline))
        self.pending = waiting

    def pause_s(self) -> float | None:
        now = time.monotonic()
        moments = [c.next_at for c in self.conversations.values() if c.sending]
        moments += [deadline for _, _, deadline in self.pending]
        return max(0.0, min(moments) - now) if moments else None

    def run(self) -> None:
        self.say({"ready": True})
        while True:
            readable, _, _ = select.select([0, self.socket.fileno()], [], [], self.pause_s())
            if self.socket.fileno() in readable:
                self.receive()
            if 0 in readable:
                data = os.read(0, 65536)
                if not data:
                    return
                self.buffered += data
                *lines, self.buffered = self.buffered.split(b"\n")
                for line in lines:
                    self.command(line)
            self.send_due()
            self.settle()


if __name__ == "__main__":
    try:
        Prober().run()
    except KeyboardInterrupt:
        sys.exit(130)
