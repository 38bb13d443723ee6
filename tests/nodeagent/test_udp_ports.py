"""Who holds the UDP ports that WireGuard needs: a program by its name, and never our own devices."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from events.types import ClusterEncryptionChanged, Event, NodeKeyChanged
from nodeagent.health.encryption import findings
from nodeagent.health.findings import Finding
from nodeagent.membership.node_key import new_key
from nodeagent.membership.view import View
from nodeagent.netlink.udp_ports import holders
from nodeagent.wireguard.userspace import UserspaceDevice
from tests.nodeagent.encrypted import needs_program
from tests.nodeagent.logs import DEFINED, folded, joined
from tests.nodeagent.sandbox import inside, sh

HOLD = """
import socket, sys
held = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
held[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
for one, there in zip(held, ("127.0.0.1", "::1")):
    one.bind((there, int(sys.argv[1])))
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(port: int) -> Iterator[int]:
    """Another program has the port, on the loopback addresses; its process id."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        yield program.pid


def known(*, encrypts: bool, port: int = 0) -> View:
    log: list[Event] = [DEFINED, *joined(0), NodeKeyChanged(node="n0", uid="u0", key="k", port=port)]
    if encrypts:
        log.append(
            ClusterEncryptionChanged(
                cluster="c", scope="all", within_sites="accepting", between_sites="accepting"
            )
        )
    return folded(log)


def device_of(port: int, name: str, folder: Path) -> UserspaceDevice:
    device = UserspaceDevice(name)
    device.create()
    device.configure(new_key(folder).private, port)
    return device


@needs_program
@inside
def test_a_program_on_a_port_of_wireguards_is_named_with_the_way_out() -> None:
    sh("mount -t tmpfs none /run && mkdir /run/wireguard")
    name = Path(sys.executable).name
    (free,) = findings("isthmus", None)
    assert (free.level, free.fix) == ("ok", "")
    with held(51822) as pid:
        said = f"UDP port 51822 is held by {name} (process {pid}): WireGuard needs UDP ports 51820 to 51823"
        cure = "stop it, or start the agent with --wireguard-port 51824"
        assert list(findings("isthmus", known(encrypts=True))) == [Finding("wireguard", "problem", said, cure)]
        later = f"{said} when the cluster encrypts"
        for view in (None, known(encrypts=False)):
            assert list(findings("isthmus", view)) == [Finding("wireguard", "warning", later, cure)]
        with held(51825):
            (found,) = findings("isthmus", None)
            assert found.fix.endswith("--wireguard-port 51828")
            (elsewhere,) = findings("isthmus", known(encrypts=True, port=51900))
            assert "51900 to 51903" in elsewhere.text, "those that the node announces"
            assert elsewhere.level == "ok"
    with tempfile.TemporaryDirectory() as folder:
        ours = device_of(51821, "isthmus-wg1", Path(folder))
        assert {one.port for one in holders(range(51820, 51824))} == {51821}
        assert [one.level for one in findings("isthmus", known(encrypts=True))] == ["ok"]
        theirs = device_of(51823, "wg0", Path(folder))
        (found,) = findings("isthmus", known(encrypts=True))
        assert found.text.startswith("UDP port 51823 is held by wireguard-go (process ")
        for device in (ours, theirs):
            device.remove()


def test_a_port_that_nobody_holds_has_no_holder() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
        (one,) = holders({port})
        assert one.port == port
        assert msgspec.to_builtins(one)[1] > 0
    assert holders({port}) == []
