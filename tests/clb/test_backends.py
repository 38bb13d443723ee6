"""Backends that fall ill, die and are taken away, under real connections and datagrams."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.clb.place import BACKENDS, PORT, Flow, pair
from tests.nodeagent.sandbox import inside
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow


@inside
def test_ill_dead_and_removed_backends() -> None:
    with pair() as made:
        first, second = made.addresses
        add = ("clb", "backend", "add", "main")
        quick = ("--check-interval", "0.2")
        udp = ("--protocol", "udp", "--check", "tcp", "--check-port", str(PORT))
        for backend in BACKENDS.values():
            made.cli(*add, "apiserver", str(PORT), backend, *quick, "--check", "http", "--rise", "1")
            made.cli(*add, "public-services", str(PORT), backend, *udp, *quick)

        # A sick answer to the check is enough, whatever the port says.
        made.servers["b1"].send_signal(signal.SIGUSR1)
        until(lambda: made.health("apiserver") == {"b1": False, "b2": True}, "b1 is ill", 30)
        assert "answers 503 to /" in made.cli("clb", "show", "main")
        assert {made.ask(first).split()[0] for _ in range(12)} == {"b2"}

        # None left: refused at once, and said aloud.
        made.servers["b2"].send_signal(signal.SIGUSR1)
        until(lambda: made.health("apiserver") == {"b1": False, "b2": False}, "both are ill", 30)
        until(lambda: made.ask(first) == "ConnectionRefusedError", "refused")
        assert "clb_no_backend" in made.cli("cluster", "show", "--json")
        for name in BACKENDS:
            made.servers[name].send_signal(signal.SIGUSR2)
        until(lambda: all(made.health("apiserver").values()), "both are well again", 60)
        assert "clb_no_backend" not in made.cli("cluster", "show", "--json")
        made.wait_served(first)

        # A flow of datagrams stays with a backend that is taken away, and leaves one that dies.
        until(lambda: made.ask(second, protocol="udp").split()[0] in BACKENDS, "UDP is served")
        flow = Flow(second)
        before = flow.ask()
        made.cli("clb", "backend", "remove", "main", "public-services", str(PORT), BACKENDS[before],
                 "--protocol", "udp")  # fmt: skip
        (other,) = BACKENDS.keys() - {before}
        until(lambda: made.ask(second, protocol="udp").startswith(other), "new flows go elsewhere")
        assert flow.ask() == before
        made.cli(*add, "public-services", str(PORT), BACKENDS[before], *udp, *quick)
        made.stop_server(before)
        until(lambda: flow.ask() == other, "the flow goes on with the backend that lives", 30)
        flow.close()

        # The gateway's own ports are not reached by a held address.
        holder = made.place.nodes[made.holders()[0]]
        with made.listening(holder, 8081):
            with socket.create_connection((holder.underlay, 8081), timeout=2):
                pass
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((first, 8081), timeout=2)
