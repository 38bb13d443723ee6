"""What the rows stand on: the underlay, the tunnel device, the host's settings, the netlink socket.

Everything here blocks for milliseconds and is called from a worker thread; the reconciler's lock lets one
call in at a time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane import host_settings, takeover
from nodeagent.dataplane.desired import Desired
from nodeagent.dataplane.fight_guard import FightGuard
from nodeagent.dataplane.merging import Merging
from nodeagent.dataplane.preflight import accepted, foreign_routes, overriding_routes, refuse_conflicting_routes
from nodeagent.dataplane.reconcile import Outcome, apply_directly, joined, reconcile
from nodeagent.dataplane.second_device import SecondDevice
from nodeagent.dataplane.underlay import ETHERNET_MTU, Underlay, overlay_mtu, resolve
from nodeagent.membership.peers import Peer
from nodeagent.membership.values import OverlayPlan, first_address
from nodeagent.netlink import links
from nodeagent.netlink.links import DeviceOutcome, DeviceSpec
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.socket import Engine, KernelRefusal, NetlinkChannel

log = logging.getLogger("isthmus.agent.device")

FLANNEL_BRIDGE = "cni0"
CLOSED = "the netlink socket is closed"


class TunnelDevice:
    """The node's own side of the tunnel. ``port`` is the netlink port id of what writes our rows."""

    def __init__(self, config: AgentConfig, conditions: Conditions) -> None:
        self._config, self._conditions = config, conditions
        self._engine: Engine | None = None
        self._settled = False
        self._merging = Merging(config.gro)
        self._remade = FightGuard[str](free_repairs=3, window_s=60.0)
        self.encrypted = False
        """Whether packets to some peers are encrypted, or are to be."""
        self.second = SecondDevice(config.device, conditions, gro=config.gro)
        self.existed = True
        """Whether our device was there when we started."""
        self.underlay: Underlay | None = None
        self.spec: DeviceSpec | None = None
        self.ifindex = 0
        self.port = 0

    def look(self) -> None:
        """See whether our device is there already. Raises OSError."""
        self.existed = links.find(self._config.device) is not None

    def find_underlay(self, peers: Iterable[str] = ()) -> Underlay:
        """Resolve the underlay now; ``peers`` are addresses of peers. Raises Usage, OSError."""
        self.underlay = resolve(self._config.underlay, self.underlay, peers)
        return self.underlay

    def assume_underlay(self, address: str) -> None:
        """The address that the cluster knows, until the link that should have it is there again."""
        self.underlay = Underlay(address, "", 0, ETHERNET_MTU, up=False)

    def underlay_address(self) -> str:
        """The address that the tunnel has now; empty when there is none."""
        return self.underlay.address if self.underlay is not None else ""

    def prepare(
        self,
        own: Peer,
        plan: OverlayPlan,
        *,
        look_around: bool,
        peers: Iterable[str] = (),
        allow: Callable[[str], bool] = lambda _: True,
    ) -> DeviceOutcome:
        """Bring the device into its specified state, and open the socket. Raises IsthmusError, OSError.

        ``look_around``: look for routes of others that draw container traffic away, too. ``peers`` are
        addresses of peers; ``allow`` says whether a property of the device may be put right now.
        """
        underlay = self.find_underlay(peers)
        spec = DeviceSpec(
            name=self._config.device,
            vni=plan.vni,
            port=plan.port,
            mac=own.vtep_mac,
            local=underlay.address,
            address=first_address(own.cidr),
            mtu=overlay_mtu(underlay, self._config.mtu, encrypted=self.encrypted),
        )
        first = not self._settled
        if self._config.take_over:
            for step in takeover.take(self._config.take_over, spec):
                log.info("taken over: %s", step)
                self.existed = True
            host_settings.answer_for_others(FLANNEL_BRIDGE)
        if first and not self.existed:
            refuse_conflicting_routes(
                plan.cidrs,
                own.cidr,
                self._own_index(),
                accepted=accepted(plan.networks, plan.cidrs, underlay.address),
            )
        elif first or look_around or self._conditions.has("routes"):
            self._note_foreign_routes(plan, own, underlay.address)
        on_purpose = spec != self.spec
        gone = self.ifindex and links.find(spec.name) is None
        if gone and not self._remade.allow(spec.name, time.monotonic()):
            raise OSError(
                errno.ENODEV, f"device {spec.name} is removed or renamed again and again by another program"
            )
        outcome = links.ensure_device(spec, (lambda _: True) if on_purpose else allow)
        self._conditions.set(
            "underlay",
            ""
            if underlay.present
            else f"the underlay address {underlay.address} is not on any device that is up and has a carrier",
        )
        if self._engine is None:
            channel = NetlinkChannel()
            self._engine, self.port = Engine(channel), channel.port
        if outcome.index != self.ifindex or outcome.actions:
            _, failed = host_settings.prepare_host(
                spec.name, behind_nat=self._config.behind_nat, gro=self._merging.on
            )
            self._conditions.set("host", "; ".join(failed))
        with contextlib.suppress(OSError):
            self._merging.look(spec.name, spec.mtu)
        self.ifindex, self.spec = outcome.index, spec
        beside = self.second.prepare(spec, allow)
        return msgspec.structs.replace(outcome, actions=(*outcome.actions, *beside)) if beside else outcome

    def settled(self) -> None:
        """Device and rows were right once: what would stop a first start only earns a complaint from now on."""
        self._settled = True

    def compare(self, desired: Desired, allow: Callable[[Operation], bool] | None) -> Outcome:
        """Make the rows agree, as far as ``allow`` lets operations through (None: all). Raises AnswersLost."""
        if self._engine is None:
            raise OSError(CLOSED)
        beside = self.second.compare(self._engine, allow)  # a route over it needs its rows
        outcome = self._compare(self._engine, desired, allow)
        return joined(outcome, beside) if beside is not None else outcome

    def _compare(self, engine: Engine, desired: Desired, allow: Callable[[Operation], bool] | None) -> Outcome:
        if not self._config.take_over:
            return reconcile(engine, self.ifindex, desired.rows, allow=allow)
        foreign = takeover.foreign_routes(self.ifindex)
        outcome = reconcile(
            engine,
            self.ifindex,
            desired.rows,
            allow=allow,
            seen=lambda kernel: takeover.spared(desired.rows, kernel, foreign),
        )
        if outcome.clean:
            takeover.sweep(self.ifindex, takeover.superseded(desired.rows, foreign))
        left = len(foreign) - len(takeover.superseded(desired.rows, foreign))
        self._conditions.set(
            "takeover",
            f"{left} routes of the network before this one lead to ranges that the log does not know and stay. "
            f"Plan the adoption anew and run it: isthmus adopt plan --help"
            if left
            else "",
        )
        return outcome

    def apply(self, operations: Sequence[Operation]) -> list[KernelRefusal]:
        """Write one change at once. Raises AnswersLost, OSError."""
        if self._engine is None:
            raise OSError(CLOSED)
        return apply_directly(self._engine, self.ifindex, operations)

    def apply_beside(self, operations: list[Operation]) -> str:
        """Write rows of the second device at once; why a comparison is due, empty when it is not."""
        try:
            refusals = self.second.apply(self._engine, operations) if self._engine is not None else []
        except OSError as error:
            return f"second device: {error}"
        return "refused" if any(refusal.operation.action is Action.PUT for refusal in refusals) else ""

    def routes(self) -> dict[bytes, bytes]:
        """Our routes as they are in the kernel. Raises AnswersLost, OSError."""
        return self._engine.read(self.ifindex).routes if self._engine is not None else {}

    def close(self) -> None:
        """Close the socket; the next preparation opens another."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _note_foreign_routes(self, plan: OverlayPlan, own: Peer, underlay: str) -> None:
        """Routes that are not ours and win over ours cannot be repaired by us, only told."""
        is_accepted = accepted(plan.networks, plan.cidrs, underlay)
        routes = [route for route in foreign_routes(self._own_index()) if not is_accepted(route.network)]
        found = overriding_routes(routes, plan.cidrs, own.cidr)
        self._conditions.set(
            "routes",
            f"{len(found)} routes of others draw container traffic away, the first: {found[0]}. "
            f"Remove it: ip route del {found[0].network}"
            if found
            else "",
        )

    def _own_index(self) -> int:
        link = links.find(self._config.device)
        return link.index if link is not None else 0
