"""``isthmus controller``: one of the controllers of a cluster, and the care of its read model."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.common import compatible_option, http_option
from controlplane.cli.kubernetes.command import following_options
from events.cli.options import BusContext, bus_options, json_option

if TYPE_CHECKING:
    from controlplane.controller.controller import ControllerOptions

_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("isthmus-controller"),
    envvar="ISTHMUS_DATA",
    show_default=True,
    help="Directory of this controller's read model.",
)


@click.group(invoke_without_command=True)
@bus_options
@_data
@click.option("--name", envvar="ISTHMUS_CONTROLLER", help="Name of this controller [host-pid].")
@click.option(
    "--replicas", type=click.Choice(["1", "3"]), help="Servers that keep the log [as it is; 1 when new]."
)
@click.option("--verify-log", is_flag=True, help="Fold the whole log at start; do not trust the read model.")
@click.option(
    "--on-poison",
    type=click.Choice(["stop", "park"]),
    default="stop",
    show_default=True,
    help="What to do at an event that contradicts the log before it, or is damaged: stand still and refuse "
    "commands, or write into the log that it is parked, with what its command wrote: then all leave it out.",
)
@click.option(
    "--kubernetes",
    is_flag=True,
    envvar="ISTHMUS_KUBERNETES",
    help="Keep Kubernetes Nodes in step: podCIDR, NetworkUnavailable. As a pod, or by --kubeconfig.",
)
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Access to the API server; implies --kubernetes.")  # fmt: skip
@following_options
@compatible_option
@click.option(
    "--define", "definition", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Define the cluster by this file (JSON, of `isthmus deploy kubernetes`) while its log is empty.",
)  # fmt: skip
@http_option
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error.")
@json_option
@click.pass_context
def controller(  # noqa: PLR0917  click passes options by name
    click_context: click.Context,
    /,
    context: BusContext,
    data: Path,
    name: str | None,
    replicas: str | None,
    verify_log: bool,
    on_poison: Any,
    kubernetes: bool,
    kubeconfig: Path | None,
    compatible_with: str,
    definition: Path | None,
    log_level: str,
    as_json: bool,
    **process: Any,
) -> None:
    """Run a controller.

    Start several for one cluster, on any machines: one leads, the others fold the log along and take
    over within seconds. Each needs a --data directory of its own. SIGTERM hands over without a
    failed command.

    \b
    isthmus controller --bus nats://bus-1:4222,nats://bus-2:4222 --cluster prod \\
        --replicas 3
    isthmus controller rebuild --cluster prod
    """
    if click_context.invoked_subcommand is not None:
        return
    from controlplane.cli.serving import run, setup_logging
    from controlplane.controller.controller import ControllerOptions

    name = name or socket.gethostname()
    setup_logging(log_level, instance=name)
    options = ControllerOptions(
        cluster=context.cluster,
        data=data,
        bus=context.bus,
        name=name,
        replicas=int(replicas) if replicas else None,
        verify_log=verify_log,
        on_poison=on_poison,
        compatible_with=compatible_with,
    )
    run(_controller(options, definition, as_json=as_json, kubernetes=kubeconfig or kubernetes, **process))


async def _controller(
    options: ControllerOptions, definition: Path | None, *, as_json: bool, **process: Any
) -> None:
    from controlplane.cli.controller_process import controller_process
    from controlplane.cli.serving import console_lines, say, serve, standstill_line
    from controlplane.controller.defining import defining, read_definition
    from events.cli.tables import print_json

    wanted = read_definition(definition) if definition is not None else None
    async with controller_process(options, **process) as running:
        controller = running.controller

        async def on_ready() -> None:
            sequence, halted = controller.replica.head.sequence, controller.replica.halted
            if as_json:
                print_json(
                    {
                        "cluster": options.cluster,
                        "controller": controller.name,
                        "sequence": sequence,
                        "console": running.address,
                        "halted": halted.message if halted is not None else "",
                    }
                )
            else:
                say(f"controller  {controller.name}")
                say(f"cluster     {options.cluster} (event {sequence})")
                console_lines(running)
                standstill_line(controller)

        async with defining(controller, wanted):
            await serve(controller, on_ready, leading=False)


@controller.command()
@bus_options
@_data
@json_option
def rebuild(context: BusContext, data: Path, as_json: bool) -> None:
    """Make the read model anew from the log, beside the live one, and switch when the digests agree.

    A controller that runs on the same --data goes on meanwhile and picks the new file up by itself.

    \b
    isthmus controller rebuild --cluster prod --data /var/lib/isthmus-controller
    """
    from controlplane.cli.serving import run
    from controlplane.readmodel.rebuild import rebuild as work
    from events.bus.connection import connect
    from events.cli.tables import console, print_json
    from events.jetstream.log import JetStreamLog

    async def main() -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        client = await connect(context.bus, name="isthmus-rebuild")
        try:
            event_log = await JetStreamLog.open(client, context.cluster)
            columns = (TextColumn("events"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console(stderr=True), disable=as_json) as progress:
                task = progress.add_task("events", total=None)
                report = await work(
                    event_log,
                    data / "readmodel",
                    on_progress=lambda done, total: progress.update(task, completed=done, total=total),
                )
        finally:
            await client.close()
        if as_json:
            print_json(report)
        else:
            click.echo(
                f"rebuilt {report.file} to event {report.sequence:,} in {report.took_s:.1f} s; state digest "
                f"{report.digest[:16]}… agrees with the fold of the log; switched"
            )

    run(main())
