"""``isthmus clb gateway`` and ``… backend``: who holds a pair's addresses, and what stands behind them."""

from __future__ import annotations

from typing import Any

import click

from controlplane.cli.common import send, show_written, write_options
from events.cli.options import BusContext, bus_options, json_option
from events.errors import Usage
from events.protocol.commands import AddBackend, MarkGateway, RemoveBackend


@click.group()
def gateway() -> None:
    """Cloud nodes that hold the addresses of pairs reserved with --provider gateway.

    Their agents run with --gateway (which needs CAP_NET_RAW besides CAP_NET_ADMIN).

    \b
    isthmus clb gateway add cloud-1
    isthmus clb gateway remove cloud-1      its addresses are handed over first
    """


@gateway.command("add")
@click.argument("node")
@write_options
@json_option
@bus_options
def gateway_add(*, context: BusContext, node: str, how: dict[str, Any], as_json: bool) -> None:
    """Let a cloud node hold addresses."""
    reply = send(context, MarkGateway(node=node), how)
    show_written(reply, f"{node} is a gateway", as_json=as_json)


@gateway.command("remove")
@click.argument("node")
@write_options
@json_option
@bus_options
def gateway_remove(*, context: BusContext, node: str, how: dict[str, Any], as_json: bool) -> None:
    """Let a node hold no address any more; the other gateways take over first."""
    reply = send(context, MarkGateway(node=node, on=False), how)
    show_written(reply, f"{node} is no gateway", as_json=as_json)


@click.group()
def backend() -> None:
    """Where connections to the addresses of a pair go.

    \b
    isthmus clb backend add main apiserver 443 10.0.1.11:6443 --check https --check-path /readyz
    isthmus clb backend add main public-services 53 10.0.1.20 --protocol udp --check-port 8080
    isthmus clb backend remove main apiserver 443 10.0.1.11:6443
    """


def _place(text: str, port: int) -> tuple[str, int]:
    """``ADDRESS`` or ``ADDRESS:PORT``. Raises Usage."""
    address, colon, number = text.partition(":")
    if colon and not number.isdecimal():
        raise Usage("usage", f"{text!r} is not ADDRESS or ADDRESS:PORT")
    return address, int(number) if colon else port


@backend.command("add")
@click.argument("name")
@click.argument("purpose")
@click.argument("port", type=click.IntRange(1, 65535))
@click.argument("target", metavar="ADDRESS[:PORT]")
@click.option("--protocol", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True)
@click.option("--affinity", type=click.Choice(["none", "source"]), default="none", show_default=True,
              help="source: a client's connections all go to one backend.")  # fmt: skip
@click.option("--check", type=click.Choice(["tcp", "http", "https", "none"]), default=None,
              help="How its health is checked [tcp; none for UDP without --check-port].")  # fmt: skip
@click.option("--check-path", default="/", show_default=True, help="With --check http: 2xx and 3xx are good.")
@click.option("--check-port", type=click.IntRange(0, 65535), default=0, help="[the backend's own]")
@click.option("--check-interval", "check_interval_s", type=float, default=1.0, show_default=True,
              metavar="SECONDS")  # fmt: skip
@click.option("--check-timeout", "check_timeout_s", type=float, default=1.0, show_default=True,
              metavar="SECONDS")  # fmt: skip
@click.option("--rise", type=int, default=2, show_default=True, help="Good answers in a row to be healthy.")
@click.option("--fall", type=int, default=2, show_default=True, help="Bad answers in a row to be unhealthy.")
@write_options
@json_option
@bus_options
def backend_add(
    *,
    context: BusContext,
    name: str,
    purpose: str,
    port: int,
    target: str,
    protocol: Any,
    check: Any,
    check_port: int,
    how: dict[str, Any],
    as_json: bool,
    **settings: Any,
) -> None:
    """Let connections to PORT of PURPOSE's address go to a backend; repeated, it changes the settings."""
    address, backend_port = _place(target, port)
    check = check or ("none" if protocol == "udp" and not check_port else "tcp")
    command = AddBackend(
        reservation=name,
        purpose=purpose,
        port=port,
        address=address,
        backend_port=backend_port,
        protocol=protocol,
        check=check,
        check_port=check_port,
        **settings,
    )
    reply = send(context, command, how)
    show_written(reply, f"{purpose} {protocol} {port} → {address}:{backend_port}", as_json=as_json)


@backend.command("remove")
@click.argument("name")
@click.argument("purpose")
@click.argument("port", type=click.IntRange(1, 65535))
@click.argument("target", metavar="ADDRESS[:PORT]")
@click.option("--protocol", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True)
@write_options
@json_option
@bus_options
def backend_remove(
    *,
    context: BusContext,
    name: str,
    purpose: str,
    port: int,
    target: str,
    protocol: Any,
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Send no new connection to a backend; those in progress stay with it."""
    address, backend_port = _place(target, port)
    command = RemoveBackend(
        reservation=name,
        purpose=purpose,
        port=port,
        address=address,
        backend_port=backend_port,
        protocol=protocol,
    )
    reply = send(context, command, how)
    show_written(reply, f"{purpose} {protocol} {port} → {address}:{backend_port} removed", as_json=as_json)
