"""`isthmus agent` and `isthmus doctor`: the node's side of the command line."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

import click

from events.cli import BusContext, bus_options, run
from events.subjects import check_node_name
from nodeagent.config import DEFAULT_CNI_DIR, DEFAULT_DEVICE, DEFAULT_STATE_DIR, AgentConfig, check

state_option = click.option(
    "--state-dir",
    envvar="ISTHMUS_STATE_DIR",
    type=click.Path(path_type=Path),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Where the agent keeps its uid, cache and status.",
)


class _RunByDefault(click.Group):
    """`isthmus agent --node a …` means `isthmus agent run --node a …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in {"-h", "--help"}):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault)
def agent() -> None:
    """The agent of a node: joins, and keeps the kernel's tunnel rows as the log says.

    \b
    On a cloud node:    isthmus agent --bus nats://10.0.0.2:4222 --cluster prod
    In a data centre:   isthmus agent --bus … --cluster prod --kind external --site ams
    Behind a NAT:       isthmus agent … --announced 203.0.113.7
    Look:               isthmus agent status
    Take it all away:   isthmus agent clean

    Without a subcommand it runs the agent. It needs CAP_NET_ADMIN and drops everything else.
    """


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
@click.option("--cni-dir", type=click.Path(path_type=Path), default=DEFAULT_CNI_DIR, show_default=True,
              help="Where the CNI configuration goes.")  # fmt: skip
@click.option("--cni-data-dir", default="", metavar="DIRECTORY",
              help="Where host-local keeps the pods' addresses [the plugin's default].")  # fmt: skip
@click.option("--cni-plugin", type=click.Choice(["ptp", "bridge"]), default="ptp", show_default=True,
              help="How pods are attached.")  # fmt: skip
@click.option("--device", default=DEFAULT_DEVICE, show_default=True, help="Name of the tunnel device.")
@click.option("--mtu", type=int, default=0, help="Inner MTU in bytes [underlay − 50, followed].")
@click.option("--gro/--no-gro", default=True, show_default=True,
              help="Receive offload on the tunnel; without it small packets pass faster.")  # fmt: skip
@click.option("--firewall/--no-firewall", default=True, show_default=True,
              help="Shield pods by a nftables table of our own.")  # fmt: skip
@click.option("--resync", "resync_s", type=float, default=75.0, show_default=True, metavar="SECONDS",
              help="Longest time between two comparisons with the kernel.")  # fmt: skip
@click.option("--heartbeat", "heartbeat_s", type=float, default=5.0, show_default=True, metavar="SECONDS",
              help="Longest time between two reports.")  # fmt: skip
def run_command(context: BusContext, node: str, uid: str, **options: Any) -> None:
    """Run the agent until SIGTERM. Its rows stay when it stops.

    \b
    Example:
      isthmus agent --bus nats://10.0.0.2:4222 --cluster prod --underlay eth0
    """
    from events.telemetry import Telemetry
    from events.telemetry_logs import configure_logging
    from nodeagent.agent import Agent
    from nodeagent.privileges import keep_only_net_admin

    config = check(AgentConfig(cluster=context.cluster, node=check_node_name(node), bus=context.bus, **options))
    configure_logging("agent", instance=config.node)
    keep_only_net_admin()
    telemetry = Telemetry.start("agent", instance=config.node, cluster=config.cluster)
    run(_until_stopped(Agent(config, uid=uid, telemetry=telemetry), telemetry))


async def _until_stopped(agent_: Any, telemetry: Any) -> None:
    loop = asyncio.get_running_loop()
    main = asyncio.create_task(agent_.run(), name="agent")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await main
    finally:
        await telemetry.close()
