"""The rtnetlink socket and the engine on it: batches with an error per message, filtered dumps.

The kernel handles everything that one ``send`` carries before the call returns; silence is
success, so a healthy batch of a thousand rows costs one system call and one small answer. Chunks
are small enough for the receive buffer to hold an error for each message.

:class:`Channel` is the seam: :class:`NetlinkChannel` is the kernel's, and the kernel in memory of the tests
executes the same bytes. :func:`dumped` is one question with a socket of its own, :class:`Subscription` hears
notices.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, Self

from nodeagent.netlink import dump, messages
from nodeagent.netlink.constants import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_HEADER,
    NLMSG_OVERRUN,
    SOL_NETLINK,
)
from nodeagent.netlink.messages import Operation, Operations, Run
from nodeagent.netlink.rows import Kind, Rows, Table, describe

RECEIVE_BYTES = 4 << 20
DATAGRAM_BYTES = 1 << 16
"""Twice what the kernel puts into one dump datagram (32 KiB); small enough to be taken from the heap."""

CHUNK_MESSAGES = 1024
"""Messages per ``send``: about 56 KiB; were all of them to fail, the errors need about 1 MiB of buffer."""

FDB_MESSAGES = 128
"""The same for FDB rows. The kernel enlarges their hash table in a worker, which may have to wait for the end
of a ``send``; meanwhile each row costs several times as much (50,000 took twice as long in sends of 1,024)."""

DUMP_ATTEMPTS = 5

_DONE_BYTES = 20  # a header and an int

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h; not in the socket module


class KernelRefusal(NamedTuple):
    """One operation that the kernel refused, with its errno and its own words."""

    operation: Operation
    errno: int
    text: str

    def __str__(self) -> str:
        words = self.text or os.strerror(self.errno)
        name = errno.errorcode.get(self.errno, str(self.errno))
        operation = self.operation
        return f"{operation.action.name.lower()} {describe(*operation[1:])}: {name} ({words})"


class AnswersLost(OSError):
    """Answers were lost (buffer overflow, interrupted or malformed dumps): read everything back."""


class Channel(Protocol):
    """What the engine needs of a netlink socket."""

    def send(self, data: bytes) -> None:
        """Give messages to the kernel, which has handled them on return. Raises OSError."""
        ...

    def receive(self) -> bytes:
        """The next datagram. Raises BlockingIOError when there is none, OSError(ENOBUFS) after loss."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class NetlinkChannel:
    """The kernel's side of :class:`Channel`, in the network namespace of the calling thread."""

    def __init__(self) -> None:
        self._socket = _opened(
            RECEIVE_BYTES, options=(NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK)
        )

    @property
    def port(self) -> int:
        """The port id, by which notifications say who caused them."""
        return int(self._socket.getsockname()[0])

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    def receive(self) -> bytes:
        return self._socket.recv(DATAGRAM_BYTES)

    def close(self) -> None:
        self._socket.close()


class Subscription:
    """A socket that hears the notices of multicast groups. Not blocking: wait for :meth:`fileno`."""

    def __init__(self, groups: Iterable[int], buffer_bytes: int, protocol: int = 0) -> None:
        """Raises OSError."""
        self._socket = _opened(buffer_bytes, protocol=protocol, groups=groups)

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def datagrams(self, limit: int) -> Iterator[bytes | None]:
        """Up to ``limit`` that have arrived; None where some were lost. Raises OSError."""
        for _ in range(limit):
            try:
                yield self._socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield None


def _opened(
    buffer_bytes: int, *, protocol: int = 0, options: Iterable[int] = (), groups: Iterable[int] = ()
) -> socket.socket:
    """A netlink socket, with buffers past the system's limit where CAP_NET_ADMIN allows it."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                opened.setsockopt(socket.SOL_SOCKET, forced, buffer_bytes)
            except PermissionError:
                opened.setsockopt(socket.SOL_SOCKET, plain, buffer_bytes)
        for option in options:
            opened.setsockopt(SOL_NETLINK, option, 1)
        opened.bind((0, 0))
        for group in groups:
            opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        opened.setblocking(False)
    except OSError:
        opened.close()
        raise
    return opened


def dumped(request: bytes, kind: int) -> Iterator[tuple[bytes, int, int]]:
    """Each message of type ``kind`` that answers a dump: the datagram, and where its body begins and ends.

    Raises OSError as the kernel answers.
    """
    channel = NetlinkChannel()
    try:
        channel.send(request)
        done = False
        while not done:
            data = channel.receive()
            for header, offset in dump.messages(data):
                if header.type == NLMSG_ERROR:
                    failure = dump.error(data, offset, header)
                    raise OSError(failure.errno, failure.text or os.strerror(failure.errno))
                done = done or header.type == NLMSG_DONE
                if header.type == kind:
                    yield data, offset + NLMSG_HEADER, offset + header.length
    finally:
        channel.close()


class Engine:
    """Writes and reads rows of one device through a channel. Not for use by two threads at once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; rows stay."""
        self._channel.close()

    def execute(self, operations: Operations | Sequence[Operation], ifindex: int) -> list[KernelRefusal]:
        """Execute in order; return what the kernel refused (the rest is done).

        Raises AnswersLost when answers were lost, and then nobody knows without reading back; OSError
        when the socket is broken.
        """
        if not isinstance(operations, Operations):
            return self._execute_each(operations, ifindex)
        if len(operations) <= CHUNK_MESSAGES:
            return self._execute_each(list(operations), ifindex)
        refusals: list[KernelRefusal] = []
        for action, kind, keys, values in operations.runs:
            size = FDB_MESSAGES if kind is Kind.FDB else CHUNK_MESSAGES
            for start in range(0, len(keys), size):
                end = start + size
                run = Run(action, kind, keys[start:end], values[start:end])
                first = self._take(len(run.keys) + 1)
                refused = self._exchange(messages.encode_run(run, first, ifindex), first, len(run.keys))
                refusals += (
                    KernelRefusal(Operation(action, kind, run.keys[at], run.values[at]), number, text)
                    for at, number, text in refused
                )
        return refusals

    def _execute_each(self, operations: Sequence[Operation], ifindex: int) -> list[KernelRefusal]:
        if len(operations) > CHUNK_MESSAGES:
            starts = range(0, len(operations), CHUNK_MESSAGES)
            chunks = [operations[start : start + CHUNK_MESSAGES] for start in starts]
            return [refusal for chunk in chunks for refusal in self._execute_each(chunk, ifindex)]
        first = self._take(len(operations) + 1)
        refused = self._exchange(messages.encode(operations, first, ifindex), first, len(operations))
        return [KernelRefusal(operations[at], number, text) for at, number, text in refused] if refused else []

    def _exchange(self, batch: bytes | bytearray, first: int, count: int) -> list[tuple[int, int, str]]:
        """Send ``count`` messages numbered from ``first``; the place, errno and words of each refused one."""
        barrier = first + count
        self._channel.send(b"".join((batch, messages.barrier(barrier))))
        data = self._receive()
        if dump.acknowledges(data, barrier):
            return []
        return [
            (failure.sequence - first, failure.errno, failure.text)
            for failure in self._failures(data, first, barrier)
        ]

    def _failures(self, data: bytes, first: int, last: int) -> list[dump.Failure]:
        """What was refused of the messages from ``first`` on; ``last`` is the barrier, ``data`` the answer
        that has come already."""
        failures: list[dump.Failure] = []
        while True:
            for header, offset in _parsed(data):
                if header.type == NLMSG_OVERRUN:
                    raise AnswersLost(errno.ENOBUFS, "the kernel reported an overrun")
                if header.type != NLMSG_ERROR:
                    continue
                failure = dump.error(data, offset, header)
                if failure.sequence == last:
                    return failures
                if failure.errno and first <= failure.sequence < last:  # not an abandoned exchange's
                    failures.append(failure)
            data = self._receive()

    def read(self, ifindex: int, *, routes: bool = True) -> Rows:
        """All rows of the device and, unless they do not matter, all routes of our protocol.

        Raises AnswersLost, OSError.
        """
        return Rows(
            self._dump(lambda s: messages.dump_neighbours(ifindex, s), dump.read_neighbours, ifindex),
            self._dump(lambda s: messages.dump_fdb(ifindex, s), dump.read_fdb, ifindex),
            self._dump(messages.dump_routes, dump.read_routes, ifindex) if routes else {},
        )

    def read_one(self, kind: Kind, key: bytes, ifindex: int) -> bytes | None:
        """The value of one neighbour or FDB row, None when it is absent. Raises AnswersLost, OSError."""
        last = self._take(2) + 1
        ask = messages.get_neighbour if kind is Kind.NEIGHBOUR else messages.get_fdb
        self._channel.send(ask(ifindex, last - 1, key) + messages.barrier(last))
        table: Table = {}
        while True:
            data = self._receive()
            for header, offset in _parsed(data):
                if header.type == NLMSG_ERROR:
                    failure = dump.error(data, offset, header)
                    if failure.sequence == last:
                        return table.get(key)
                    if failure.sequence == last - 1 and failure.errno not in (0, errno.ENOENT):
                        raise OSError(failure.errno, failure.text or os.strerror(failure.errno))
            (dump.read_neighbours if kind is Kind.NEIGHBOUR else dump.read_fdb)(data, ifindex, table)

    def _dump(
        self, request: Callable[[int], bytes], read: Callable[[bytes, int, Table], None], ifindex: int
    ) -> Table:
        """One dump, repeated when the kernel says that the table changed while it was read."""
        for _ in range(DUMP_ATTEMPTS):
            table: Table = {}
            sequence = self._take(1)
            self._drain()
            self._channel.send(request(sequence))
            if self._collect(sequence, read, ifindex, table):
                return table
        raise AnswersLost(errno.EINTR, f"the table changed during each of {DUMP_ATTEMPTS} dumps")

    def _collect(
        self, sequence: int, read: Callable[[bytes, int, Table], None], ifindex: int, table: Table
    ) -> bool:
        consistent = True
        while True:
            data = self._receive()
            try:
                first = dump.header_at(data, 0)
                if first.sequence != sequence:
                    continue  # a rest of an earlier, abandoned dump
                consistent = consistent and not first.flags & NLM_F_DUMP_INTR
                if first.type == NLMSG_ERROR:
                    failure = dump.error(data, 0, first)
                    raise OSError(failure.errno, failure.text or os.strerror(failure.errno))
                if first.type != NLMSG_DONE:
                    read(data, ifindex, table)
                if _ends(data, first, sequence):
                    return consistent
            except dump.MalformedMessage as error:
                raise AnswersLost(errno.EBADMSG, f"a malformed dump: {error}") from error

    def _receive(self) -> bytes:
        try:
            return self._channel.receive()
        except BlockingIOError as error:
            raise AnswersLost(errno.ENODATA, "the kernel sent no answer") from error
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise AnswersLost(errno.ENOBUFS, "answers did not fit the receive buffer") from error
            raise

    def _drain(self) -> None:
        """Throw away what an abandoned exchange left behind."""
        while True:
            try:
                self._channel.receive()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _take(self, count: int) -> int:
        """The first of ``count`` unused sequence numbers (32 bits, restarting before they wrap)."""
        if self._sequence > 0x7000_0000:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first


def _parsed(data: bytes) -> list[tuple[dump.Header, int]]:
    try:
        return list(dump.messages(data))
    except dump.MalformedMessage as error:
        raise AnswersLost(errno.EBADMSG, f"a malformed answer: {error}") from error


def _ends(data: bytes, first: dump.Header, sequence: int) -> bool:
    """Whether a dump's datagram carries NLMSG_DONE: alone (usual), or behind its last message."""
    if first.type == NLMSG_DONE:
        return True
    if len(data) < first.length + _DONE_BYTES:
        return False
    try:
        last = dump.header_at(data, len(data) - _DONE_BYTES)
    except dump.MalformedMessage:
        return False
    return last.type == NLMSG_DONE and last.sequence == sequence and bool(last.flags & NLM_F_MULTI)
