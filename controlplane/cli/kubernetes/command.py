"""``isthmus kubernetes``: the bridge to Kubernetes as a process of its own, beside the controllers."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from events.cli.listen import METAVAR, Listen
from events.cli.numbers import Finite
from events.cli.options import BusContext, bus_options

if TYPE_CHECKING:
    from controlplane.kubernetes.beside import BesideBridge, BridgeOptions

Function = TypeVar("Function", bound=Callable[..., Any])


def following_options(function: Function) -> Function:
    """What the bridge follows further; the command receives them by the names of
    :class:`controlplane.kubernetes.members.Following`."""

    @click.option(
        "--fence-deleted",
        "fence_deleted_s",
        type=Finite(0, 86_400),
        default=0.0,
        show_default=True,
        metavar="SECONDS",
        help="Fence a silent member whose Kubernetes Node was deleted this long ago; 0: never.",
    )
    @click.option(
        "--evict-stale-pods",
        is_flag=True,
        envvar="ISTHMUS_EVICT_STALE_PODS",
        help="Evict pods that kept an address of a Node's earlier range; needs the rights that `isthmus deploy "
        "kubernetes --to manifests --evict-stale-pods` writes.",
    )
    @click.option(
        "--apiserver-backends",
        default="",
        metavar="RESERVATION",
        envvar="ISTHMUS_APISERVER_BACKENDS",
        help="The backends behind the apiserver address of this CLB reservation follow Kubernetes' own list of "
        "API servers; those that an operator added stay.",
    )
    @click.option(
        "--service-backends",
        is_flag=True,
        envvar="ISTHMUS_SERVICE_BACKENDS",
        help="The backends behind CLB reservations' other addresses follow the Services with the annotation "
        "isthmus.io/public-services: RESERVATION; those that an operator added stay.",
    )
    @wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


@click.command()
@bus_options
@click.option("--name", envvar="ISTHMUS_BRIDGE", help="Name of this process [the host's].")
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Access to the API server [as a pod].")  # fmt: skip
@click.option("--namespace", default="isthmus-system", show_default=True, help="Where the Lease is.")
@following_options
@click.option("--metrics", type=Listen(), default="off", show_default=True, metavar=METAVAR,
              help="Where /metrics is served, and /healthz: 503 while it could not work.")  # fmt: skip
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error.")
def kubernetes(
    *, context: BusContext, name: str | None, kubeconfig: Path | None, namespace: str, metrics: str,
    log_level: str, **following: Any,
) -> None:  # fmt: skip
    """Keep Kubernetes Nodes in step beside the controllers, instead of `isthmus controller --kubernetes`.

    Start two or more, anywhere that reaches the bus and the API server: the one that holds the Lease
    isthmus-bridge works, another takes over within 20 seconds. Their credentials are those of
    `isthmus credentials bridge NAME`. Run no controller with --kubernetes beside them.

    \b
    isthmus kubernetes --bus tls://bus-1.example:4222 --cluster prod \\
        --creds bridge.creds --kubeconfig FILE
    """
    from controlplane.cli.serving import run, setup_logging
    from controlplane.kubernetes.beside import BridgeOptions

    name = name or socket.gethostname()
    setup_logging(log_level, instance=name)
    options = BridgeOptions(
        cluster=context.cluster,
        name=name,
        bus=context.bus,
        kubeconfig=kubeconfig,
        namespace=namespace,
        following=following,
    )
    run(_serve(options, metrics))


async def _serve(options: BridgeOptions, metrics: str) -> None:
    from controlplane.kubernetes.beside import beside
    from events.telemetry.http import serve_where

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        bridge = await stack.enter_async_context(beside(options))
        await stack.enter_async_context(
            serve_where(lambda: bridge_metrics(bridge), metrics, healthy=lambda: bridge.unwell)
        )
        running = asyncio.create_task(bridge.run(), name="kubernetes")
        click.echo(
            f"bridge {options.name} follows cluster {options.cluster}; Lease {options.namespace}/isthmus-bridge"
        )
        try:
            await stop.wait()
        finally:
            running.cancel()
            await asyncio.wait({running})


def bridge_metrics(bridge: BesideBridge) -> bytes:
    """Its numbers, as Prometheus reads them."""
    nodes = bridge.following.bridge if bridge.following is not None else None
    numbers = (
        ("isthmus_bridge_working", "gauge", "1 while it holds the Lease and may write.", int(bridge.working)),
        ("isthmus_bridge_nodes", "gauge", "Nodes of the API server.", len(nodes.nodes) if nodes else 0),
        ("isthmus_bridge_written_total", "counter", "Nodes written to.", nodes.written if nodes else 0),
        ("isthmus_bridge_failed_total", "counter", "Tries to write that failed.", nodes.failed if nodes else 0),
    )
    return "".join(
        f"# HELP {name} {words}\n# TYPE {name} {kind}\n{name} {value}\n" for name, kind, words, value in numbers
    ).encode()
