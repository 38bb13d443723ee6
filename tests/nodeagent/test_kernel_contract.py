"""The real kernel and the one in memory answer alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nodeagent.netlink import links
from nodeagent.netlink.links import DeviceSpec
from nodeagent.netlink.socket import Engine, NetlinkChannel
from tests.nodeagent.kernel_suite import SUITE, Place
from tests.nodeagent.memory_kernel import MemoryKernel
from tests.nodeagent.sandbox import inside, sh

SPEC = DeviceSpec(
    name="isthmus",
    vni=100,
    port=8472,
    mac="66:00:00:00:00:01",
    local="10.0.0.1",
    address="172.16.0.0",
    mtu=1450,
)


class InMemory:
    def __init__(self) -> None:
        self.kernel = MemoryKernel()
        self.kernel.add_device(5)
        self.engine = Engine(self.kernel)
        self.ifindex = 5

    def down(self) -> None:
        self.kernel.set_up(5, up=False)

    def up(self) -> None:
        self.kernel.set_up(5, up=True)

    def new_mac(self) -> None:
        self.kernel.change_mac(5)


class Real:
    def __init__(self) -> None:
        links.remove_device("isthmus")
        sh("ip route flush proto 84")
        self.ifindex = links.ensure_device(SPEC).index
        self.engine = Engine(NetlinkChannel())

    def down(self) -> None:
        sh("ip link set isthmus down")

    def up(self) -> None:
        sh("ip link set isthmus up")

    def new_mac(self) -> None:
        sh("ip link set isthmus address 66:00:00:00:00:99")


@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
def test_in_memory(check: Callable[[Place], None]) -> None:
    check(InMemory())


@inside
def test_real_kernel() -> None:
    """The whole suite in one sandbox; each check on a device of its own."""
    for check in SUITE:
        place = Real()
        try:
            check(place)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error
        finally:
            place.engine.close()
