"""What both kinds of WireGuard devices must do: the kernel's, and the program's in its place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from nodeagent.membership.node_key import new_key
from nodeagent.wireguard import kernel, userspace
from nodeagent.wireguard.device import PeerSettings, PeerState, WireGuardDevice, difference
from nodeagent.wireguard.link import index_of
from tests.nodeagent.encrypted import (
    needs_program,
)
from tests.nodeagent.sandbox import inside, sh
from tests.waiting import wait_for as until


@needs_program
@inside
def test_the_contract_of_a_device_in_userspace() -> None:
    sh("mount -t tmpfs none /run && mkdir /run/wireguard")
    contract(userspace.UserspaceDevice("wgtest"))


@pytest.mark.skipif(bool(kernel.missing()), reason="this kernel has no WireGuard module")
@inside
def test_the_contract_of_a_device_of_the_kernel() -> None:
    contract(kernel.KernelDevice("wgtest"))


def contract(device: WireGuardDevice) -> None:
    """What both kinds of devices must do."""
    with pytest.raises(OSError):
        device.read()
    device.create()
    with tempfile.TemporaryDirectory() as folder:
        key = new_key(Path(folder))
        others = [new_key(Path(folder)).public for _ in range(700)]
    device.configure(key.private, 51999)
    wanted = {
        other: PeerSettings(
            ("192.0.2.1", 51820 + number), (f"10.{number >> 8}.{number & 255}.0/24",), number % 2 * 25
        )
        for number, other in enumerate(others)
    }
    device.change(wanted, [])
    state = device.read()
    assert (state.public_key, state.port) == (key.public, 51999)
    assert {other: peer.settings for other, peer in state.peers.items()} == wanted
    assert difference(wanted, state.peers, 0.0) == ({}, [])
    device.nudge({others[0]: 0, others[1]: 25})
    assert {other: peer.settings for other, peer in device.read().peers.items()} == wanted
    # A range goes to whom it was given last; a peer that is dropped is gone.
    moved = PeerSettings(("192.0.2.2", 1), ("10.0.0.0/24", "10.9.9.0/26"))
    device.change({others[1]: moved}, [others[2]])
    state = device.read()
    assert state.peers[others[1]].settings == moved
    assert state.peers[others[0]].settings.allowed == ()
    assert others[2] not in state.peers
    # A range that moves is taken from its last peer, and the others of both stay as they are meanwhile.
    taker = wanted[others[5]]._replace(allowed=tuple(sorted((*wanted[others[5]].allowed, "10.9.9.0/26"))))
    giver = moved._replace(allowed=("10.0.0.0/24",))
    device.change({others[5]: taker, others[1]: giver}, [], losing=())
    state = device.read()
    assert (state.peers[others[5]].settings, state.peers[others[1]].settings) == (taker, giver)
    device.change({others[1]: giver._replace(allowed=())}, [], losing={others[1]})
    assert device.read().peers[others[1]].settings.allowed == ()
    device.remove()
    until(lambda: not index_of(device.name), "the device is gone")
    device.remove()


def test_an_endpoint_that_moved_by_a_peers_own_packets_is_left_alone() -> None:
    wanted = {"k": PeerSettings(("192.0.2.1", 51820), ("10.0.0.0/24",))}
    seen = PeerSettings(("203.0.113.9", 4711), ("10.0.0.0/24",))
    assert difference(wanted, {"k": PeerState(seen, 100.0)}, 150.0) == ({}, [])
    assert difference(wanted, {"k": PeerState(seen, 100.0)}, 400.0) == (wanted, [])
    stolen = PeerState(seen._replace(allowed=()), 100.0)
    assert difference(wanted, {"k": stolen, "x": stolen}, 150.0) == (wanted, ["x"])


def test_the_kernels_message_says_what_the_settings_are() -> None:
    settings = PeerSettings(("192.0.2.1", 51820), ("10.0.0.0/24", "10.0.1.0/26"))
    key = "b2xka2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
    message = kernel.set_message("wg", ("WGDEVICE_A_PEERS", [kernel.peer_attributes(key, settings)]))
    message.encode()
    read = type(message)(message.data)
    read.decode()
    (peer,) = read.get_attr("WGDEVICE_A_PEERS")
    assert peer.get_attr("WGPEER_A_PUBLIC_KEY").decode() == key
    assert (peer.get_attr("WGPEER_A_ENDPOINT")["addr"], peer.get_attr("WGPEER_A_ENDPOINT")["port"]) == (
        "192.0.2.1",
        51820,
    )
