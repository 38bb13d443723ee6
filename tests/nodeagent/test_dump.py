"""The dump parser: both its paths agree, and no bytes whatever make it raise anything but its own error."""

from __future__ import annotations

import errno
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.dataplane.desired import changes
from nodeagent.netlink import constants as c
from nodeagent.netlink import dump, monitor
from nodeagent.netlink.dump import MalformedMessage
from nodeagent.netlink.messages import dump_fdb, dump_neighbours, dump_routes
from nodeagent.netlink.rows import ODD, STRAY, Kind, Rows, Table, route_key
from nodeagent.netlink.socket import AnswersLost, Engine
from tests.nodeagent.kernel_suite import address, mac, put, rows_of, underlay
from tests.nodeagent.memory_kernel import MemoryKernel

READERS = (
    (dump.read_neighbours, dump_neighbours(5, 1)),
    (dump.read_fdb, dump_fdb(5, 1)),
    (dump.read_routes, dump_routes(1)),
)


def dumps(count: int) -> list[bytes]:
    """One datagram of each kind with ``count`` rows, and the end of the dump behind it."""
    kernel = filled(count)
    found = []
    for _, request in READERS:
        kernel.send(request)
        found.append(b"".join([kernel.receive(), kernel.receive()]))
    return found


def filled(count: int) -> MemoryKernel:
    kernel = MemoryKernel()
    kernel.add_device(5)
    rows = rows_of(count)
    for key, value in rows.neighbours.items():
        kernel.neighbours[5, key] = (value, c.NUD_PERMANENT, c.PROTOCOL)
    for key, value in rows.fdb.items():
        kernel.fdb[5, key] = (value, c.FDB_STATE)
    for key, value in rows.routes.items():
        kernel.routes[key[:4], key[4], int.from_bytes(key[5:], "big")] = (5, c.PROTOCOL, value, 1, 4)
    return kernel


def test_the_fixed_and_the_general_path_agree() -> None:
    rows = rows_of(50)
    for (read, _), data, expected in zip(READERS, dumps(50), rows, strict=True):
        table: Table = {}
        read(data, 5, table)
        assert table == expected
        # An attribute that the fixed layout does not know sends each message down the general path.
        stretched = b"".join(
            stretch(data[offset : offset + header.length]) if header.type != c.NLMSG_DONE else data[offset:]
            for header, offset in dump.messages(data)
        )
        general: Table = {}
        read(stretched, 5, general)
        assert general == expected


@given(st.data(), st.integers(1, 40))
def test_rows_are_read_wherever_messages_of_another_form_stand(data: st.DataObject, count: int) -> None:
    rows = rows_of(count)
    for (read, _), datagram, expected in zip(READERS, dumps(count), rows, strict=True):
        pieces = [datagram[at : at + header.length] for header, at in dump.messages(datagram)]
        odd = data.draw(st.sets(st.integers(0, count - 1)))
        table: Table = {}
        read(b"".join(stretch(piece) if at in odd else piece for at, piece in enumerate(pieces)), 5, table)
        assert table == expected
        assert list(table) == list(expected)


def stretch(message: bytes) -> bytes:
    extra = struct.pack("=HHI", 8, 200, 0)
    return struct.pack("=I", len(message) + 8) + message[4:] + extra


def test_rows_of_other_devices_are_left_out() -> None:
    for read, data in zip((reader for reader, _ in READERS[:2]), dumps(3), strict=False):
        table: Table = {}
        read(data, 6, table)
        assert table == {}


def test_odd_forms_of_our_rows_are_told_from_good_ones() -> None:
    kernel = filled(1)
    kernel.neighbours[5, address(0)] = (mac(0), c.NUD_PERMANENT, 0)  # not by us
    kernel.neighbours[5, address(1)] = (mac(1), 0x02, 0)  # reachable: the kernel's own
    kernel.fdb[5, mac(0)] = (underlay(0), 0x02)  # learned
    kernel.routes[address(0), 26, int.from_bytes(address(0), "big")] = (9, c.PROTOCOL, address(0), 1, 4)
    rows = Engine(kernel).read(5)
    assert rows.neighbours[address(0)].startswith(ODD)
    assert rows.neighbours[address(1)] == STRAY
    assert rows.fdb[mac(0)].startswith(ODD)
    assert rows.routes[route_key(address(0), 26)].startswith(ODD)


def test_a_truncated_dump_is_told_from_a_whole_one() -> None:
    for (read, _), data in zip(READERS, dumps(4), strict=True):
        for end in range(len(data)):
            table: Table = {}
            boundary = any(offset + header.length == end for header, offset in dump.messages(data)) or end == 0
            if boundary:
                read(data[:end], 5, table)
            else:
                with pytest.raises(MalformedMessage):
                    read(data[:end], 5, table)


@given(st.data())
def test_damaged_dumps_raise_nothing_else(data: st.DataObject) -> None:
    for (read, _), good in zip(READERS, dumps(2), strict=True):
        damaged = bytearray(good)
        for _ in range(data.draw(st.integers(1, 6))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        with suppress(MalformedMessage):
            read(bytes(damaged), 5, {})
        monitor.parse(bytes(damaged), 5)


@given(st.binary(max_size=400))
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    for read, _ in READERS:
        with suppress(MalformedMessage):
            read(data, 5, {})
    monitor.parse(data, 5)


@given(st.sampled_from([16, 17, 20, 21, 24, 25, 28, 29, 2, 3]), st.binary(max_size=200))
def test_hostile_bodies_behind_a_good_header(kind: int, body: bytes) -> None:
    message = struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 1) + body
    for read, _ in READERS:
        with suppress(MalformedMessage):
            read(message, 5, {})
    monitor.parse(message, 5)
    with suppress(MalformedMessage):
        dump.error(message, 0, dump.header_at(message, 0))


class Replies:
    """A channel that answers with given bytes."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)

    def send(self, data: bytes) -> None:
        pass

    def receive(self) -> bytes:
        if not self.answers:
            raise BlockingIOError
        return self.answers.pop(0)

    def close(self) -> None:
        pass


@given(st.lists(st.binary(max_size=120), max_size=4))
def test_the_engine_turns_hostile_answers_into_its_own_errors(answers: list[bytes]) -> None:
    # The first receive of a dump drains what came before; a channel that has answers ready is drained.
    for action in (lambda e: e.read(5), lambda e: e.execute([put(Kind.FDB, mac(0), underlay(0))], 5)):
        with suppress(OSError):
            action(Engine(Replies(*answers)))


def test_what_is_refused_of_many_is_named() -> None:
    kernel = MemoryKernel()
    kernel.add_device(5)
    engine, wanted = Engine(kernel), changes(rows_of(1100), Rows.empty())
    refused = engine.execute(wanted, 6)  # no such device
    assert [refusal.operation for refusal in refused] == list(wanted)
    assert {refusal.errno for refusal in refused} == {errno.ENODEV}
    assert engine.execute(wanted, 5) == []
    assert engine.read(5) == rows_of(1100)


def test_lost_answers_are_said_to_be_lost() -> None:
    class Overflowing(Replies):
        def receive(self) -> bytes:
            raise OSError(105, "No buffer space available")

    for channel in (Overflowing(), Replies()):
        with pytest.raises(AnswersLost):
            Engine(channel).execute([put(Kind.FDB, mac(0), underlay(0))], 5)


def test_an_interrupted_dump_is_repeated() -> None:
    class Interrupted(MemoryKernel):
        attempts = 0

        def receive(self) -> bytes:
            data = super().receive()
            header = dump.header_at(data, 0)
            if header.flags & c.NLM_F_MULTI and self.attempts < 3:
                self.attempts += header.type == c.NLMSG_DONE
                return data[:6] + struct.pack("=H", header.flags | c.NLM_F_DUMP_INTR) + data[8:]
            return data

    kernel = Interrupted()
    kernel.add_device(5)
    for key, row in filled(7).neighbours.items():
        kernel.neighbours[key] = row
    assert Engine(kernel).read(5) == Rows(rows_of(7).neighbours, {}, {})
    assert kernel.attempts == 3


def test_a_refusal_from_an_exchange_that_was_given_up_is_no_refusal_of_the_next() -> None:
    class Overflowing(MemoryKernel):
        overflows = 1

        def receive(self) -> bytes:
            if self.overflows:
                self.overflows -= 1
                raise OSError(105, "No buffer space available")
            return super().receive()

    kernel = Overflowing()
    kernel.add_device(5)
    engine = Engine(kernel)
    operations = [put(Kind.NEIGHBOUR, address(i), mac(i)) for i in range(3)]
    with pytest.raises(AnswersLost):
        engine.execute(operations, 6)  # no such device: its refusals stay unread
    assert engine.execute(operations, 5) == []
    assert engine.read(5).neighbours == {address(i): mac(i) for i in range(3)}
    (refused,) = engine.execute([put(Kind.FDB, mac(0), underlay(0))], 6)
    assert refused.operation.kind is Kind.FDB
