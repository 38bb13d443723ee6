"""``isthmus clb gateway`` and ``… backend``: who holds a pair's addresses, and what stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from controlplane.cli.common import send, show_written, write_options
from events.cli.options import BusContext
from events.errors import Usage
from events.protocol.clb import BackendKey
from events.protocol.commands import AddBackend, MarkGateway, RemoveBackend

Function = TypeVar("Function", bound=Callable[..., Any])


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
def gateway_add(*, context: BusContext, node: str, how: dict[str, Any], as_json: bool) -> None:
    """Let a cloud node hold addresses.

    \b
    Example: isthmus clb gateway add cloud-1
    """
    reply = send(context, MarkGateway(node=node), how)
    show_written(reply, f"{node} is a gateway", as_json=as_json)


@gateway.command("remove")
@click.argument("node")
@write_options
def gateway_remove(*, context: BusContext, node: str, how: dict[str, Any], as_json: bool) -> None:
    """Let a node hold no address any more; the other gateways take over first.

    \b
    Example: isthmus clb gateway remove cloud-1
    """
    reply = send(context, MarkGateway(node=node, on=False), how)
    show_written(reply, f"{node} is no gateway", as_json=as_json)


@click.group()
def backend() -> None:
    """Where connections to the addresses of a pair go.

    \b
    isthmus clb backend add main apiserver 443 10.0.1.11:6443 --check https \\
        --check-path /readyz
    isthmus clb backend add main public-services 53 10.0.1.20 --protocol udp \\
        --check-port 8080
    isthmus clb backend remove main apiserver 443 10.0.1.11:6443
    """


def backend_arguments(function: Function) -> Function:
    """Add what names a backend; the command receives it as one ``key: BackendKey``. Raises Usage."""

    @click.argument("name")
    @click.argument("purpose")
    @click.argument("port", type=click.IntRange(1, 65535))
    @click.argument("target", metavar="ADDRESS[:PORT]")
    @click.option("--protocol", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True)
    @wraps(function)
    def wrapper(*args: Any, name: str, purpose: str, port: int, target: str, protocol: Any, **rest: Any) -> Any:
        address, colon, number = target.partition(":")
        if colon and not number.isdecimal():
            raise Usage("usage", f"{target!r} is not ADDRESS or ADDRESS:PORT")
        key = BackendKey(name, purpose, protocol, port, address, int(number) if colon else port)
        return function(*args, key=key, **rest)

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


@backend.command("add")
@backend_arguments
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
def backend_add(
    *,
    context: BusContext,
    key: BackendKey,
    check: Any,
    check_port: int,
    how: dict[str, Any],
    as_json: bool,
    **settings: Any,
) -> None:
    """Let connections to PORT of PURPOSE's address go to a backend; repeated, it changes the settings.

    \b
    Example:
      isthmus clb backend add main apiserver 443 10.0.1.11:6443 \\
          --check https --check-path /readyz
    """
    check = check or ("none" if key.protocol == "udp" and not check_port else "tcp")
    reply = send(context, AddBackend(**_named(key), check=check, check_port=check_port, **settings), how)
    show_written(reply, _route(key), as_json=as_json)


@backend.command("remove")
@backend_arguments
@write_options
def backend_remove(*, context: BusContext, key: BackendKey, how: dict[str, Any], as_json: bool) -> None:
    """Send no new connection to a backend; those in progress stay with it.

    \b
    Example: isthmus clb backend remove main apiserver 443 10.0.1.11:6443
    """
    reply = send(context, RemoveBackend(**_named(key)), how)
    show_written(reply, f"{_route(key)} removed", as_json=as_json)


def _named(key: BackendKey) -> dict[str, Any]:
    """As commands name a backend."""
    named = key._asdict()
    return {"reservation": named.pop("name"), **named}


def _route(key: BackendKey) -> str:
    return f"{key.purpose} {key.protocol} {key.port} → {key.address}:{key.backend_port}"
