"""``isthmus up``: bus and controller in one process, for evaluation and small sites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec
from click.core import ParameterSource

from controlplane.cli.cluster import parse_network
from controlplane.cli.common import (
    PODS_PER_NODE,
    addresses_for,
    compatible_option,
    http_option,
    usable_pods_option,
)
from controlplane.console.address import is_loopback
from events import subjects
from events.cli.options import default_actor, json_option
from events.input_files import read_whole

if TYPE_CHECKING:
    from controlplane.controller.controller import ControllerOptions
    from events.protocol.commands import DefineCluster
    from events.types import EncryptionScope


class Lock(NamedTuple):
    """What keeps strangers out of the bus: text for the server, and this controller's own key to it."""

    rules: str
    credentials: str
    ca: str


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("isthmus-data"),
    envvar="ISTHMUS_DATA",
    show_default=True,
    help="Directory for everything that is kept.",
)
@click.option(
    "--cluster", envvar="ISTHMUS_CLUSTER", default="default", show_default=True, help="Name of the cluster."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the bus listens on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4222,
    show_default=True,
    help="Port that the bus listens on; 0 takes any.",
)
@click.option("--cidr", help="Define the cluster at start, with this container CIDR.")
@click.option(
    "--pods",
    default=PODS_PER_NODE,
    show_default=True,
    help="With --cidr: addresses per node, rounded up to 2ⁿ: 64 addresses, 61 pods.",
)
@usable_pods_option
@click.option("--services", default=256, show_default=True, help="With --cidr: most Services.")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="KIND=CIDR",
    help="With --cidr: a network to stay clear of; KIND is vpc, idc, clb or route. Repeatable.",
)
@click.option(
    "--quarantine", default=60.0, show_default=True, help="With --cidr: seconds a released range rests."
)
@click.option(
    "--encrypt",
    type=click.Choice(("off", "sites", "all")),
    help="With --cidr: what WireGuard encrypts between nodes, see `isthmus cluster encrypt`.",
)
@click.option(
    "--server-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text for the bus's configuration: accounts and TLS (`isthmus deploy nats` makes it).",
)
@click.option(
    "--creds", envvar="ISTHMUS_CREDS", metavar="FILE", help="With --server-config: a controller's credentials."
)
@click.option(
    "--ca", envvar="ISTHMUS_CA", metavar="FILE", help="With --server-config: the bus's certificate authority."
)
@click.option(
    "--insecure", is_flag=True, help="Open the bus beyond this machine without credentials, knowingly."
)
@compatible_option
@http_option
@click.option("--log-level", default="warning", show_default=True, help="debug, info, warning or error.")
@json_option
@click.pass_context
def up(  # noqa: PLR0917  click passes options by name
    running: click.Context,
    data: Path,
    cluster: str,
    host: str,
    port: int,
    cidr: str | None,
    pods: int,
    usable_pods: int | None,
    services: int,
    networks: tuple[str, ...],
    quarantine: float,
    encrypt: EncryptionScope | None,
    server_config: Path | None,
    creds: str | None,
    ca: str | None,
    insecure: bool,
    compatible_with: str,
    http: str,
    log_level: str,
    as_json: bool,
) -> None:
    """Run the bus and a controller in this process.

    Everything is kept under --data: the log (JetStream), and the read model, which is made anew when
    it is lost. Stop it with Ctrl-C or SIGTERM; the kernel of the nodes keeps its rows meanwhile.

    \b
    isthmus up
    isthmus up --cidr 172.16.0.0/16 --pods 64 --services 256 \\
        --network vpc=10.0.0.0/16
    isthmus up --host 0.0.0.0 --data /var/lib/isthmus

    With --json it prints one line once it is ready:
    {"bus": "nats://127.0.0.1:4222", "cluster": "default", "sequence": 0, …}
    """
    from controlplane.cli.serving import run, setup_logging
    from controlplane.controller.controller import ControllerOptions
    from events.protocol.commands import DefineCluster

    subjects.check_label(cluster, "cluster")
    define: DefineCluster | None = None
    if cidr:
        define = DefineCluster(
            container_cidr=cidr,
            pods_per_node=addresses_for(pods, usable_pods),
            services=services,
            networks=tuple(parse_network(item) for item in networks),
            quarantine_s=quarantine,
            encrypt=encrypt or msgspec.UNSET,
        )
    setup_logging(log_level, instance="up")
    warning = open_bus_warning(host, port, locked=server_config is not None, knowingly=insecure)
    if warning:
        click.echo(warning, err=True)
    lock = Lock(read_whole(server_config).decode() if server_config else "", creds or "", ca or "")
    # A cluster that an earlier release defined, with its smaller default, starts by the same command line.
    asked = usable_pods is not None or running.get_parameter_source("pods") is not ParameterSource.DEFAULT
    options = ControllerOptions(cluster=cluster, data=data, name="up", compatible_with=compatible_with)
    run(_up(options, host, port, define, lock=lock, http=http, as_json=as_json, any_pods=not asked))


def open_bus_warning(host: str, port: int, *, locked: bool, knowingly: bool) -> str:
    """What a bus opens that others can reach and that has no locks; empty when it opens nothing."""
    if locked or knowingly or is_loopback(host):
        return ""
    return (
        f"WARNING: the bus on {host}:{port} has no credentials and no TLS: whoever reaches that port can "
        "change the cluster, write its log and stop it. For real use give --server-config (`isthmus deploy "
        "nats` makes it); or close the port to others, and say --insecure to hear this no more."
    )


async def _up(
    options: ControllerOptions,
    host: str,
    port: int,
    define: DefineCluster | None,
    *,
    lock: Lock,
    http: str,
    as_json: bool,
    any_pods: bool,
) -> None:
    from controlplane.cli.controller_process import controller_process
    from controlplane.cli.serving import console_lines, say, serve, standstill_line
    from events.bus.client import ControllerClient
    from events.bus.connection import BusOptions, connect
    from events.bus.server.config import ServerOptions
    from events.bus.server.process import EmbeddedServer
    from events.cli.tables import print_json

    cluster, data = options.cluster, options.data
    store = data / "jetstream"
    store.mkdir(parents=True, exist_ok=True)
    where = str(data.resolve())
    async with EmbeddedServer(ServerOptions(store_dir=store, host=host, port=port, extra=lock.rules)) as server:
        bus = BusOptions(servers=(server.url,), credentials=lock.credentials, ca=lock.ca)
        async with controller_process(msgspec.structs.replace(options, bus=bus), http=http) as running:
            controller = running.controller

            async def on_ready() -> None:
                halted = controller.replica.halted
                if define is not None and halted is None:
                    wanted, there = define, controller.replica.state.definition
                    if there is not None and any_pods:
                        wanted = msgspec.structs.replace(define, pods_per_node=there.max_pods_per_node)
                    client = await connect(bus, name="isthmus-up")
                    try:
                        await ControllerClient(client, cluster, actor=default_actor()).send(wanted)
                    finally:
                        await client.close()
                facts = {
                    "bus": server.url,
                    "cluster": cluster,
                    "sequence": controller.replica.head.sequence,
                    "defined": controller.replica.state.definition is not None,
                    "console": running.address,
                    "data": where,
                    "halted": halted.message if halted is not None else "",
                }
                if as_json:
                    print_json(facts)
                    return
                say(f"bus         {server.url}")
                say(f"cluster     {cluster} (event {facts['sequence']})")
                console_lines(running)
                say(f"data        {facts['data']}")
                standstill_line(controller)
                if not facts["defined"]:
                    say(
                        f"next        isthmus cluster define --bus {server.url} --cluster {cluster} "
                        "--cidr 172.16.0.0/16"
                    )

            await serve(controller, on_ready, leading=True, failed=server.failed())
