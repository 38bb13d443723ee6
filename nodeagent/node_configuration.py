"""What of this node follows from its rows: firewall, CNI file, held addresses, and the address it joined with.

Never on the path of the rows: it is told after each change of the view, and after each step of the kernel side.
"""

from __future__ import annotations

import logging
import time

from events.telemetry.role import Telemetry
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.firewall.reconciler import FirewallReconciler
from nodeagent.firewall.ruleset import Rules
from nodeagent.gateway.reconciler import GatewayReconciler
from nodeagent.membership.view import View
from nodeagent.pods import cni

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
    ) -> None:
        self._config, self._view, self._conditions, self._telemetry = config, view, conditions, telemetry
        self._reconciler, self._firewall, self._gateway = reconciler, firewall, gateway
        self._verified_at = 0

    def follow(self) -> None:
        """The view or the kernel side changed."""
        self._gateway.wake()
        view, spec = self._view, self._reconciler.tunnel.spec
        if view.own is None or view.plan is None:
            return
        rules = Rules(
            device=self._config.device,
            port=view.plan.port,
            own_range=view.own.cidr,
            cidrs=view.plan.cidrs,
            ifindex=self._reconciler.ifindex,
            underlay=self._reconciler.tunnel.underlay_address(),
        )
        if self._config.firewall:
            self._firewall.want(rules, view.vteps)
        if spec is not None and self._reconciler.ifindex:
            self._write_cni(view.own.cidr, spec.mtu)

    def kernel_changed(self) -> None:
        """A step of the kernel side is over."""
        if self._reconciler.counters.resyncs != self._verified_at:
            self._verified_at = self._reconciler.counters.resyncs
            self._firewall.verify()  # announcements can be lost: look at every comparison, too
        if self._reconciler.clean:
            self.follow()

    def _write_cni(self, cidr: str, mtu: int) -> None:
        content = cni.conflist(
            network="isthmus",
            cidr=cidr,
            mtu=mtu,
            plugin=self._config.cni_plugin,
            data_dir=self._config.cni_data_dir or str(self._config.state_dir / "pod-addresses"),
        )
        started_ns = time.time_ns()
        try:
            if cni.write(self._config.cni_dir, content):
                attributes: dict[str, str | int] = {"isthmus.range": cidr, "isthmus.mtu": mtu}
                self._telemetry.tracer.start_span(
                    "cni write", start_time=started_ns, attributes=attributes
                ).end()
                log.info("CNI configuration written: %s, mtu %d", cidr, mtu)
            self._conditions.clear("cni")
        except OSError as error:
            self._conditions.set("cni", f"{self._config.cni_dir} cannot be written: {error.strerror}")
