"""What both kinds of WireGuard devices must do: the kernel's, and the program's in its place."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from pathlib import Path

import pytest

from nodeagent.membership.node_key import new_key
from nodeagent.wireguard import kernel, managed, userspace
from nodeagent.wireguard.device import SESSION_S, PeerSettings, PeerState, WireGuardDevice, difference
from nodeagent.wireguard.link import Wanted, index_of
from nodeagent.wireguard.managed import VAIN_S, ManagedDevice, _Session
from tests.nodeagent.encrypted import needs_program
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.twins import within
from tests.waiting import wait_for as until
from tests.wall_clocks import can_set, set_ahead


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
    device.leave_address()
    assert {other: peer.settings for other, peer in device.read().peers.items()} == wanted
    far = PeerSettings(("2001:db8::1", 51820), ("10.0.0.0/24",))
    device.change({others[0]: far}, [])
    assert device.read().peers[others[0]].settings == far, "an IPv6 underlay"
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


DATA = 4
"""First byte of a packet in a session; what begins another one has a 1."""


@needs_program
@inside
def test_packets_leave_by_a_new_address_in_the_session_that_there_is() -> None:
    """The program keeps the address that it had; left alone it begins another session after 15 s."""
    sh("mount -t tmpfs none /run && mkdir -p /run/wireguard /run/netns && ip netns add there")
    sh("ip link add eth0 type veth peer name eth0 netns there && ip link set eth0 up")
    sh("ip addr add 10.0.0.1/24 dev eth0 && ip -n there addr add 10.0.0.2/24 dev eth0")
    sh("ip -n there link set eth0 up && ip -n there link set lo up")
    here, there = userspace.UserspaceDevice("here"), userspace.UserspaceDevice("there")
    with tempfile.TemporaryDirectory() as name:
        one, two = new_key(Path(name)), new_key(Path(name))
    here.create()
    with within("there"):
        there.create()
    for device, own, other, at, cidr in (
        (here, one, two, "10.0.0.2", "172.16.0.2/32"), (there, two, one, "10.0.0.1", "172.16.0.1/32")
    ):  # fmt: skip
        device.configure(own.private, 51820)
        device.change({other.public: PeerSettings((at, 51820), (cidr,))}, [])
    sh("ip addr add 172.16.0.1/24 dev here && ip link set here up")
    sh("ip -n there addr add 172.16.0.2/24 dev there && ip -n there link set there up")
    until(lambda: "1 received" in sh("ping -c 1 -W 1 172.16.0.2 || true"), "a session", 30)
    with within("there"):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        wire.bind(("eth0", 0x0800))
    wire.settimeout(60)
    sh("ip addr del 10.0.0.1/24 dev eth0 && ip addr add 10.0.0.3/24 dev eth0")
    here.leave_address()
    sh("ping -c 1 -W 1 172.16.0.2 || true")
    packet = bytes(40)
    while packet[12:16] != socket.inet_aton("10.0.0.3"):
        packet = wire.recv(2000)
    wire.close()
    assert packet[28] == DATA, packet[28]
    here.remove()
    there.remove()


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


def programs() -> dict[str, int]:
    """The processes that serve WireGuard devices here, by device."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
            if words and words[0].endswith("wireguard-go"):
                found[words[2]] = int(entry.name)
    return found


@needs_program
@pytest.mark.skipif(not can_set(), reason="no process's clock can be set here")
@inside
def test_sessions_begin_again_when_clocks_that_were_days_ahead_are_set_right() -> None:
    """Both ends remember a time of the other that comes in ten days, and would take no session until then."""
    sh("mount -t tmpfs none /run && mkdir /run/wireguard")
    with tempfile.TemporaryDirectory() as folder:
        one, two, passing = (new_key(Path(folder)) for _ in range(3))
    ends = {
        ManagedDevice(userspace.UserspaceDevice(f"wg{number}"), 51990 + number): (
            own,
            Wanted(1420, f"10.9.{number}.1"),
            {other.public: PeerSettings(("127.0.0.1", 51991 - number), (f"10.9.{1 - number}.0/24",), 1)},
        )
        for number, (own, other) in enumerate(((one, two), (two, one)))
    }

    first, second = ends

    def handshakes() -> list[float]:
        return [peer.handshake_at for end in ends for peer in end.device.read().peers.values()]

    def clocks(seconds: int) -> None:
        for pid in programs().values():
            assert set_ahead(pid, seconds)
        for end in ends:
            end.device.configure(passing.private, end.port)  # sessions end; what was seen of peers stays

    def begins(one: ManagedDevice, other: ManagedDevice, least: float) -> None:
        for end in (other, one):
            own, _, wanted = ends[end]
            often_s = int(end is one)
            end.device.change({key: peer._replace(keepalive_s=often_s) for key, peer in wanted.items()}, [])
            end.device.configure(own.private, end.port)
        until(lambda: min(handshakes()) > least, "the one begins")

    def managed_again() -> list[float]:
        for end, (own, settings, wanted) in ends.items():
            end.bring(own, settings, wanted, eager=True)
        return handshakes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(managed, "SESSION_S", 1.0)
        patch.setattr(managed, "VAIN_S", 1.0)
        until(lambda: min(managed_again()) > 0, "sessions")
        for days, one, other in ((10, first, second), (20, second, first)):
            clocks(days * 86_400)
            begins(one, other, time.time() + (days - 1) * 86_400)
        clocks(0)
        until(lambda: 0 < min(found := managed_again()) <= max(found) < time.time() + 60, "sessions of now")
        assert all(end.session(key) for end, (_, _, wanted) in ends.items() for key in wanted)
    for end in ends:
        end.remove()


def test_a_peer_is_made_anew_only_when_a_session_is_over_and_tried_for_in_vain() -> None:
    peer, session = PeerState(PeerSettings(("192.0.2.1", 1), ()), 1000.0, sent=5), _Session(1000.0, 0.0, 5)

    def after(session: _Session, now: float, sent: int, handshake_at: float = 1000.0) -> _Session:
        return session.next(peer._replace(sent=sent, handshake_at=handshake_at), now)

    idle = after(after(session, SESSION_S - 1, 70), 10 * SESSION_S, 70)
    assert not idle.in_vain(99 * SESSION_S), "nobody sends"
    again = after(idle, 11 * SESSION_S, 80)
    assert not again.in_vain(11 * SESSION_S + 1), "a handshake is under way"
    assert not after(again, 11 * SESSION_S + 1, 90, 4000.0).in_vain(20 * SESSION_S), "and is made"
    assert after(again, 11 * SESSION_S + 1, 90).in_vain(11 * SESSION_S + VAIN_S + 1)
    never = after(_Session(0.0, 0.0, 0), 9 * SESSION_S, 80, 0.0)
    assert not never.in_vain(99 * SESSION_S), "a closed port is not opened by forgetting who is behind it"
