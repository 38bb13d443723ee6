"""What of this node follows from its rows: firewall, CNI file, held addresses, and the address it joined with.

Never on the path of the rows: it is told after each change of the view, and after each step of the kernel side.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from events.telemetry.role import Telemetry
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.direct.paths import DirectPaths
from nodeagent.firewall.reconciler import FirewallReconciler
from nodeagent.firewall.ruleset import Rules
from nodeagent.gateway.reconciler import GatewayReconciler
from nodeagent.membership.sanity import sound_sources
from nodeagent.membership.view import View
from nodeagent.nat.paths import NatPaths
from nodeagent.pods import cni
from nodeagent.pods.chain import Chain
from nodeagent.pods.watch import PodWatch
from nodeagent.wireguard.pairs import name_pattern, port_range

log = logging.getLogger("isthmus.agent")


class NodeConfiguration:
    """Brings them in line with the plan, the members, the log and the MTU."""

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        conditions: Conditions,
        telemetry: Telemetry,
        *,
        reconciler: Reconciler,
        firewall: FirewallReconciler,
        gateway: GatewayReconciler,
        pods: PodWatch,
        direct: DirectPaths,
        nat: NatPaths,
        held: Callable[[], bool],
        chain: Callable[[], Chain | None],
    ) -> None:
        """``held``: another machine has this one's identity, and keeps its place. ``chain``: of CNI plugins;
        None while it is not known.
        """
        self._config, self._view, self._conditions, self._telemetry = config, view, conditions, telemetry
        self._reconciler, self._firewall, self._gateway = reconciler, firewall, gateway
        self._pods, self._direct, self._nat = pods, direct, nat
        self._held, self._chain = held, chain
        self._verified_at = 0
        self._rules: Rules | None = None
        self._written: bytes | None = None

    def follow(self) -> None:
        """The view or the kernel side changed."""
        self._gateway.wake()
        view, spec = self._view, self._reconciler.tunnel.spec
        if view.own is None or view.plan is None:
            if view.left or view.fenced or view.deleted:
                self._shut()
                self._take_cni_away()
                self._pods.look()
            return
        rules = self._rules = Rules(
            device=self._config.device,
            port=view.plan.port,
            own_range=view.own.cidr,
            cidrs=view.plan.cidrs,
            ifindex=self._reconciler.tunnel.ifindex,
            underlay=self._reconciler.tunnel.underlay_address(),
            strays=self._pods.strays,
            entries=self._entries(view.plan.cidrs),
            direct=self._direct.device,
            wireguard="" if view.encryption.off else name_pattern(self._config.device),
            wireguard_ports=port_range(self._config.wireguard_port),
            second=self._nat.second(),
        )
        if rules.ifindex or not self._config.take_over:
            # By its name alone the tunnel would not be known while it is another network's: its packets would
            # be dropped until it is renamed, and again when it is given back.
            self._firewall.want(
                rules, self._members, view.sequence,
                near=self._direct.admitted, mapped=self._nat.admitted, hidden=self._nat.hidden,
            )  # fmt: skip
        if spec is not None and self._reconciler.tunnel.ifindex:
            self._give_cni(view.own.cidr, spec.mtu)

    def _shut(self) -> None:
        """A member no more: its rules stay, but nobody from outside comes in by them."""
        if self._rules is not None and (self._rules.entries or self._rules.direct):
            self._rules = msgspec.structs.replace(self._rules, entries=(), direct=0)
            self._firewall.want(self._rules, self._members, self._view.sequence, mapped=self._nat.admitted)

    def _members(self) -> set[str]:
        return self._view.vteps(self._nat.elsewhere())

    def _entries(self, cidrs: tuple[str, ...]) -> tuple[str, ...]:
        """Whom from outside this node lets through to pods: nobody, unless it is a gateway."""
        return sound_sources(self._view.traffic.entries.values(), cidrs) if self._gateway.serves else ()

    def _give_cni(self, cidr: str, mtu: int) -> None:
        """New pods start here, unless some still have addresses of an earlier range."""
        if self._held():
            self._take_cni_away()
        elif self._pods.settled or cni.range_of(self._config.cni_dir) == cidr:
            self._write_cni(cidr, mtu)
        else:
            self._take_cni_away()
            self._pods.look()

    def hold(self) -> None:
        """Before anything is given out here: this machine is not the member, or not yet known to be."""
        self._take_cni_away()

    def cni_kept(self) -> bool:
        """Whether the CNI file is as it was written; also where there is to be none. Raises OSError."""
        written = self._written
        return written is None or cni.read(self._config.cni_dir) == written

    def _take_cni_away(self) -> None:
        """No new pod starts here: its address would be of a range that is not, or not only, this node's."""
        self._written = None
        try:
            if cni.remove(self._config.cni_dir):
                log.warning("CNI configuration taken away: no new pod starts on this node")
        except OSError as error:
            self._conditions.set("cni", f"{self._config.cni_dir} cannot be written: {error.strerror}")

    def kernel_changed(self) -> None:
        """A step of the kernel side is over."""
        if self._reconciler.counters.resyncs != self._verified_at:
            self._verified_at = self._reconciler.counters.resyncs
            self._firewall.verify()  # announcements can be lost: look at every comparison, too
        if self._reconciler.clean:
            self.follow()

    def _write_cni(self, cidr: str, mtu: int) -> None:
        chain = self._chain()
        if chain is None:
            return  # in a moment: the file is not written twice
        content = cni.conflist(
            cidr=cidr,
            mtu=mtu,
            plugin=self._config.cni_plugin,
            data_dir=str(self._config.pod_directory),
            name=self._config.network,
            chain=chain,
        )
        started_ns = time.time_ns()
        try:
            self._written = content
            if cni.write(self._config.cni_dir, content):
                attributes: dict[str, str | int] = {"isthmus.range": cidr, "isthmus.mtu": mtu}
                self._telemetry.tracer.start_span(
                    "cni write", start_time=started_ns, attributes=attributes
                ).end()
                log.info("CNI configuration written: %s, mtu %d", cidr, mtu)
            if self._config.take_over and cni.set_aside(self._config.cni_dir):
                log.info("flannel's CNI file is set aside: new pods start on ours")
            self._conditions.clear("cni")
        except OSError as error:
            self._conditions.set("cni", f"{self._config.cni_dir} cannot be written: {error.strerror}")
