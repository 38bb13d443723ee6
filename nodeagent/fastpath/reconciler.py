"""Keeps the fast path in step with the node: programs, peers, and verdicts that must be void.

Desired − kernel, as for rows: what should hang and what should be in the map is compared with what is there,
programs every second and peers at every comparison of rows, and the difference is written. Nothing depends on
it: without it, and wherever anything is in doubt, packets take the node's stack.

The programs themselves ask the stack anew every half second. What is announced (an event about a peer,
nftables, routes of pods, devices, queues) makes all verdicts void at once, by another generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from events.bus.retry import happened
from events.errors import IsthmusError
from nodeagent.conditions import Conditions
from nodeagent.dataplane.own_findings import OwnFindings
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.fastpath import layout, ports, programs
from nodeagent.fastpath.entries import Entries
from nodeagent.fastpath.layout import NodeRecord
from nodeagent.fastpath.predecessors import LIBERAL, Predecessors
from nodeagent.fastpath.programs import EGRESS, INGRESS, Hook, Programs
from nodeagent.fastpath.start import SWITCHED_OFF
from nodeagent.firewall.monitor import RulesetMonitor
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.view import View
from nodeagent.netlink.rows import address_bytes, mac_bytes

log = logging.getLogger("isthmus.agent.fastpath")

LOOK_S = 1.0
"""Longest time until a program that somebody took away hangs again."""
GAP_S = 0.02
"""Shortest time between two looks: a burst of notices makes one."""
CONDITION = "fast path"


class Counted(msgspec.Struct):
    """What the owner of the fast path has done."""

    generations: int = 0
    repaired: int = 0
    written: int = 0
    removed: int = 0


class FastPath:
    """The owner. ``loaded`` is None where the programs cannot be used; ``why_not`` says why then.

    ``direct``: whether peers may be reached without the tunnel. ``entries`` say how each is reached.
    """

    def __init__(
        self,
        conditions: Conditions,
        tunnel: TunnelDevice,
        view: View,
        *,
        found: OwnFindings,
        direct: bool = False,
        predecessors: Predecessors,
        loaded: Programs | None,
        why_not: str,
    ) -> None:
        self._conditions, self._tunnel, self._view = conditions, tunnel, view
        self.entries = Entries(view, tunnel, found)
        self._predecessors, self._loaded, self.why_not = predecessors, loaded, why_not
        self._direct = direct
        self._entries: dict[bytes, bytes] = {}
        self._record = NodeRecord()
        self._hooks: set[Hook] = set()
        self._generation = int(time.monotonic() * 1000) & 0x3FFFFFFF
        self._ports = self._found = ports.Ports(frozenset(), frozenset())
        self._filtered: dict[int, str] = {}
        self._xdp = ports.Xdp(frozenset(), frozenset())
        self._look_around = self._compare = True
        self._void = False
        self._started = False
        self.wireguard: Callable[[], Iterable[int]] = tuple
        """The devices of encrypted packets, by index."""
        self._compared: tuple[int, Mapping[Peer, int], int] = (0, {}, 0)
        self._wake = asyncio.Event()
        self.counted = Counted()

    # ------------------------------------------------------------------ what others ask of it

    @property
    def on(self) -> bool:
        """Whether packets may take it now."""
        return self._record.generation != 0

    def line(self) -> str:
        """How it is, for people."""
        if not self.on:
            return f"off: {self.why_not or 'the tunnel is not ready yet'}"
        pods, peers = len(self._ports.veths) + len(self._ports.bridges), len(self._entries)
        left = f"; {self.why_not}" if self.why_not else ""
        return f"on: {pods} pod device{'s' * (pods != 1)}, {peers} peer{'s' * (peers != 1)}{left}"

    def counters(self) -> dict[str, int]:
        """Packets and bytes since the programs were loaded; empty where they are not."""
        if self._loaded is None:
            return {}
        with contextlib.suppress(OSError):
            return self._loaded.counters()
        return {}

    def void(self) -> None:
        """Something that verdicts rest on has changed, or may have: they are void from now on."""
        if self._loaded is None or not self.on:
            return
        self._tell(self._record._replace(generation=self._next_generation()))

    def before(self, changes: Sequence[PeerChange]) -> None:
        """Rows of these peers are about to change: packets to and from them take the stack meanwhile.

        So do those that one of them relays.
        """
        if self._loaded is None or not self.on:
            return
        gone = self.entries.with_relayed(change.before for change in changes if change.before is not None)
        try:
            for peer in gone:
                key = layout.range_key(peer.cidr)
                if self._entries.pop(key, None) is not None:
                    self._loaded.drop_peers([key])
                    self.counted.removed += 1
        except OSError as error:
            self._failed(error)

    def after(self, changes: Sequence[PeerChange]) -> None:
        """Rows of these peers have changed: who is behind one of them goes where that is."""
        if self._loaded is None or not self.on:
            return
        there = (change.after for change in changes if change.after is not None)
        fresh = self.entries.of(self.entries.with_relayed(there))
        room = layout.PEERS_LIMIT - len(self._entries)
        if len(fresh) > room:
            fresh = {key: value for key, value in fresh.items() if key in self._entries}
        try:
            self._loaded.put_peers(fresh)
        except OSError as error:
            self._failed(error)
            return
        self._entries.update(fresh)
        self.counted.written += len(fresh)

    def compare(self) -> None:
        """A neighbour has another MAC, a relay another place: compare the map soon."""
        self._compare = True
        self._wake.set()

    def follow_kernel(self, comparisons: int) -> None:
        """A step of the rows is over. If they were compared, or ways found narrower: compare the map, too."""
        known = comparisons, *self.entries.known()
        if known != self._compared:
            self._compared = known
            self._compare = self._look_around = True
            self._wake.set()

    async def run(self) -> None:
        """Follow until cancelled; programs and maps stay as they are. Raises OSError when it cannot listen."""
        if self._loaded is None:
            await self._without()
            return
        loop = asyncio.get_running_loop()
        devices, ruleset = ports.DeviceMonitor(), RulesetMonitor("")
        loop.add_reader(devices.fileno(), lambda: self._devices_changed(devices))
        loop.add_reader(ruleset.fileno(), lambda: self._ruleset_changed(ruleset))
        try:
            while True:
                self._wake.clear()
                try:
                    self._step(self._loaded)
                except OSError as error:
                    self._failed(error)
                await asyncio.sleep(GAP_S)
                await happened(self._wake, within_s=LOOK_S)
        finally:
            for monitor in (devices, ruleset):
                loop.remove_reader(monitor.fileno())
                monitor.close()

    # ------------------------------------------------------------------ inside

    async def _without(self) -> None:
        """What an earlier agent left hanging must not go on without an owner."""
        if self.why_not != SWITCHED_OFF:
            self._conditions.set(CONDITION, f"{self.why_not}. All packets take the node's network stack")
        with contextlib.suppress(OSError, IsthmusError):
            self._predecessors.take_off(keep=frozenset())

    def _devices_changed(self, monitor: ports.DeviceMonitor) -> None:
        own = self._view.own
        if monitor.changed(own.cidr if own is not None else ""):
            self.void()
            self._look_around = True
            self._wake.set()

    def _ruleset_changed(self, monitor: RulesetMonitor) -> None:
        if monitor.touched():
            self._void = True  # a burst of transactions makes one generation, within GAP_S
            self._wake.set()

    def _next_generation(self) -> int:
        self.counted.generations += 1
        self._generation = (self._generation % 0x3FFFFFFF) + 1
        return self._generation

    def _tell(self, record: NodeRecord) -> None:
        if self._loaded is None:
            return
        try:
            if record._replace(generation=0) != self._record._replace(generation=0) and self.on:
                self._loaded.tell(
                    record._replace(generation=0)
                )  # no packet sees half of the old and half of the new
            self._loaded.tell(record)
            self._record = record
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """The kernel refused something: everything takes the stack until a look succeeds.

        It is not taken at once: what refuses for good (seccomp, a full disk) would be asked without a pause.
        """
        self._record = NodeRecord()
        self._compare = self._look_around = True
        self.why_not = f"the kernel refused a step ({error}); it is tried again"
        if error.errno in {errno.EPERM, errno.EACCES} and not error.filename:
            self.why_not = programs.why_not(error).message
        self._conditions.set(CONDITION, self.why_not)
        if self._loaded is not None:
            with contextlib.suppress(OSError):
                self._loaded.tell(self._record)

    def _wanted_record(self) -> NodeRecord | None:
        """What the programs should know of this node; None while packets have to take the stack."""
        view, tunnel = self._view, self._tunnel
        underlay, spec, second = tunnel.underlay, tunnel.spec, tunnel.second
        if view.own is None or view.plan is None or underlay is None or spec is None or not tunnel.ifindex:
            return None
        if view.fenced or view.deleted or not underlay.present or ":" in underlay.address:
            return None
        return NodeRecord(
            generation=self._record.generation,
            tunnel=tunnel.ifindex,
            underlay=underlay.ifindex,
            local=address_bytes(underlay.address),
            vni=spec.vni,
            port=spec.port,
            mac=mac_bytes(spec.mac),
            direct=int(self._direct),
            second=second.ifindex if second.spec is not None else 0,
            second_vni=second.spec.vni if second.spec is not None else 0,
        )

    def _step(self, loaded: Programs) -> None:
        """One look. Raises OSError."""
        view, wanted = self._view, self._wanted_record()
        if wanted is None or view.own is None:
            underlay = self._tunnel.underlay
            six = underlay is not None and ":" in underlay.address
            self._stand_down(loaded, "the programs do not carry packets over an IPv6 underlay" if six else "")
            return
        if self._look_around or tunnels(wanted) != tunnels(self._record):
            self._look_around = False
            self._found = ports.find(view.own.cidr, wanted.tunnel)
            self._filtered, self._xdp = ports.filtered(), ports.xdp()
        obstacle = self._obstacle(loaded, wanted)
        if obstacle:
            self._stand_down(loaded, obstacle)
            return
        skipped = self._skip_filtered_pods(loaded)
        self._hang(
            loaded,
            programs.hooks(
                wanted.underlay,
                self._ports.veths,
                self._ports.bridges,
                self._encrypting(loaded),
            ),
        )
        with contextlib.suppress(OSError):
            if self._predecessors.be_liberal() and self.on:
                self.counted.repaired += 1
                log.warning("%s was set back: conntrack would cut fast connections off", LIBERAL)
        changed = self._void or wanted != self._record
        if self._compare or not self.on:
            changed = self._compare_peers(loaded) or changed
            self._compare = False
            if loaded.told() != self._record.pack() and self.on:
                self.counted.repaired += 1
                changed = True
        if changed or not self.on:
            self._void = False
            if not self.on:
                log.info("the fast path is on: %d peers", len(self._entries))
            self._tell(wanted._replace(generation=self._next_generation()))
        if not self._started:
            self._started = True
            self._predecessors.take_off(keep=loaded.ids)
        self.why_not = skipped
        self._conditions.set(CONDITION, skipped)

    def _stand_down(self, loaded: Programs, obstacle: str) -> None:
        """Everything takes the stack; the programs go, so that nothing is left where it is not wanted."""
        if self.on:
            self._tell(NodeRecord())
            log.info("the fast path is off: %s", obstacle or "the tunnel is not ready")
        for hook in self._hooks:
            loaded.take_off(hook)
        self._hooks = set()
        self.why_not = obstacle
        self._conditions.set(CONDITION, obstacle)

    def _obstacle(self, loaded: Programs, wanted: NodeRecord) -> str:
        """Why packets must take the stack on this node; empty when nothing speaks against it."""
        underlay, known = self._tunnel.underlay, self._predecessors.ids
        name = underlay.device if underlay is not None else ""
        if not ports.is_ethernet(wanted.underlay):
            return f"the underlay {name} is no Ethernet device"
        if self._filtered.get(wanted.underlay) in {"clsact", "ingress"}:
            return f"another program filters what arrives on {name} (see `tc filter show dev {name} ingress`)"
        for device in tunnels(wanted):
            kind = self._filtered.get(device)
            if kind is not None:
                return f"another program shapes or filters the tunnel device by tc ({kind})"
            if device in self._xdp.here:
                return "another program handles packets of the tunnel device by XDP (see `bpftool net`)"
            if loaded.others(device, INGRESS, known) or loaded.others(device, EGRESS, known):
                return "another program handles packets of the tunnel device by eBPF (see `bpftool net`)"
        if loaded.others_behind(wanted.underlay, INGRESS, known):
            return f"another program handles what arrives on {name} by eBPF, behind ours (see `bpftool net`)"
        return ""

    def _encrypting(self, loaded: Programs) -> list[int]:
        """The devices of encrypted packets that nobody else shapes or filters."""
        return [device for device in self.wireguard() if not self._shared(loaded, device, ports.DEFAULTS)]

    def _shared(self, loaded: Programs, device: int, usual: Iterable[str] = ()) -> bool:
        """Whether somebody else judges what we would take past him. ``usual`` are queues of nobody."""
        known = self._predecessors.ids
        try:
            return self._filtered.get(device, "") not in {"", *usual} or bool(
                loaded.others(device, EGRESS, known) or loaded.others_behind(device, INGRESS, known)
            )
        except OSError:
            return True  # it goes just now

    def _skip_filtered_pods(self, loaded: Programs) -> str:
        """Leave out pods whose traffic somebody shapes or filters; says how many."""
        left = {pod for pod in self._found.veths | self._found.bridges if self._shared(loaded, pod)}
        left |= self._found.veths & self._xdp.beyond
        self._ports = ports.Ports(self._found.veths - left, self._found.bridges - left)
        shaped = len(left & self._filtered.keys())
        whose = (
            (shaped, "shaped or filtered by tc"),
            (
                len(left) - shaped,
                "handled by another eBPF program (see `bpftool net`, here and in the pod)",
            ),
        )
        return "; ".join(
            f"1 pod takes the stack, because it is {how}"
            if count == 1
            else f"{count} pods take the stack, because they are {how}"
            for count, how in whose
            if count
        )

    def _hang(self, loaded: Programs, wanted: set[Hook]) -> None:
        for hook in self._hooks - wanted:
            loaded.take_off(hook)
        gone = False
        here: set[Hook] = set()
        self._predecessors.note(loaded.ids, {hook.ifindex for hook in wanted})
        for hook in wanted:
            try:
                if loaded.hang(hook) and hook in self._hooks:
                    self.counted.repaired += 1
                    log.warning("%s was taken off device %d and hangs again", hook.program, hook.ifindex)
                here.add(hook)
            except OSError as error:
                if error.errno not in {errno.ENODEV, errno.EINVAL}:
                    raise
                gone = True  # the device went while we looked: a notice of that is under way
        self._hooks = here
        self._look_around = self._look_around or gone

    def _compare_peers(self, loaded: Programs) -> bool:
        """Map against desired; whether they differed from what was written."""
        desired, there = self.entries.wanted(), loaded.peers()
        if desired == there:
            self._entries = desired
            return False
        unwanted = there.keys() - desired.keys()
        different = {key: value for key, value in desired.items() if there.get(key) != value}
        loaded.drop_peers(unwanted)
        loaded.put_peers(different)
        if self.on and self._entries == desired:
            self.counted.repaired += len(unwanted) + len(different)
        self.counted.removed += len(unwanted)
        self.counted.written += len(different)
        self._entries = desired
        return True


def tunnels(record: NodeRecord) -> list[int]:
    """The devices out of which packets come."""
    return [device for device in (record.tunnel, record.second) if device]
