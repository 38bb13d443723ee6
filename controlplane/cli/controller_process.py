"""A controller as a process: with its spans, metrics, record of the agents and the console.

Used by ``isthmus up`` and ``isthmus controller``. The console is optional in every sense: without its
extra installed, or when its port is taken, the controller runs all the same and says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from controlplane.console.address import CONSOLE
from controlplane.console.inspector import Inspector
from controlplane.controller.controller import Controller, ControllerOptions, Queries
from controlplane.controller.observability.live import LiveNumbers
from controlplane.controller.observability.setup import Observability
from controlplane.controller.observability.trace_query import TraceAnswers, TraceQuery, TracesQuery
from events.errors import Unavailable, Usage

log = logging.getLogger("isthmus.http")


class ControllerProcess(NamedTuple):
    """``address`` is where the console is served; empty when it is not, and ``why_not`` says why."""

    controller: Controller
    address: str
    why_not: str


def parse_where(where: str) -> tuple[str, int]:
    """``HOST:PORT`` → both. Raises Usage(usage)."""
    host, colon, number = where.rpartition(":")
    if not colon or not number.isdigit() or int(number) > 65535:
        raise Usage("usage", f"--http {where!r} is not HOST:PORT or off")
    return host.strip("[]") or "127.0.0.1", int(number)


@asynccontextmanager
async def controller_process(
    options: ControllerOptions,
    *,
    http: str = CONSOLE,
    kubernetes: Path | bool = False,
    **bridge: Any,
) -> AsyncIterator[ControllerProcess]:
    """A started controller (its ``run`` is the caller's), measured and served until the block is left.

    ``kubernetes`` is a kubeconfig file, or True inside a cluster; ``bridge`` are the further arguments of
    :func:`controlplane.kubernetes.members.bridging`. ``http`` is ``HOST:PORT`` or ``off``;
    the token comes from ``ISTHMUS_HTTP_TOKEN``. When the default
    port is taken (another controller on this machine) any free one is used.

    Raises what :meth:`Controller.start` raises, and Usage(usage) for an address that demands a token. A
    cancellation inside of the block closes all of it, too.
    """
    token = os.environ.get("ISTHMUS_HTTP_TOKEN", "")
    async with AsyncExitStack() as stack:
        observability = await stack.enter_async_context(
            Observability.open(options.cluster, options.name or "controller", options.data)
        )
        controller = await Controller.start(
            options,
            observer=observability.observer,
            conditions=observability.conditions,
            queries=lambda made: _trace_queries(TraceAnswers(made.log, made.replica, observability.spans)),
        )
        source = Inspector(
            controller.log,
            controller.replica,
            controller.projector,
            controller.liveness,
            observability,
            mesh=controller.mesh_answers,
            pods_of=controller.pod_facts.of,
            leading=lambda: controller.leadership.leading,
        )
        live = LiveNumbers(
            controller.replica,
            controller.projector,
            controller.liveness,
            observability.spans,
            observability.history,
            observability.convergence,
            leading=lambda: controller.leadership.leading,
            waiting=lambda: controller.committer.statistics()["waiting"],
            site_paths=controller.mesh_answers.sites,
            credentials=options.bus.credentials,
        )
        await stack.enter_async_context(
            observability.following(controller.changes, controller.liveness, live, controller.client)
        )
        if kubernetes:
            from controlplane.kubernetes.members import bridging

            kubeconfig = kubernetes if isinstance(kubernetes, Path) else None
            await stack.enter_async_context(bridging(controller, kubeconfig, **bridge))
        address, why_not = "", "switched off"
        if http != "off":
            address, why_not = await _serve(stack, source, http, token)
        yield ControllerProcess(controller, address, why_not)


def _trace_queries(traces: TraceAnswers) -> Queries:
    return {TraceQuery.name: traces.trace, TracesQuery.name: traces.traces}


async def _serve(stack: AsyncExitStack, source: Inspector, where: str, token: str) -> tuple[str, str]:
    try:
        from controlplane.console.server import serve
    except ModuleNotFoundError as error:
        return "", f"needs {error.name!r}, of the extra 'console' of where this copy came from"
    host, port = parse_where(where)
    try:
        address = await stack.enter_async_context(serve(source, host=host, port=port, token=token))
    except Unavailable as error:
        if where != CONSOLE:
            raise
        log.info("%s; taking another port", error.message)
        address = await stack.enter_async_context(serve(source, host=host, port=0, token=token))
    return address, ""
