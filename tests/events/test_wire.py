"""The fast header code says exactly what nats-py's own says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from events.bus import BusOptions, connect
from events.server.config import ServerOptions
from events.server.process import EmbeddedServer
from events.wire import parse_header_lines

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
    from pathlib import Path

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
                    message = await subscription.next_msg(timeout=5)
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
