"""`isthmus agent` and `isthmus doctor`: the node's side of the command line."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec

from events.cli.hints import hint
from events.cli.listen import METAVAR, Listen
from events.cli.numbers import Finite
from events.cli.options import BusContext, bus_options, confirm, json_option, run
from events.cli.tables import console, escaped, print_json
from events.subjects import check_node_name
from nodeagent.config import DEFAULT_CNI_DIR, DEFAULT_DEVICE, DEFAULT_STATE_DIR, AgentConfig, check
from nodeagent.wireguard.command import rotate_key_command, wireguard_options

DEFAULT_METRICS = "127.0.0.1:7481"

state_option = click.option(
    "--state-dir", envvar="ISTHMUS_STATE_DIR", type=click.Path(path_type=Path), default=DEFAULT_STATE_DIR,
    show_default=True, help="Where the agent keeps its uid, cache and status.",
)  # fmt: skip


class _RunByDefault(click.Group):
    """`isthmus agent --node a …` means `isthmus agent run --node a …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in {"-h", "--help"}):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault)
def agent() -> None:
    """The agent of a node: joins, and keeps the kernel's tunnel rows as the log says.

    \b
    On a cloud node:    isthmus agent --bus nats://10.0.0.2:4222 --cluster prod
    In a data centre:   isthmus agent --bus … --kind external --site ams
    Behind a NAT:       isthmus agent … --announced 203.0.113.7
    Look:               isthmus agent status
    See its packets:    isthmus agent capture
    Take it all away:   isthmus agent clean

    Without a subcommand it runs the agent. It needs CAP_NET_ADMIN and drops everything else.
    """


agent.add_command(rotate_key_command)


@agent.command("run")
@bus_options
@click.option("--node", envvar="ISTHMUS_NODE", default=lambda: socket.gethostname().lower(),
              show_default="hostname", help="Name of this node (DNS-1123).")  # fmt: skip
@click.option("--uid", default="", help="Identity of this installation [kept in the state directory].")
@click.option("--kind", type=click.Choice(["cloud", "external"]), default="cloud", show_default=True,
              help="Where the node runs.")  # fmt: skip
@click.option("--site", default="", help="Name of the site, for people.")
@click.option("--underlay", default="auto", show_default=True, metavar="auto|DEVICE|ADDRESS",
              help="The tunnel's own address, or its device, whose address is followed.")  # fmt: skip
@click.option(
    "--announced", default="", metavar="ADDRESS", help="The address for peers, if a NAT stands between."
)
@state_option
@click.option("--machine-id", envvar="ISTHMUS_MACHINE_ID", type=click.Choice(["host", "none"]),
              default="host", show_default=True,
              help="What the first uid is: the machine's, or a random one.")  # fmt: skip
@click.option("--cni-dir", type=click.Path(path_type=Path), default=DEFAULT_CNI_DIR, show_default=True,
              help="Where the CNI configuration goes.")  # fmt: skip
@click.option("--cni-data-dir", default="", metavar="DIRECTORY",
              help="Where host-local keeps the pods' addresses [the plugin's default].")  # fmt: skip
@click.option("--cni-plugin", type=click.Choice(["ptp", "bridge"]), default="ptp", show_default=True,
              help="How pods are attached.")  # fmt: skip
@click.option("--cni-network", default="", metavar="NAME",
              help="Name of the CNI network [isthmus; cbr0 with --take-over].")  # fmt: skip
@click.option("--cni-bin-dir", default="", metavar="DIRECTORY",
              help="Where the CNI plugins are [/opt/cni/bin, /usr/lib/cni, /usr/libexec/cni].")  # fmt: skip
@click.option("--cni-own-plugin", type=click.Choice(["auto", "off"]), default="auto", show_default=True,
              help="End the CNI chain with our plugin where it is installed.")  # fmt: skip
@click.option("--cni-bandwidth", is_flag=True,
              help="Shape pods by their bandwidth annotations, where our plugin is installed.")  # fmt: skip
@click.option("--pod-facts/--no-pod-facts", default=True, show_default=True,
              help="Note which pod had which address, for `isthmus replay who`.")  # fmt: skip
@click.option("--take-over", default="", metavar="DEVICE",
              help="Flannel's device, flannel.1: becomes ours with its rows while packets flow.")  # fmt: skip
@click.option("--device", default=DEFAULT_DEVICE, show_default=True, help="Name of the tunnel device.")
@click.option("--mtu", type=int, default=0, help="Inner MTU in bytes [underlay − 50, followed].")
@click.option("--gro/--no-gro", default=None,
              help="Receive offload on the tunnel [on, until packets are seen to come merged].")  # fmt: skip
@click.option("--firewall/--no-firewall", default=True, show_default=True,
              help="Protect pods by a nftables table of our own.")  # fmt: skip
@click.option("--accept-in-others", is_flag=True,
              help="Let pods through others' chains (Docker, ufw) that drop the rest.")  # fmt: skip
@click.option("--fastpath", envvar="ISTHMUS_FASTPATH", type=click.Choice(["auto", "off", "require"]),
              default="auto", show_default=True,
              help="Carry flows that the node's stack has let through by eBPF.")  # fmt: skip
@click.option("--direct", type=click.Choice(["off", "auto", "on"]), default="off", show_default=True,
              help="Reach peers on the same link without the tunnel, where packets pass.")  # fmt: skip
@click.option("--nat", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
              help="Behind NAT: found out by what others see of it, from the start, or never.")  # fmt: skip
@wireguard_options
@click.option("--gateway", is_flag=True,
              help="May hold CLB addresses (see `isthmus clb gateway`); keeps CAP_NET_RAW.")  # fmt: skip
@click.option("--resync", "resync_s", type=float, default=75.0, show_default=True, metavar="SECONDS",
              help="Longest time between two comparisons with the kernel.")  # fmt: skip
@click.option("--heartbeat", "heartbeat_s", type=float, default=5.0, show_default=True, metavar="SECONDS",
              help="Longest time between two reports.")  # fmt: skip
@click.option("--metrics", envvar="ISTHMUS_METRICS", default=DEFAULT_METRICS, show_default=True,
              type=Listen(), metavar=METAVAR, help="Where Prometheus finds this agent's metrics.")  # fmt: skip
def run_command(
    context: BusContext, node: str, uid: str, machine_id: str, metrics: str, **options: Any
) -> None:
    """Run the agent until SIGTERM. Its rows stay when it stops.

    \b
    Example:
      isthmus agent --bus nats://10.0.0.2:4222 --cluster prod --underlay eth0
    """
    from events.machine_identity import read_machine_uid
    from events.telemetry.logs import configure_logging
    from events.telemetry.role import Telemetry
    from events.telemetry.spans import Outbox
    from nodeagent.composition import run_agent
    from nodeagent.fastpath.start import prepare
    from nodeagent.nat.wire import opened_wire
    from nodeagent.privileges import keep_only_net_admin

    config = check(AgentConfig(cluster=context.cluster, node=check_node_name(node), bus=context.bus, **options))
    configure_logging("agent", instance=config.node)
    fastpath = prepare(config.fastpath)  # loading needs CAP_BPF, which is dropped next
    with opened_wire(config.nat) as nat:  # needs CAP_NET_RAW, which is dropped next, too
        keep_only_net_admin(raw=config.gateway, legacy=bool(config.take_over) or config.accept_in_others)
        outbox = Outbox(instance=config.node)
        telemetry = Telemetry.start(
            "agent", instance=config.node, cluster=config.cluster, sink=outbox, metrics=True
        )
        machine = read_machine_uid() if machine_id == "host" else ""
        agent_ = run_agent(
            config,
            uid=uid,
            machine_uid=machine,
            telemetry=telemetry,
            outbox=outbox,
            fastpath=fastpath,
            nat=nat,
            metrics=metrics,
        )
        run(_until_stopped(agent_, telemetry))


async def _until_stopped(agent_: Coroutine[Any, Any, None], telemetry: Any) -> None:
    loop = asyncio.get_running_loop()
    main = asyncio.create_task(agent_, name="agent")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await main
    finally:
        await telemetry.close()


@agent.command("status")
@state_option
@json_option
def status_command(state_dir: Path, as_json: bool) -> None:
    """What the agent of this node knows, has applied, and which conditions it has.

    \b
    Example:
      isthmus agent status --json
    """
    from nodeagent import local_files
    from nodeagent.status_text import show

    status = local_files.read_status(state_dir)
    running = local_files.running(state_dir)
    if as_json:
        print_json({**msgspec.to_builtins(status), "running": running})
    else:
        show(status, running=running)
    if not running or status.state not in {"ready", "starting"}:
        raise SystemExit(1)


@agent.command("capture")
@click.option("--device", default=DEFAULT_DEVICE, show_default=True, help="Name of the tunnel device.")
@click.option("--pod", default="", metavar="ADDRESS", help="Only this pod's packets [all].")
@click.option("--seconds", type=Finite(0.1, 3600), default=10, show_default=True, help="How long.")
@click.argument("expression", nargs=-1)
def capture_command(device: str, pod: str, seconds: float, expression: tuple[str, ...]) -> None:
    """Show packets inside the tunnel (tcpdump), those of fast flows included. Needs root.

    Fast flows pass the tunnel device by; for the time of the capture they take the node's whole stack, and only
    they become slower. EXPRESSION is tcpdump's. What goes to direct peers passes the underlay device instead of
    the tunnel: name that one with --device.

    \b
    Example:
      isthmus agent capture --pod 172.16.0.2 --seconds 5 tcp port 80
    """
    from ipaddress import AddressValueError, IPv4Address

    from events.errors import Usage
    from nodeagent.fastpath.capture import capture

    try:
        address = str(IPv4Address(pod)) if pod else ""
    except AddressValueError as error:
        raise Usage("usage", f"--pod {pod!r} is no IPv4 address of a pod") from error
    was_on = run(capture(device, address, seconds, expression))
    click.echo("fast flows took the stack meanwhile" if was_on else "the fast path was off", err=True)


@agent.command("clean")
@state_option
@click.option("--cni-dir", type=click.Path(path_type=Path), default=DEFAULT_CNI_DIR, show_default=True)
@click.option("--device", default=DEFAULT_DEVICE, show_default=True)
@click.option("--for", "release", type=click.Choice(["0.2.0"]), help="Only what this release does not know.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def clean_command(
    *, state_dir: Path, cni_dir: Path, device: str, release: str | None, yes: bool, as_json: bool
) -> None:
    """Remove everything of ours from this node: device, rows, firewall, CNI file, state. On purpose only.

    The cluster is not told: `isthmus agent leave` or `isthmus node remove` does that. Pods lose their peers.

    With --for 0.2.0 only that goes which an agent of that release would leave for good: the fast path,
    devices of encryption and of ways through NAT, direct routes. Packets go on by the tunnel.
    """
    from nodeagent.clean import clean, clean_newer

    confirm("Pods on this node lose the overlay. Go on?", yes=yes or release is not None)
    removed = run(clean_newer(state_dir, device) if release else clean(state_dir, cni_dir, device))
    if as_json:
        print_json({"removed": removed})
    else:
        click.echo("\n".join(f"removed {what}" for what in removed) or "nothing of ours was here")


@agent.command("give-back")
@state_option
@click.option("--cni-dir", type=click.Path(path_type=Path), default=DEFAULT_CNI_DIR, show_default=True)
@click.option("--device", default=DEFAULT_DEVICE, show_default=True)
@click.option("--to", "old", default="flannel.1", show_default=True, metavar="DEVICE",
              help="The name that the device had.")  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def give_back_command(
    *, state_dir: Path, cni_dir: Path, device: str, old: str, yes: bool, as_json: bool
) -> None:
    """Give a node that was taken over (`--take-over`) back to flannel, while its packets flow.

    Stop the agent first, and start flannel behind it. The node stays a member: other nodes' rows towards it are
    right in both networks.

    \b
    Example: systemctl stop isthmus-agent && isthmus agent give-back --yes
    """
    from nodeagent.clean import give_back

    confirm("Flannel's device, routes, rules and CNI file come back. Go on?", yes=yes)
    done = run(give_back(state_dir, cni_dir, device, old))
    if as_json:
        print_json({"done": done})
    else:
        click.echo("\n".join(done) or "nothing of ours was here")


@agent.command("forget")
@state_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def forget_command(state_dir: Path, yes: bool) -> None:
    """Forget the log that was followed; keep every row, the firewall and the node's identity.

    For `log_replaced`: the bus was restored from a backup that misses what this node has seen. Stop the
    agent, forget, start it: it reads the log that the bus has now and writes only what differs.

    \b
    Example: systemctl stop isthmus-agent && isthmus agent forget
    """
    from nodeagent.clean import forget

    confirm("The log on the bus becomes the truth for this node. Go on?", yes=yes)
    there = forget(state_dir)
    click.echo(
        "the followed log is forgotten; the rows are as they were"
        if there
        else f"no log was followed in {state_dir}"
    )


@agent.command("new-identity")
@state_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_identity_command(state_dir: Path, yes: bool) -> None:
    """Give this installation a new uid: for a cloned machine, a fenced uid, or damaged identity files.

    Started again, the agent joins as a new node and gets a new range; what runs here with the old one it says.

    \b
    Example: systemctl stop isthmus-agent && isthmus agent new-identity --yes
    """
    from nodeagent.clean import new_identity

    confirm("Join anew, with another uid and another range?", yes=yes)
    click.echo(f"the uid is {new_identity(state_dir)} from now on")


@agent.command("install-plugin")
@click.option("--cni-bin-dir", default="", metavar="DIRECTORY",
              help="Where the CNI plugins are [/opt/cni/bin, /usr/lib/cni, /usr/libexec/cni].")  # fmt: skip
def install_plugin_command(cni_bin_dir: str) -> None:
    """Put our CNI plugin beside the standard ones (`portmap`), in this release's version.

    A running agent sees it within seconds and ends the CNI chain with it: then pods are known by name, and the
    container runtime hears whether their packets pass. Nothing changes for pods that run.

    \b
    Example:
      isthmus agent install-plugin --cni-bin-dir /opt/cni/bin
    """
    from events.errors import Refused
    from nodeagent.pods import chain

    places = chain.directories(cni_bin_dir)
    try:
        written = chain.install(places)
    except OSError as error:
        raise Refused(
            "not_permitted", f"the plugin cannot be written ({error}): run as root, or name --cni-bin-dir"
        ) from error
    for path in written:
        click.echo(f"{path} written")
    if not written:
        click.echo(f"nothing to do in {', '.join(places)}: it is there, or no standard plugin (portmap) is")


@agent.command("end-pods")
@state_option
@click.option("--cni-data-dir", default="", metavar="DIRECTORY", help="As the agent's.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def end_pods_command(state_dir: Path, cni_data_dir: str, yes: bool, as_json: bool) -> None:
    """End the pods whose addresses are of a range that this node no longer has.

    Their processes get SIGTERM, and SIGKILL after 10 s; the container runtime starts the pods anew with
    addresses of the new range. Other pods are not touched.

    \b
    Example:
      isthmus agent end-pods --yes
    """
    from nodeagent import local_files
    from nodeagent.pods.end import end
    from nodeagent.pods.leaving import pods_here

    status = local_files.read_status(state_dir)
    data_dir = Path(cni_data_dir or status.pod_directory or state_dir / "pod-addresses")
    strays = pods_here(state_dir, status, data_dir).strays
    if strays:
        confirm(f"End {len(strays)} pods ({', '.join(strays[:10])})?", yes=yes)
    ended = end(strays, data_dir)
    if as_json:
        print_json({"ended": ended})
    else:
        lines = [f"{address}: {count} processes ended" for address, count in ended.items()]
        click.echo("\n".join(lines) or "no pod has an address of a range that this node does not have")


@agent.command("leave")
@bus_options
@state_option
@click.option("--cni-dir", type=click.Path(path_type=Path), default=DEFAULT_CNI_DIR, show_default=True)
@click.option("--reason", default="", help="For the record.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask, and leave although pods run here.")
def leave_command(context: BusContext, state_dir: Path, cni_dir: Path, reason: str, yes: bool) -> None:
    """Tell the cluster that this node leaves; its range drains, and the others remove their rows.

    Stop the agent first, or it joins again at its next start. The node's own rows stay until `clean`. Its
    range is not reused before no pod on it has an address of it.
    """
    from events.bus.connection import connect
    from nodeagent import identity, local_files
    from nodeagent.pods.leaving import is_elsewhere, leave, pods_here, refuse_running

    status = local_files.read_status(state_dir)
    pods = pods_here(state_dir, status, Path(status.pod_directory or state_dir / "pod-addresses"))
    elsewhere = is_elsewhere(state_dir, status)
    if not yes:
        chosen = state_dir != Path(DEFAULT_STATE_DIR)
        way = "isthmus agent leave --yes" + (f" --state-dir {state_dir}" if chosen else "")
        refuse_running(pods, status, hint(context.cluster, way))
    confirm(f"Leave the cluster with {status.node}? Its range drains and its pods lose their network.", yes=yes)

    async def go() -> None:
        client = await connect(context.bus, name=f"isthmus-leave/{status.node}")
        try:
            named = msgspec.structs.replace(status, cluster=context.cluster)
            await leave(
                client, named, pods, reason=reason, cni_dir=cni_dir, actor=context.actor, elsewhere=elsewhere
            )
        finally:
            await client.close()

    run(go())
    identity.left(state_dir)
    click.echo(f"{status.node} has left; {status.range or 'no range'} drains")


@click.command()
@bus_options
@state_option
@click.option("--underlay", default="auto", show_default=True, metavar="auto|DEVICE|ADDRESS")
@click.option("--device", default=DEFAULT_DEVICE, show_default=True)
@json_option
def doctor(context: BusContext, as_json: bool, **options: Any) -> None:
    """Examine this node: everything that the overlay needs, each finding with its fix. Changes nothing.

    \b
    Example:
      isthmus doctor --bus nats://10.0.0.2:4222 --cluster prod
    """
    from nodeagent.doctor import ExaminedNode, examine

    findings = run(examine(ExaminedNode(cluster=context.cluster, bus=context.bus, **options)))
    if as_json:
        print_json(findings)
    else:
        colours = {"ok": "green", "info": "cyan", "warning": "yellow", "problem": "bold red"}
        screen = console()
        for finding in findings:
            fix = f"\n{'':30}→ {finding.fix}" if finding.fix else ""
            screen.print(f"[{colours[finding.level]}]{finding.level:<8}[/] {finding.check:<20} ", end="")
            screen.print(
                "\n".join(map(escaped, (finding.text + fix).split("\n"))), markup=False, soft_wrap=True
            )
    if any(finding.level == "problem" for finding in findings):
        raise SystemExit(1)
