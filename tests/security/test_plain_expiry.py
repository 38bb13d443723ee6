"""The plain form: who may come until when stands in the file, and ends with a reload."""

from __future__ import annotations

import re
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.credentials.authority import DAY_S
from deploy.credentials.cli_keep import credentials
from deploy.credentials.expiry import mark, prune
from deploy.credentials.prepare import prepare
from deploy.credentials.servers import limits_block, plain_block
from events.bus.connection import connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import Refused
from tests.security.conftest import CLUSTER
from tests.waiting import until

NOW = datetime(2026, 3, 2, 14, tzinfo=UTC)
KEY = "U" + "A" * 55


@given(st.lists(st.integers(-3, 3), max_size=20), st.text("{}[]\n# abc", max_size=40))
def test_exactly_the_ended_lines_go(offsets: list[int], other: str) -> None:
    lines = [f"{{ nkey: {KEY} }} {mark(int(NOW.timestamp()) + offset)}\n" for offset in offsets]
    found = prune(other + "\n" + "".join(lines), NOW)
    kept = [line for line, offset in zip(lines, offsets, strict=True) if offset > 0]
    assert found.text == other + "\n" + "".join(kept)
    assert (len(found.ended), found.marks) == (len(lines) - len(kept), len(lines))
    ahead = [NOW + timedelta(seconds=offset) for offset in offsets if offset > 0]
    assert found.next == min(ahead, default=None)
    assert prune(found.text, NOW).ended == []


def test_a_mark_that_nobody_can_read_counts_as_ended() -> None:
    assert [ended.public for ended in prune(f"{{ nkey: {KEY} }} # until soon\n", NOW).ended] == [KEY]


@pytest.mark.bus
async def test_ended_credentials_end_their_connections_and_nobody_elses(tmp_path: Path) -> None:
    files = prepare(tmp_path / "a", cluster=CLUSTER, nodes=["n1", "n2"], hosts=["127.0.0.1"], form="plain")
    (tmp_path / "bus").mkdir()
    conf = tmp_path / "bus" / "auth.conf"
    short = files.authority.issue(files.authority.find("node", CLUSTER, "n1"), days=20 / DAY_S)
    ends = files.authority.find("node", CLUSTER, "n1").users[-1].expires
    head = files.server_extra[: files.server_extra.index("accounts {")]
    conf.write_text(head + plain_block(files.authority.store))
    conf.chmod(0o640)
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path / "bus", extra='include "auth.conf"')) as server:
        one = await connect(files.options(short, server.url), name="n1")
        two = await connect(files.options(files.nodes["n2"], server.url), name="n2")
        try:
            if time.time() < ends - 3:  # unless this machine took that long
                early = CliRunner().invoke(credentials, ["prune", str(conf)])
                assert early.exit_code == 0, early.output
                assert "taken out" not in early.output
                assert "the next one ends at" in early.output
            # As if its time had come: the file says so, not the clock of this test.
            text = conf.read_text()
            conf.write_text(text.replace(mark(ends), mark(int(time.time()) - 1)))
            done = CliRunner().invoke(credentials, ["prune", str(conf)])
            assert done.exit_code == 0, done.output
            assert done.output.count("taken out") == 1
            assert conf.stat().st_mode & 0o777 == 0o640
            server.signal(signal.SIGHUP)
            await until(lambda: not one.is_connected)
            await two.flush()
            assert two.stats["reconnects"] == 0
            with pytest.raises(Refused):
                await connect(files.options(short, server.url), name="n1")
        finally:
            await one.close()
            await two.close()


def test_what_has_ended_is_not_rendered(tmp_path: Path) -> None:
    files = prepare(tmp_path / "a", cluster=CLUSTER, nodes=["n1"], hosts=["127.0.0.1"], form="plain")
    key = files.authority.find("node", CLUSTER, "n1").users[-1]
    assert key.public in plain_block(files.authority.store, now=key.expires - 1)
    assert key.public not in plain_block(files.authority.store, now=key.expires)


@pytest.mark.parametrize("text", ["", "operator: x\n", "max_payload: 1\n"])
def test_a_file_of_the_other_form_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    conf = tmp_path / "auth.conf"
    conf.write_text(text + limits_block())
    before = conf.read_bytes(), conf.stat().st_mtime_ns
    refused = CliRunner().invoke(credentials, ["prune", str(conf)])
    assert isinstance(refused.exception, Refused)
    assert "no plain configuration" in refused.exception.message
    assert (conf.read_bytes(), conf.stat().st_mtime_ns) == before
    missing = CliRunner().invoke(credentials, ["prune", str(tmp_path / "nothing")])
    assert re.search("cannot be read", str(missing.exception))
