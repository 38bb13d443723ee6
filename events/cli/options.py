"""What every ``isthmus`` command shares: the options of the bus, and running a command's coroutine.

It lives in ``events`` because the agent's and the replay tool's commands need it too and may not import
the control plane. What they print is in :mod:`events.cli.tables`.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from events import subjects
from events.cli.bus_urls import bus_servers
from events.cli.hints import reaching
from events.cli.output import json_option
from events.errors import IsthmusError, Usage

if TYPE_CHECKING:
    from events.bus.connection import BusOptions
    from events.cli.traced_client import TracedClient

__all__ = [
    "BusContext",
    "asked",
    "awaited",
    "bus_options",
    "confirm",
    "controller",
    "default_actor",
    "json_option",
    "parse_pairs",
    "run",
    "suggesting",
]

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


class BusContext(msgspec.Struct, frozen=True, kw_only=True):
    """Which cluster on which bus, as the options said."""

    cluster: str
    bus: BusOptions
    actor: str


def default_actor() -> str:
    """Who is at the keyboard: ``user@host``. Stored with every event that a command causes."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def bus_options(function: Function) -> Function:
    """Add ``--bus``, ``--cluster`` and credentials; the command receives one ``context: BusContext``."""

    @click.option(
        "--bus", envvar="ISTHMUS_BUS", metavar="URL[,URL…]", help="NATS servers [nats://127.0.0.1:4222]."
    )
    @click.option(
        "--cluster", envvar="ISTHMUS_CLUSTER", default="default", show_default=True, help="Name of the cluster."
    )
    @click.option("--creds", envvar="ISTHMUS_CREDS", metavar="FILE", help="NATS credentials file.")
    @click.option("--ca", envvar="ISTHMUS_CA", metavar="FILE", help="Certificate authority (PEM) of the bus.")
    @click.option("--tls-cert", envvar="ISTHMUS_TLS_CERT", metavar="FILE", help="Client certificate (PEM).")
    @click.option("--tls-key", envvar="ISTHMUS_TLS_KEY", metavar="FILE", help="Key of the client certificate.")
    @click.option("--actor", envvar="ISTHMUS_ACTOR", help="Who asks, for the record [user@host].")
    @wraps(function)
    def wrapper(
        *args: Any,
        bus: str | None,
        cluster: str,
        creds: str | None,
        ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        actor: str | None,
        **rest: Any,
    ) -> Any:
        from events.bus.connection import DEFAULT_BUS, BusOptions

        context = BusContext(
            cluster=subjects.check_label(cluster, "cluster"),
            bus=BusOptions(
                servers=bus_servers(bus or DEFAULT_BUS),
                credentials=creds or "",
                ca=ca or "",
                certificate=tls_cert or "",
                key=tls_key or "",
            ),
            actor=actor or default_actor(),
        )
        try:
            return function(*args, context=context, **rest)
        except IsthmusError as error:
            error.message = reaching(error.message)
            raise

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


@asynccontextmanager
async def controller(context: BusContext) -> AsyncIterator[TracedClient]:
    """A connection to the cluster's controllers, closed behind the block. Raises Unavailable.

    A cancellation inside of the block closes the connection, too.
    """
    from events.bus.connection import connect
    from events.cli.traced_client import TracedClient

    client = await connect(context.bus, name=f"isthmus-cli/{context.actor}")
    traced = TracedClient(client, context.cluster, actor=context.actor)
    try:
        yield traced
    finally:
        await traced.hand_over()
        await client.close()


def awaited(function: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    """A command that is a coroutine, as click calls it; see :func:`run`."""

    @wraps(function)
    def wrapper(*args: Any, **options: Any) -> T:
        return run(function(*args, **options))

    return wrapper


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. Ctrl-C cancels it, waits for its cleanup and exits 130; so does SIGTERM, with
    143, and SIGHUP, with 129.
    """
    return asyncio.run(_ending(main))


async def _ending(main: Coroutine[Any, Any, T]) -> T:
    loop, task, told = asyncio.get_running_loop(), asyncio.current_task(), 0
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def end(number: int) -> None:
        nonlocal told
        told = number
        if task is not None:
            task.cancel()

    with suppress(ValueError, RuntimeError):  # signals come to the main thread alone
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                loop.add_signal_handler(number, end, number)
    try:
        return await main
    except asyncio.CancelledError:
        if told:
            raise SystemExit(128 + told) from None
        raise
    finally:
        with suppress(ValueError, RuntimeError):
            for number, handler in before.items():
                if loop.remove_signal_handler(number):
                    signal.signal(number, handler)


def suggesting(
    error: click.UsageError, given: str, known: Iterable[str], ctx: click.Context | None
) -> click.UsageError:
    """The same error with the nearest of the known words, if any is near."""
    near = get_close_matches(given, list(known))
    if not near:
        return error
    return click.UsageError(f"{error.message} Did you mean {' or '.join(map(repr, near))}?", ctx=ctx)


def parse_pairs(values: Iterable[str], what: str) -> dict[str, str]:
    """``("code=reason", …)`` → a dict. Raises Usage(usage) when one has no ``=``."""
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not equals or not key or not rest:
            raise Usage("usage", f"{what} {value!r} is not of the form NAME=VALUE")
        pairs[key] = rest
    return pairs


def asked() -> bool:
    """Whether somebody can be asked: standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone; without a terminal ``--yes`` is needed.

    Raises a usage error without a terminal or consent.
    """
    if yes:
        return
    if not asked():
        raise Usage("usage", f"{question} There is no terminal to ask on: add --yes to confirm.")
    click.confirm(question, abort=True)
