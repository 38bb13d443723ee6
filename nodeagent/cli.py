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

from events.cli.listen import METAVAR, Listen
from events.cli.numbers import Finite
from events.cli.options import BusContext, bus_options, json_option, run
from events.cli.tables import console, escaped, print_json
from events.subjects import check_node_name
from nodeagent.commands.leave import leave_command
from nodeagent.commands.options import state_option
from nodeagent.commands.pods import end_pods_command, install_plugin_command
from nodeagent.commands.removal import clean_command, forget_command, give_back_command, new_identity_command
from nodeagent.commands.wireguard import rotate_key_command, wireguard_options
from nodeagent.config import DEFAULT_CNI_DIR, DEFAULT_DEVICE, AgentConfig, check

DEFAULT_METRICS = "127.0.0.1:7481"


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


for command in (
    rotate_key_command, clean_command, give_back_command, forget_command, new_identity_command,
    install_plugin_command, end_pods_command, leave_command,
):  # fmt: skip
    agent.add_command(command)


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
    they become slower. EXPRESSION is tcpdump's, with its own options behind `--`. What goes to direct peers
    passes the underlay device instead of the tunnel: name that one with --device.

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
