"""Two sockets for datagrams that look like the tunnel's, whose port is the kernel's: one sends, one hears.

Both are opened while the process still has CAP_NET_RAW; afterwards none is needed. What is no message of ours
never leaves the kernel: a filter on the listening socket wants the VXLAN port, the reserved VNI, the length,
the mark and the epoch of this node, which only members know. It hears packets as they arrive, before the node's
own rules.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from events.status import NatMode
from nodeagent.dataplane.second_device import PROBE_VNI
from nodeagent.nat import packets
from nodeagent.nat.packets import Endpoint

log = logging.getLogger("isthmus.agent.nat")

SWITCHED_OFF = "switched off (--nat off)"
READS_LIMIT = 64
"""Messages in one turn of the event loop."""
HEARD_PER_S = 2000.0
"""Messages a second that are looked at; beyond, the kernel drops them."""
PAUSE_S = 0.05
BUFFER_BYTES = 1 << 18
_ETH_P_IP = 0x0800
_SO_ATTACH_FILTER = 26
_TO_US = 0  # PACKET_HOST
_NOWHERE = ("", 0, 0)
Received = Callable[[bytes, Endpoint, bytes], None]
"""(address that it was sent to, where it came from, content)."""


class Wire:
    """Open it with the capability; :meth:`listen` on a device, :meth:`close` at the end."""

    def __init__(self) -> None:
        """Raises OSError without CAP_NET_RAW."""
        self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        try:
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except OSError:
            self._out.close()
            raise
        self._in.setblocking(False)
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._out.setblocking(False)
        self._where = _NOWHERE
        self._received: Received = lambda _to, _source, _content: None
        self._budget, self._budget_at = HEARD_PER_S, 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.sent_bytes = self.sent = self.heard = 0

    @property
    def listening(self) -> bool:
        """Whether it hears a device."""
        return self._loop is not None

    def listen(self, device: str, port: int, received: Received, *, receiver: int = 0) -> None:
        """Hear what arrives on that device from now on. On the running event loop; raises OSError.

        ``receiver``: the epoch of whom it has to be for; 0: of anybody.
        """
        self._received = received
        if self._where == (device, port, receiver):
            return
        self.silence()
        _attach(self._in, port, receiver)
        self._in.bind((device, _ETH_P_IP))
        self._drain()  # what was queued under another filter
        self._where = device, port, receiver
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._in.fileno(), self._ready)

    def silence(self) -> None:
        """Hear nothing any more."""
        if self._loop is not None:
            self._loop.remove_reader(self._in.fileno())
            self._loop = None
        self._where = _NOWHERE

    def close(self) -> None:
        """Hear nothing and release both."""
        self.silence()
        self._in.close()
        self._out.close()

    def send(self, content: bytes, source: bytes, target: Endpoint, port: int) -> None:
        """Send one datagram; what cannot be sent is as good as lost."""
        packet = packets.datagram(content, source, target, port)
        try:
            self._out.sendto(packet, (socket.inet_ntoa(target.address), 0))
        except OSError as error:
            log.debug("not sent to %s: %s", target, error)
            return
        self.sent += 1
        self.sent_bytes += len(packet)

    def _drain(self) -> None:
        for _ in range(10_000):
            try:
                self._in.recv(1)
            except OSError:
                return

    def _ready(self) -> None:
        loop = self._loop
        if loop is None:
            return
        now = loop.time()
        self._budget = min(HEARD_PER_S, self._budget + (now - self._budget_at) * HEARD_PER_S)
        self._budget_at = now
        for _ in range(READS_LIMIT):
            if self._budget < 1:
                loop.remove_reader(self._in.fileno())
                loop.call_later(PAUSE_S, self._resume)
                return
            try:
                packet, (_, _, kind, *_) = self._in.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    log.debug("cannot listen: %s", error)
                self.silence()  # the device is gone: whoever listens looks again
                return
            self._budget -= 1
            found = packets.opened(packet) if kind == _TO_US else None
            if found is not None:
                self.heard += 1
                self._received(*found)

    def _resume(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self._in.fileno(), self._ready)


@contextmanager
def opened_wire(mode: NatMode) -> Iterator[tuple[Wire | None, str]]:
    """The sockets, closed behind the block, or why there are none. Enter it while there is CAP_NET_RAW."""
    if mode == "off":
        yield None, SWITCHED_OFF
        return
    try:
        wire = Wire()
    except OSError as error:
        yield (
            None,
            (
                f"the sockets for it cannot be opened ({error.strerror}): the agent needs CAP_NET_RAW at its "
                f"start (AmbientCapabilities and CapabilityBoundingSet of its unit)"
            ),
        )
        return
    try:
        yield wire, ""
    finally:
        wire.close()


def _attach(sock: socket.socket, port: int, receiver: int) -> None:
    program = filter_for(port, receiver)
    buffer = ctypes.create_string_buffer(program)
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)


_LD_B, _LD_H, _LD_W, _LD_LEN = 0x30, 0x28, 0x20, 0x80
_LDX_IHL = 0xB1
_LD_H_X, _LD_W_X = 0x48, 0x40
_AND, _JEQ, _JGE, _RET = 0x54, 0x15, 0x35, 0x06
_UDP, _FRAGMENT = 17, 0x3FFF


def filter_for(port: int, receiver: int = 0) -> bytes:
    """Classic BPF on an IP packet: a whole UDP datagram to the port, of the reserved VNI, with a message's
    mark, for that epoch (0: for any).
    """
    epoch = 16 + packets.RECEIVER_AT
    checks = [
        (_LD_B, 0, 9, _JEQ, _UDP),
        (_LD_H, _FRAGMENT, 6, _JEQ, 0),
        (_LD_H_X, 0, 2, _JEQ, port),
        (_LD_W_X, 0, 8, _JEQ, packets.VXLAN_FLAGS),
        (_LD_W_X, 0, 12, _JEQ, PROBE_VNI << 8),
        (_LD_W_X, 0, 16, _JEQ, int.from_bytes(packets.MARK[:4], "big")),
        (_LD_LEN, 0, 0, _JGE, packets.HEADERS + packets.BYTES),
    ]
    if receiver:
        checks += [
            (_LD_W_X, 0, epoch, _JEQ, receiver >> 32),
            (_LD_W_X, 0, epoch + 4, _JEQ, receiver & 0xFFFFFFFF),
        ]
    program: list[tuple[int, int, int, int]] = [(_LDX_IHL, 0, 0, 0)]
    for load, mask, offset, jump, value in checks:
        program.append((load, 0, 0, offset))
        if mask:
            program.append((_AND, 0, 0, mask))
        program.append((jump, 0, 0, value))
    end = len(program) + 1
    program = [
        (code, yes, end - at - 1, k) if code in {_JEQ, _JGE} else (code, yes, no, k)
        for at, (code, yes, no, k) in enumerate(program)
    ]
    program += [(_RET, 0, 0, 2048), (_RET, 0, 0, 0)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
