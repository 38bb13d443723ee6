"""The loaded programs: where they hang, what their maps hold. Blocks for microseconds to milliseconds.

An agent that starts loads its own programs and takes over: it hangs them behind those of its predecessor,
which go on until its maps are filled, and then takes these away. At no moment does a packet depend on any of
them, and programs and maps of two releases never meet. What hangs stays when the process ends, without pins: a
program belongs to the device it hangs on, and goes with it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Container, Iterable, Iterator, Mapping
from importlib.resources import files
from typing import NamedTuple

from events.errors import Refused
from nodeagent.fastpath import layout, libbpf
from nodeagent.fastpath.layout import NodeRecord
from nodeagent.privileges import effective

EGRESS, INGRESS = libbpf.TCX_EGRESS, libbpf.TCX_INGRESS
FILE = "fastpath.bpf.o"


class Hook(NamedTuple):
    """One program on one device: what hangs, and where."""

    ifindex: int
    direction: int
    program: str


CAP_BPF = 39
LOOPBACK = 1
"""The index of the device that each network namespace has."""
PREFIX = "isthmus_"
"""Every program of ours is called so, in every release."""
PODS = ((INGRESS, "isthmus_pod_tx"), (EGRESS, "isthmus_pod_rx"))
BRIDGE = ((INGRESS, "isthmus_pod_tx"), (EGRESS, "isthmus_br_rx"))
UNDERLAY = ((INGRESS, "isthmus_net_rx"), (EGRESS, "isthmus_net_tx"))
WIREGUARD = ((INGRESS, "isthmus_wg_rx"), (EGRESS, "isthmus_wg_tx"))
NAMES = tuple(dict.fromkeys(name for _, name in (*PODS, *BRIDGE, *UNDERLAY, *WIREGUARD)))


def hooks(
    underlay: int,
    pods: Iterable[int],
    bridges: Iterable[int] = (),
    wireguard: Iterable[int] = (),
) -> set[Hook]:
    """Where the programs of a node hang, by device index."""
    places = [(underlay, UNDERLAY), *((pod, PODS) for pod in pods)]
    places += [(bridge, BRIDGE) for bridge in bridges] + [(device, WIREGUARD) for device in wireguard]
    return {Hook(ifindex, *each) for ifindex, kind in places for each in kind}


def is_ours(number: int) -> bool:
    """Whether a program has a name of ours. Raises Refused(not_permitted) where this process may not know."""
    try:
        return libbpf.name_of(number).startswith(PREFIX)
    except PermissionError as error:
        raise Refused(
            "not_permitted",
            "looking into the eBPF programs of a running agent needs CAP_SYS_ADMIN: run it as root",
            capability="CAP_SYS_ADMIN",
        ) from error


def _seems_ours(number: int) -> bool:
    with contextlib.suppress(Refused):
        return is_ours(number)
    return False


def hanging() -> Iterator[tuple[int, int, int]]:
    """All that hangs on the devices of this network namespace, as (program, device, direction).

    Raises Refused(prerequisite_missing).
    """
    for index, _ in socket.if_nameindex():
        for direction in (INGRESS, EGRESS):
            with contextlib.suppress(OSError):  # the device has gone, or the kernel knows no such hook
                yield from ((number, index, direction) for number in libbpf.attached(index, direction))


def sweep(
    ifindexes: Iterable[int],
    known: Container[int] = frozenset(),
    keep: Container[int] = frozenset(),
    *,
    named: bool = True,
) -> int:
    """Take every program of ours off: ``known`` by its id, if ``named`` by its name, but ``keep``; how many.

    Raises Refused(prerequisite_missing), OSError.
    """
    taken = 0
    for ifindex in ifindexes:
        for direction in (INGRESS, EGRESS):
            try:
                there = libbpf.attached(ifindex, direction)
            except OSError:
                continue  # the device has gone, or the kernel knows no such hook
            for number in there:
                ours = number in known or (named and _seems_ours(number))
                if ours and number not in keep:
                    taken += libbpf.detach_id(number, ifindex, direction)
    return taken


def load() -> Programs:
    """Load them; hang nothing. Raises Refused(prerequisite_missing, not_permitted) in an operator's words."""
    content = (files("nodeagent.fastpath") / FILE).read_bytes()
    try:
        loaded = Programs(libbpf.Loaded(content, NAMES))
        libbpf.attached(LOOPBACK, INGRESS)  # kernels before 6.6 take the programs, but have no such hook
    except OSError as error:
        raise why_not(error) from error
    return loaded


def why_not(error: OSError) -> Refused:
    """What an error of the kernel means to an operator."""
    if error.errno == errno.EACCES and effective() >> CAP_BPF & 1:
        return Refused(
            "not_permitted",
            "the kernel refuses the eBPF programs (EACCES), although this process has CAP_BPF: allow them in "
            "SELinux; where that is off, this kernel wants CAP_PERFMON, too: add it to AmbientCapabilities and "
            "CapabilityBoundingSet of the agent's unit (it drops it after loading)",
            capability="CAP_PERFMON",
        )
    if error.errno in {errno.EPERM, errno.EACCES}:
        return Refused(
            "not_permitted",
            "the kernel does not let this process load eBPF programs: give the agent CAP_BPF "
            "(AmbientCapabilities and CapabilityBoundingSet of its unit; it drops it after loading), and allow "
            "the system call bpf where kernel lockdown, seccomp or SELinux forbid it",
            capability="CAP_BPF",
        )
    return Refused(
        "prerequisite_missing",
        f"this kernel does not take the programs ({errno.errorcode.get(error.errno or 0, 'unknown')}): it "
        "has to be Linux 6.6 or newer, with CONFIG_BPF_SYSCALL, CONFIG_NET_XGRESS and CONFIG_DEBUG_INFO_BTF",
        program="eBPF",
    )


class Programs:
    """Programs and maps of this process, and the hooks at which they are."""

    def __init__(self, loaded: libbpf.Loaded) -> None:
        self._loaded = loaded
        self._peers, self._bss = loaded.maps["peers"], loaded.maps["bss"]
        self._counts, self._cpus = loaded.maps["counts"], libbpf.cpus()
        self._ids = {number for _, number in loaded.programs.values()}

    @property
    def ids(self) -> set[int]:
        """The kernel's numbers of the programs."""
        return set(self._ids)

    def hang(self, hook: Hook) -> bool:
        """Make the program be at the hook; whether it was not. Raises OSError (ENODEV: the device is gone)."""
        fd, own = self._loaded.programs[hook.program]
        there = libbpf.attached(hook.ifindex, hook.direction)
        if own not in there:
            libbpf.attach(fd, hook.ifindex, hook.direction)
        return own not in there

    def take_off(self, hook: Hook) -> None:
        """Take the program off the hook, if it is there. Raises OSError."""
        try:
            libbpf.detach(self._loaded.programs[hook.program][0], hook.ifindex, hook.direction)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENODEV, errno.EINVAL}:
                raise

    def others(self, ifindex: int, direction: int, known: Container[int]) -> list[int]:
        """Programs at a hook that are neither these nor ``known``. Raises OSError."""
        there = libbpf.attached(ifindex, direction)
        return [number for number in there if number not in self._ids and number not in known]

    def others_behind(self, ifindex: int, direction: int, known: Container[int]) -> list[int]:
        """Those of them that come behind ours, and do not see what ours takes. Raises OSError."""
        there = libbpf.attached(ifindex, direction)
        place = next((i for i, number in enumerate(there) if number in self._ids), len(there))
        return [number for number in there[place + 1 :] if number not in known]

    def tell(self, record: NodeRecord) -> None:
        """What the programs know of the node, from now on. Raises OSError."""
        libbpf.put(self._bss, {bytes(4): record.pack()})

    def told(self) -> bytes:
        """What the programs know of the node. Raises OSError."""
        return libbpf.read(self._bss, bytes(4), layout.NODE.size) or b""

    def put_peers(self, entries: Mapping[bytes, bytes]) -> None:
        """Write entries by one batch. Raises OSError."""
        libbpf.put(self._peers, entries)

    def drop_peers(self, keys: Iterable[bytes]) -> None:
        """Remove entries. Raises OSError."""
        for key in keys:
            libbpf.drop(self._peers, key)

    def peers(self) -> dict[bytes, bytes]:
        """All entries as the kernel has them. Raises OSError."""
        return libbpf.dump(self._peers, layout.RANGE.size, layout.PEER.size, layout.PEERS_LIMIT)

    def counters(self) -> dict[str, int]:
        """What has been counted since the programs were loaded, over all CPUs. Raises OSError."""
        size = 8 * layout.COUNTERS_ROOM
        raw = libbpf.read(self._counts, bytes(4), size * self._cpus) or b""
        words = memoryview(raw).cast("Q")
        return {
            name: sum(words[cpu * layout.COUNTERS_ROOM + place] for cpu in range(self._cpus))
            for place, name in enumerate(layout.COUNTERS)
        }

    def close(self) -> None:
        """Let go of the descriptors; what hangs goes on."""
        self._loaded.close()
