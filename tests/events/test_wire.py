"""The fast header code says exactly what nats-py's own says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, MaxPayloadError, ProtocolError
from nats.protocol.parser import Parser

from deploy.credentials.certificates import create_authority, issue_server
from deploy.credentials.jwt import encode
from events.bus.access.creds import render
from events.bus.access.nkeys import generate
from events.bus.connection import BusOptions, connect
from events.bus.headers import parse_header_lines
from events.bus.nats_fastpath import FastParser, Outgoing, inline, publish_all
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer, find_binary
from events.errors import Refused, Unavailable
from events.jetstream.direct import recorded_ns
from tests.ports import free_ports
from tests.waiting import until

_lines = st.lists(st.text(alphabet="abN-: \t\x0b\x00é\u2028\x85", max_size=12), max_size=6)


@given(_lines)
def test_any_block_is_parsed_as_nats_py_parses_it(lines: list[str]) -> None:
    block = "\r\n".join(lines).encode()
    assert parse_header_lines(block) == Client._parse_header_lines(block)


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_as_nats_py_parses_them(block: bytes) -> None:
    assert parse_header_lines(block) == Client._parse_header_lines(block)


@pytest.mark.bus
async def test_what_is_sent_arrives_whatever_the_values_hold(tmp_path: object) -> None:
    store = Path(str(tmp_path)) / "js"
    store.mkdir()
    async with EmbeddedServer(ServerOptions(store_dir=store)) as server:
        client = await connect(BusOptions(servers=(server.url,)), name="test")
        try:
            subscription = await client.subscribe("there")
            for headers in (
                {"a": "1"},
                {"a": "2", "b": "with spaces inside"},
                {"a": "line\r\nbreak", "b": "x\ny"},
                {"a": "", "b": "ünïcode"},
            ):
                for _ in range(2):  # the first time nats-py checks the names, then they are known
                    await client.publish("there", b"body", headers=dict(headers))
                    message = await subscription.next_msg(timeout=30)
                    cleaned = {
                        k: v.replace("\r\n", " ").replace("\r", " ").replace("\n", " ")
                        for k, v in headers.items()
                    }
                    assert message.headers is not None
                    assert {k: " ".join(v.split()) for k, v in message.headers.items()} == {
                        k: " ".join(v.split()) for k, v in cleaned.items()
                    }
        finally:
            await client.close()


@pytest.mark.bus
async def test_many_at_once_arrive_as_one_by_one_and_inline_as_from_a_queue(tmp_path: object) -> None:
    store = Path(str(tmp_path)) / "js"
    store.mkdir()
    shared = {"a": "shared", "z": "as well"}
    messages = [
        Outgoing("many.1", b""),
        Outgoing("many.2", b"body", {"a": "1"}),
        Outgoing("many.3", "ünï".encode(), {"a": "2", "b%s": "100 %"}),
        Outgoing("many.4", b"\r\n", {"a": "line\r\nbreak"}),
        *[Outgoing(f"many.{n}", b"x" * n, {"a": str(n)}) for n in range(5, 200)],
        *[Outgoing(f"many.{n}", b"of a kind", shared, f"b: {n}\r\n") for n in range(200, 210)],
        Outgoing("many.210", b"of a kind", {"c": "line\r\nbreak"}, "b: behind\r\n"),
        Outgoing("many.211", b"of no kind", None, "b: alone\r\nc: \r\n"),
        Outgoing("many.212", b"of no kind", {"a": "another"}, "b: last\r\n"),
    ]
    async with EmbeddedServer(ServerOptions(store_dir=store)) as server:
        client = await connect(BusOptions(servers=(server.url,)), name="test")
        try:
            called: list[Msg] = []
            done = asyncio.Event()

            async def take(message: Msg) -> None:
                called.append(message)
                if message.subject == "many.3":
                    raise ValueError("a failing callback stops nothing")
                if len(called) == 2 * len(messages):
                    done.set()

            taken: list[tuple[str, str, Mapping[str, str] | None, bytes]] = []

            def take_at_once(subject: str, reply: str, headers: Mapping[str, str] | None, body: bytes) -> None:
                taken.append((subject, reply, headers, body))

            inline(await client.subscribe("many.*", cb=take), take_at_once)
            inline(await client.subscribe("many.*", cb=take))
            queued = await client.subscribe("many.*")
            for message in messages:
                await client.publish(message.subject, message.body, headers=message.all_headers())
            await publish_all(client, messages)
            await asyncio.wait_for(done.wait(), 60)
            seen = [(m.subject, m.data, m.headers) for m in called]
            assert seen[: len(messages)] == seen[len(messages) :]
            assert [(m.subject, m.body) for m in messages] == [(s, d) for s, d, _ in seen[: len(messages)]]
            plain = [await queued.next_msg(timeout=30) for _ in called]
            assert seen == [(m.subject, m.data, m.headers) for m in plain]
            assert taken == [(m.subject, m.reply, m.headers, m.data) for m in plain]
            with pytest.raises(MaxPayloadError):
                await publish_all(client, [Outgoing("many.1", b"x" * (client.max_payload + 1))])
        finally:
            await client.close()
        with pytest.raises(ConnectionClosedError):
            await publish_all(client, messages)


@pytest.mark.bus
async def test_an_answer_to_a_flush_that_was_given_up_ends_nothing(client: Client) -> None:
    lost = asyncio.Event()
    client._disconnected_cb = _setting(lost)
    answers = await client.subscribe("there")
    for _ in range(3):
        given_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await client._send_ping(given_up)
        given_up.cancel()
    await client.publish("there", b"still read")
    assert (await answers.next_msg(timeout=60)).data == b"still read"
    await client.flush(timeout=60)
    assert not lost.is_set()


@pytest.mark.bus
async def test_a_connection_that_reads_no_more_is_made_anew(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        monkeypatch.undo()
        raise ValueError("an error of the client's own")

    again = asyncio.Event()
    client._reconnected_cb = _setting(again)
    monkeypatch.setattr(client._ps, "parse", fails)
    await client.publish("nowhere", b"")
    await client._send_ping()
    async with asyncio.timeout(60):
        await again.wait()
    await client.flush(timeout=60)


@pytest.mark.bus
async def test_a_flush_of_a_connection_just_lost_says_so(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    monkeypatch.setattr(client._transport, "write", closed)
    with pytest.raises(ConnectionClosedError):
        await client.flush(timeout=60)


def _setting(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def set_() -> None:
        event.set()

    return set_


class _Heard:
    """Stands where the client does; what each parser hands over is compared."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def _taken(self, *_message: object) -> bool:
        return False

    async def _process_msg(self, *message: object) -> None:
        self.said.append(message)

    async def _process_ping(self) -> None:
        self.said.append("ping")

    async def _process_err(self, text: str) -> None:
        self.said.append(text)


_texts = st.text("abz.-_*", min_size=1, max_size=9)
_bodies = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 1 2\r\nxx\r\n", b"x" * 300])
)


def _line(subject: str, sid: int, reply: str, head: bytes | None, body: bytes) -> bytes:
    where = f"{subject} {sid} {reply} " if reply else f"{subject} {sid} "
    if head is None:
        return f"MSG {where}{len(body)}\r\n".encode() + body + b"\r\n"
    return f"HMSG {where}{len(head)} {len(head) + len(body)}\r\n".encode() + head + body + b"\r\n"


_messages = st.builds(
    _line,
    _texts,
    st.integers(1, 999),
    st.one_of(st.just(""), _texts),
    st.one_of(st.none(), st.just(b"NATS/1.0\r\n\r\n"), st.just(b"NATS/1.0\r\na: b\r\n\r\n")),
    _bodies,
)
_others = st.sampled_from(
    [
        b"PING\r\n",
        b"+OK\r\n",
        b"-ERR 'slow'\r\n",
        b"MSG  a\t1  3\r\nabc\r\n",
        b"MSG a 1 x\r\n",
        b"MSG\r\n",
        b"odd\r\n",
    ]
)


@given(
    st.lists(st.one_of(_messages, _messages, _others), max_size=8), st.lists(st.integers(1, 400), max_size=40)
)
def test_what_was_read_is_taken_apart_as_nats_py_does_it(lines: list[bytes], cuts: list[int]) -> None:
    """However the bytes come in pieces; also what is no message, and where nats-py gives up."""
    stream, pieces = b"".join(lines), []
    for cut in cuts:
        pieces.append(stream[:cut])
        stream = stream[cut:]
    pieces.append(stream)

    async def heard(parser: type[Parser]) -> list[object]:
        here = _Heard()
        reading = parser(here)
        try:
            for piece in pieces:
                await reading.parse(piece)
        except ProtocolError as error:
            here.said.append(type(error))
        return here.said

    assert asyncio.run(heard(FastParser)) == asyncio.run(heard(Parser))


@given(st.integers(1, 7_000_000_000), st.integers(0, 999_999_999))
def test_the_servers_stamp_is_read_to_the_nanosecond(seconds: int, fraction: int) -> None:
    """Go leaves out zeros at the end of the fraction, and the dot with them."""
    digits = f".{fraction:09}".rstrip("0").rstrip(".")
    stamp = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{digits}Z"
    assert recorded_ns(stamp) == seconds * 1_000_000_000 + fraction


async def test_a_flush_returns_only_when_all_that_was_sent_before_it_is_there() -> None:
    """A controller that has flushed its subscriptions serves; an agent that has flushed its last words ends."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"s","version":"2.15.1","max_payload":1048576,"headers":true}\r\n')
        while line := await reader.readline():
            heard.append(line.split()[0].decode())
            if heard[-1] == "PING":
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await connect(BusOptions(servers=(f"nats://127.0.0.1:{port}",)), name="test")
        try:
            for _ in range(3):
                heard.clear()
                await client.subscribe("a")
                await client.publish("b", b"PUB")
                await client.flush(timeout=30)
                assert heard == ["SUB", "PUB", "PUB", "PING"]  # the second one is what was published
        finally:
            await client.close()


async def test_a_stranger_is_told_so_after_two_tries_a_server() -> None:
    """nats-py went on for ever: it gives up a server and hears of it anew from the next one."""
    ports: list[int] = []
    tried: list[int] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        others = ",".join(f'"127.0.0.1:{port}"' for port in ports)
        writer.write(b'INFO {"server_id":"s","max_payload":1048576,"connect_urls":[%b]}\r\n' % others.encode())
        await reader.readline()
        tried.append(writer.get_extra_info("sockname")[1])
        writer.write(b"-ERR 'Authorization Violation'\r\n")
        writer.close()

    one = await asyncio.start_server(refuse, "127.0.0.1", 0)
    two = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with one, two, asyncio.timeout(60):
        ports += [server.sockets[0].getsockname()[1] for server in (one, two)]
        options = BusOptions(servers=(f"nats://127.0.0.1:{ports[0]}",), connect_timeout_s=300)
        with pytest.raises(Refused, match="demands credentials"):
            await connect(options, name="test")
    assert sorted(tried) == sorted(2 * ports)


async def test_a_server_that_says_nothing_is_told_of_in_words() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unavailable, match=r"answers at nats://.* \(no answer in time\)"):
            await connect(BusOptions(servers=(url,), connect_timeout_s=0.2), name="test")


async def test_credentials_that_went_meanwhile_are_the_cause(tmp_path: Path) -> None:
    path, user = tmp_path / "a.creds", generate("user")
    jwt = encode(generate("account"), user.public, "a", {"type": "user"}, issued=1)
    path.write_text(render(jwt, user.seed))

    async def asks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path.unlink(missing_ok=True)
        writer.write(b'INFO {"server_id":"s","max_payload":1048576,"nonce":"n","auth_required":true}\r\n')
        await reader.read()
        writer.close()

    async with await asyncio.start_server(asks, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Refused, match="cannot be read") as gone:
            await connect(BusOptions(servers=(url,), credentials=str(path)), name="test")
    assert gone.value.code == "credentials_missing"


@pytest.mark.bus
async def test_a_server_that_another_one_named_is_known_by_its_own_certificate(tmp_path: Path) -> None:
    """One address is enough to find the others of a locked cluster when that server dies."""
    create_authority(tmp_path)
    routes, servers = [f"127.0.0.1:{port}" for port in free_ports(2)], []
    for number, host in enumerate(("127.0.0.2", "127.0.0.3")):
        files = issue_server(tmp_path, f"s{number}", [host])
        others = ", ".join(f"nats://{route}" for route in routes)
        config = tmp_path / f"{number}.conf"
        config.write_text(
            f"server_name: s{number}\nlisten: '{host}:0'\n"
            f"ports_file_dir: '{tmp_path}'\n"
            f"tls {{ cert_file: '{files.certificate}', key_file: '{files.key}' }}\n"
            f"cluster {{ name: c, listen: '{routes[number]}', routes: [{others}] }}\n"
        )
        servers.append(
            await asyncio.create_subprocess_exec(find_binary(), "-c", config, stderr=asyncio.subprocess.DEVNULL)
        )
    try:
        written = [tmp_path / f"nats-server_{server.pid}.ports" for server in servers]
        await until(lambda: all(path.exists() and path.read_text().endswith("}") for path in written))
        (url,) = json.loads(written[0].read_text())["nats"]
        client = await connect(BusOptions(servers=(url,), ca=str(tmp_path / "ca.pem")), name="test")
        await until(lambda: client.discovered_servers)
        servers[0].kill()
        await until(lambda: client.is_connected and "127.0.0.3" in str(client.connected_url))
        await client.close()
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            await server.wait()
