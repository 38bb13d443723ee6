"""The one place where an agent is put together: each part is complete before another gets it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import msgspec
from nats.aio.client import Client

from events.telemetry.http import serve_where
from events.telemetry.logs import follow_position
from events.telemetry.role import Telemetry
from events.telemetry.spans import Outbox
from nodeagent.agent import Agent, ChangeDispatcher
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.dataplane.second_device import second_name
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.dataplane.underlay import Underlay
from nodeagent.direct.paths import DirectPaths
from nodeagent.fastpath.predecessors import Predecessors
from nodeagent.fastpath.reconciler import FastPath
from nodeagent.fastpath.start import NOTHING, Prepared
from nodeagent.firewall.predecessor import Predecessor
from nodeagent.firewall.reconciler import FirewallReconciler
from nodeagent.gateway.reconciler import GatewayReconciler
from nodeagent.health import diagnosis
from nodeagent.health.accept_in_others import AcceptInOthers
from nodeagent.health.host_watch import Host, HostWatch
from nodeagent.health.path_prober import PathProber, Route
from nodeagent.health.probe_device import device_name
from nodeagent.identity import Identity, identify, remember
from nodeagent.local_files import only_one, prepare_directory
from nodeagent.membership.cache import Cache
from nodeagent.membership.log_follower import LogFollower
from nodeagent.membership.node_key import own_key
from nodeagent.membership.sanity import unicast_problem
from nodeagent.membership.session import BusSession
from nodeagent.membership.view import View
from nodeagent.mesh.prober import MeshProber
from nodeagent.mesh.requests import TraceRequests
from nodeagent.mesh.tracing import PeerTracer
from nodeagent.metrics import bind
from nodeagent.nat.paths import NatPaths
from nodeagent.nat.wire import SWITCHED_OFF as NAT_SWITCHED_OFF
from nodeagent.nat.wire import Wire
from nodeagent.node_configuration import NodeConfiguration
from nodeagent.path_mtu.tracker import PathMtuProber
from nodeagent.pods.chain import Chain
from nodeagent.pods.facts import PodFacts
from nodeagent.pods.plugin.answers import Standing
from nodeagent.pods.plugin.keeper import PluginKeeper
from nodeagent.pods.reporter import PodReporter
from nodeagent.pods.watch import PodWatch
from nodeagent.reports import StatusReporter
from nodeagent.ways.before import Before
from nodeagent.ways.table import WayTable
from nodeagent.wireguard import start as wireguard_start
from nodeagent.wireguard.keeper import Keeper
from nodeagent.wireguard.pairs import device_names as wireguard_names

log = logging.getLogger("isthmus.agent")

LEFT = (
    "this node was taken off the cluster's list, and its range goes to others; its rows stay, cut off. "
    "Restart the agent to join again, or stop it and: "
)

ASK_AGAIN_S = 60.0
"""Between two requests for a place that another machine has taken."""


class GatewaySources:
    """What the gateway needs of other parts: view, link and bus as they are now."""

    def __init__(self, view: View, tunnel: TunnelDevice, session: BusSession) -> None:
        self.view = view
        self._tunnel, self._session = tunnel, session

    def link(self) -> Underlay | None:
        """The underlay, as last seen."""
        return self._tunnel.underlay

    def bus(self) -> Client | None:
        """The connection to the bus, if there is one."""
        return self._session.client

    def caught_up(self) -> bool:
        """Whether the view has reached the log's end in this life."""
        return self._session.caught_up.is_set()


class HealthSources:
    """What the checks of the path and of the host need: where packets leave, and what is ours on this host."""

    def __init__(self, config: AgentConfig, view: View, reconciler: Reconciler) -> None:
        self._config, self._view, self._reconciler = config, view, reconciler

    def route(self) -> Route | None:
        """Where packets leave; None while the rows are not in the kernel."""
        tunnel, view = self._reconciler.tunnel, self._view
        if view.own is None or tunnel.spec is None or not self._reconciler.counters.resyncs or view.left:
            return None
        return Route(
            view=view,
            underlay=tunnel.underlay_address(),
            device=self._config.device,
            ifindex=tunnel.ifindex,
            mtu=tunnel.spec.mtu,
            exits=self._reconciler.found.exits,
            encrypted=wireguard_names(self._config.device),
        )

    def host(self) -> Host | None:
        """What belongs to the overlay on this host; None while this node has no range."""
        own, underlay = self._view.own, self._reconciler.tunnel.underlay
        if own is None or not self._reconciler.tunnel.ifindex or self._view.left:
            return None
        devices = (
            self._config.device,
            device_name(self._config.device),
            *wireguard_names(self._config.device),
            second_name(self._config.device),
            *((underlay.device,) if underlay else ()),
        )
        return Host(devices=devices, own_range=own.cidr, cni_dir=self._config.cni_dir)

    async def explain(self, fault: str) -> str:
        """What is in the way of packets. Cancelled, it leaves nothing behind."""
        plan = self._view.plan
        return await diagnosis.explain(fault, plan.port, plan.cidrs) if plan is not None else ""


class PodSources:
    """What answering the container runtime needs: whose addresses are whose, and whether packets pass."""

    def __init__(self, view: View, session: BusSession) -> None:
        self._view, self._session = view, session
        self.cut_off: Callable[[], str] = lambda: ""
        """Why packets of pods do not pass; empty while they do, or nobody knows."""
        self.plugin: PluginKeeper | None = None

    def epoch_of(self, address: str) -> int:
        """The epoch of this node's range if the address is of it, else 0."""
        own = self._view.own
        return own.epoch if own is not None and IPv4Address(address) in IPv4Network(own.cidr) else 0

    def standing(self) -> Standing:
        """This node now."""
        view, no_range = self._view, ""
        if view.fenced or view.deleted or view.left or self._session.held:
            no_range = "this node is no member (any more), or another machine has its identity"
        elif view.own is None:
            no_range = "this node has no range yet"
        cidrs = tuple(view.plan.cidrs) if view.plan is not None else ()
        own = view.own.cidr if view.own is not None else ""
        return Standing(cidrs=cidrs, own=own, no_range=no_range, no_packets=self.cut_off())

    def chain(self) -> Chain | None:
        """The CNI plugins that are installed, once it is known."""
        return self.plugin.chain if self.plugin is not None else None


class _AfterEachStep:
    """What follows a step of the kernel side: a report, the node's configuration, a rejoin after a move."""

    def __init__(self, agent: Agent, identity: Identity) -> None:
        self._agent = agent
        self._identity = identity
        self._told_underlay = ""
        self._known_at = ""
        self._left = LEFT + agent.config.quote("isthmus agent clean --yes")
        self._asked_at = -math.inf

    def __call__(self) -> None:
        agent, view = self._agent, self._agent.view
        agent.reporter.due()
        agent.conditions.set("membership", self._left if view.left and not view.fenced else "")
        agent.conditions.set("log content", view.nonsense())
        agent.node.kernel_changed()
        agent.encryption.follow()
        agent.fastpath.follow_kernel(agent.reconciler.counters.resyncs)
        self._bind_name()
        underlay, member = agent.reconciler.tunnel.underlay, view.members.get(agent.config.node)
        if underlay is None or view.own is None or member is None or not underlay.present:
            return
        self._notice_twin(member.underlay, underlay.address)
        if underlay.address not in {member.underlay, self._told_underlay}:
            self._told_underlay = underlay.address
            agent.follower.moved()

    def _notice_twin(self, told: str, ours: str) -> None:
        """The cluster knew this node's address, and somebody else told it another one."""
        if told == ours:
            self._known_at = ours
            self._agent.conditions.clear("twin")
        elif self._known_at == ours:
            self._agent.conditions.set(
                "twin",
                f"the cluster was told that this node is at {told}, and this machine is at {ours}: another "
                f"machine has its identity (a clone?). On the copy stop the agent, then: "
                + self._agent.config.quote("isthmus agent new-identity --yes"),
            )
            if time.monotonic() - self._asked_at > ASK_AGAIN_S:  # its place again, once the other is silent
                self._asked_at = time.monotonic()
                self._agent.follower.rejoin()

    def _bind_name(self) -> None:
        """A member keeps its name over restarts; one that is a member no more may take another."""
        config, view = self._agent.config, self._agent.view
        if not view.joined and not (view.left or view.fenced or view.deleted):
            return
        name, cluster = (config.node, config.cluster) if view.joined else ("", "")
        bound = Identity(uid=view.uid, node=name, cluster=cluster)
        if (bound.node, bound.cluster) == (self._identity.node, self._identity.cluster):
            return
        try:
            remember(config.state_dir, bound)
            self._identity = bound
        except OSError as error:
            log.warning("the identity cannot be written: %s", error.strerror)


NO_WIRE: tuple[Wire | None, str] = (None, NAT_SWITCHED_OFF)


def compose(
    config: AgentConfig,
    identity: Identity,
    *,
    telemetry: Telemetry,
    outbox: Outbox | None = None,
    fastpath: Prepared = NOTHING,
    nat: tuple[Wire | None, str] = NO_WIRE,
) -> Agent:
    """An agent with all its parts; nothing runs yet. Raises Refused(identity_unreadable), OSError.

    ``fastpath`` are the programs that were loaded while the process still could, or why there are none; ``nat``
    in the same way the sockets for ways through NAT.
    """
    conditions, session, key = Conditions(), BusSession(), own_key(config.state_dir)
    cache = Cache(config.state_dir)
    config = as_remembered(config, identity, conditions)
    view = cache.load(config.cluster, config.node, identity.uid)
    reconciler = Reconciler(config, conditions, telemetry=telemetry)
    member = view.members.get(config.node)
    if view.joined and member is not None and not unicast_problem(member.underlay):
        reconciler.tunnel.assume_underlay(member.underlay)
    replacing = Predecessor(config.state_dir) if config.take_over else None
    firewall = FirewallReconciler(conditions, telemetry, enabled=config.firewall, replacing=replacing)
    gateway = GatewayReconciler(config, conditions, GatewaySources(view, reconciler.tunnel, session))
    pods, sources_of_pods = PodWatch(config, view, conditions), PodSources(view, session)
    fast = FastPath(
        conditions,
        reconciler.tunnel,
        view,
        found=reconciler.found,
        direct=config.direct != "off",
        predecessors=Predecessors(config.state_dir, fastpath.earlier),
        loaded=fastpath.loaded,
        why_not=fastpath.why_not,
    )
    ways = WayTable(Before(config.state_dir).since)
    direct = DirectPaths(config, view, conditions, reconciler=reconciler, fastpath=fast, ways=ways)
    fast.entries.neighbour = direct.neighbour
    kind, why_not = wireguard_start.choose(config.wireguard)
    encryption = Keeper(
        config,
        view,
        conditions,
        reconciler.tunnel,
        session,
        key=key,
        kind=kind,
        why_not=why_not,
        ways=ways,
        lead=reconciler.encrypt,
        compare=reconciler.request,
    )
    through_nat = NatPaths(
        config,
        view,
        conditions,
        reconciler=reconciler,
        fastpath=fast,
        ways=ways,
        secrets=key,
        wire=nat[0],
        why_not=nat[1],
    )
    through_nat.firewall_settled, fast.wireguard = firewall.settled, encryption.indexes
    encryption.relay_by(through_nat)
    node = NodeConfiguration(
        config,
        view,
        conditions,
        telemetry,
        reconciler=reconciler,
        firewall=firewall,
        gateway=gateway,
        pods=pods,
        direct=direct,
        nat=through_nat,
        held=lambda: session.held,
        chain=sources_of_pods.chain,
    )
    facts = PodFacts(config.state_dir, enabled=config.pod_facts, epoch_of=sources_of_pods.epoch_of)
    plugin = PluginKeeper(config, facts, standing=sources_of_pods.standing, changed=node.follow)
    sources_of_pods.plugin, pods.on_look = plugin, plugin.on_look
    dispatcher = ChangeDispatcher(view, reconciler, node, fast)
    sources = HealthSources(config, view, reconciler)
    path = PathProber(conditions, context=sources.route, diagnose=sources.explain)
    mesh = MeshProber(path, context=sources.route, narrow=lambda: reconciler.found.mtus)
    tracer = PeerTracer(mesh.told)
    mesh.tracer = tracer
    host_watch = HostWatch(conditions, host=sources.host, cni_kept=node.cni_kept, rewrite_cni=node.follow)
    prober = PathMtuProber(
        conditions,
        context=lambda: reconciler.probe_context(view),
        known=lambda: reconciler.found.mtus,
        apply=reconciler.narrow,
    )
    reporter = StatusReporter(
        config,
        view,
        conditions,
        session,
        reconciler=reconciler,
        gateway=gateway,
        pods=pods,
        firewall=firewall,
        path=path,
        host_watch=host_watch,
        fastpath=fast,
        path_mtu=lambda: prober.smallest,
        mesh=mesh,
        ways=ways,
        nat=through_nat.report,
        encryption=encryption,
    )
    agent = Agent(
        config=config,
        view=view,
        cache=cache,
        conditions=conditions,
        session=session,
        reconciler=reconciler,
        firewall=firewall,
        others=AcceptInOthers(
            conditions,
            enabled=config.accept_in_others,
            containers=lambda: view.plan.cidrs if view.plan is not None else (),
        ),
        gateway=gateway,
        fastpath=fast,
        node=node,
        pods=pods,
        plugin=plugin,
        pod_reporter=PodReporter(config, view, session, facts),
        dispatcher=dispatcher,
        follower=LogFollower(
            config,
            view,
            cache,
            conditions,
            telemetry,
            session=session,
            apply=dispatcher.apply,
            underlay=reconciler.tunnel.underlay_address,
            key=encryption.told,
        ),
        prober=prober,
        path=path,
        mesh=mesh,
        tracer=tracer,
        ways=ways,
        direct=direct,
        encryption=encryption,
        nat=through_nat,
        trace_requests=TraceRequests(session, config.cluster, config.node, trace=mesh.trace),
        host_watch=host_watch,
        reporter=reporter,
        outbox=outbox,
    )
    sources_of_pods.cut_off = reporter.cut_off
    reconciler.notify(_AfterEachStep(agent, identity))
    firewall.notify(reporter.due)
    encryption.notify(reporter.due, agent.follower.rejoin)
    path.notify(reporter.due)
    host_watch.notify(reporter.due)
    mesh.notify(reporter.due)
    tracer.due = reporter.due
    pods.notify(agent.pods_changed)
    direct.notify(agent.node.follow)
    through_nat.notify(agent.ways_changed, encryption.renew)
    return agent


def as_remembered(config: AgentConfig, identity: Identity, conditions: Conditions) -> AgentConfig:
    """The settings with the name under which this installation is a member.

    Started by another name, an agent that took it would leave the member behind: its rows would be managed
    by nobody, and its uid is refused under any other name.
    """
    if not identity.node or identity.cluster != config.cluster or identity.node == config.node:
        return config
    leave = config.quote("isthmus agent leave --yes", asks=True)
    conditions.set(
        "name",
        f"this agent was started as {config.node}, and goes on as {identity.node}: this installation is the "
        f"member of that name. To rename it, stop the agent, `{leave}`, and start it again",
    )
    return msgspec.structs.replace(config, node=identity.node)


async def run_agent(
    config: AgentConfig,
    *,
    uid: str = "",
    machine_uid: str = "",
    telemetry: Telemetry | None = None,
    outbox: Outbox | None = None,
    fastpath: Prepared = NOTHING,
    nat: tuple[Wire | None, str] = NO_WIRE,
    metrics: str = "off",
) -> None:
    """The agent of one node until cancelled; its rows stay. Raises IsthmusError for what must stop a start.

    ``uid`` is one given by name; ``machine_uid`` what a new installation takes; ``metrics`` where `/metrics`
    and `/healthz` are served, ``HOST:PORT`` or ``off``.
    """
    telemetry = telemetry or Telemetry.off("agent", config.node)
    prepare_directory(config.state_dir)
    with only_one(config.state_dir):
        identity = identify(config.state_dir, given=uid, machine_uid=machine_uid)
        agent = compose(config, identity, telemetry=telemetry, outbox=outbox, fastpath=fastpath, nat=nat)
        view = agent.view
        follow_position(lambda: view.sequence)
        if outbox is not None:
            outbox.population = lambda: len(view.peers) + 1
        bind(agent, telemetry)
        async with serve_where(telemetry.prometheus, metrics, healthy=agent.reporter.not_ready_reason):
            await agent.run()
