"""`isthmus lab`: bring up the laboratory, look into it, take it down."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from controlplane.console.address import CONSOLE_PORT
from events.errors import Refused, Usage

if TYPE_CHECKING:
    from deploy.lab.reports.run_directory import LabState, RunDirectory

DOWN_LIMIT_S = 20.0
LOCK_PATIENCE_S = 0.3
"""So long a lab waits for its name: who asks whether one runs has it for a moment."""
KINDS = ("filter", "forward", "peer", "mtu", "route", "direction", "fdb", "port")
"""What ``--break`` can break (:data:`deploy.lab.checks.mesh.BREAKS`)."""

_name = click.option("--name", default="lab", show_default=True, help="Which lab, when several run.")


class _LabGroup(click.Group):
    """A group whose unknown subcommands are answered with the ones there are."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = ", ".join(sorted(self.commands))
            raise Usage("usage", f"isthmus lab has no command {args[0]!r}; there are: {known}") from error


class ConsolePort(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """``PORT``, or ``127.0.0.1:PORT`` as elsewhere: the lab's console is on this machine only."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        host, colon, port = str(value).rpartition(":")
        if colon and host not in {"127.0.0.1", "localhost"}:
            self.fail(f"the lab's console is on 127.0.0.1 only, not on {host[:60]!r}", param, ctx)
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            self.fail(f"{str(value)[:60]!r} is not PORT or 127.0.0.1:PORT", param, ctx)
        return int(port)


@click.group(cls=_LabGroup, invoke_without_command=True)
@click.option("--once", is_flag=True, help="Run every check, take the lab down, exit 0 or 1 (the default).")
@click.option(
    "--keep", is_flag=True, help="Stay up afterwards for exploring, until Ctrl-C or `isthmus lab down`."
)
@click.option(
    "--churn", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Replay recorded node churn while the real nodes run; may be repeated, or name a directory.",
)  # fmt: skip
@click.option(
    "--kills", default=0, type=click.IntRange(0, 1000), metavar="N",
    help="With --churn: SIGKILL for N random processes (bus, controller, agents) on the way.",
)  # fmt: skip
@click.option("--cloud", default=3, show_default=True, type=click.IntRange(2, 40), help="Cloud nodes.")
@click.option("--external", default=2, show_default=True, type=click.IntRange(2, 40), help="External nodes.")
@click.option("--pods", default=2, show_default=True, type=click.IntRange(1, 12), help="Pods on each node.")
@click.option("--seed", default=1, show_default=True, help="Seed of --kills: when, and whom.")
@click.option(
    "--secure", is_flag=True,
    help="With TLS, an account for everybody, credentials per node and join tokens for the external ones.",
)  # fmt: skip
@click.option(
    "--bus-servers", type=click.Choice(["1", "3"]), default="1", show_default=True,
    help="With 3: a JetStream cluster keeps the log; the server that leads it is killed under load.",
)  # fmt: skip
@click.option(
    "--clb", is_flag=True,
    help="Also: a CLB pair on two gateways, an API server stand-in behind it; backends and gateways fail.",
)  # fmt: skip
@click.option(
    "--direct", is_flag=True,
    help="Nodes of one site reach each other without the tunnel; plain packets are cut off meanwhile.",
)  # fmt: skip
@click.option(
    "--encrypt", type=click.Choice(["off", "sites", "all"]), default="off", show_default=True,
    help="Packets between sites, or all between nodes, are encrypted by WireGuard under traffic, and counted.",
)  # fmt: skip
@click.option(
    "--nat", is_flag=True,
    help="Also two branches behind NATs of their own, instead of the other checks: found out, relayed, healed.",
)  # fmt: skip
@click.option(
    "--bare", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="With --nat: who joins has only Python and isthmus-VERSION-node.pyz, this file (make node).",
)  # fmt: skip
@click.option(
    "--break", "breaks", multiple=True, metavar="KIND", type=click.Choice([*KINDS, "all"]),
    help=f"Break a path instead, and show its verdict; may be repeated: {', '.join(KINDS)}, or all.",
)  # fmt: skip
@click.option(
    "--leaf", is_flag=True,
    help="A leaf server at the data centre mirrors the log; its link is cut, a node starts from the mirror.",
)  # fmt: skip
@click.option(
    "--capsule", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Replay an incident capsule step by step in real kernels; with --keep each step waits.",
)  # fmt: skip
@click.option(
    "--from", "source", type=click.Choice(["flannel"]),
    help="A flannel cluster instead: taken over and given back under traffic between all its pods.",
)  # fmt: skip
@click.option(
    "--kubernetes", is_flag=True,
    help="A real Kubernetes instead: kubelets at both sites, the network from the one file. Needs root.",
)  # fmt: skip
@click.option(
    "--binaries", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="With --kubernetes: where kube-apiserver, kubelet, … are [KUBEBUILDER_ASSETS, PATH].",
)  # fmt: skip
@click.option("--nodes", default=10, show_default=True, type=click.IntRange(2, 40), help="Nodes of --from.")
@click.option(
    "--http", default=CONSOLE_PORT, show_default=True, type=ConsolePort(), metavar="[HOST:]PORT",
    help="With --keep: where on 127.0.0.1 the console appears; 0, or a port that is taken, is any free one.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document at the end instead of tables.")
@_name
@click.pass_context
def lab(  # noqa: PLR0917 - click passes every option by name
    ctx: click.Context, once: bool, keep: bool, churn: tuple[Path, ...], cloud: int, external: int, pods: int,
    seed: int, kills: int, secure: bool, bus_servers: str, leaf: bool, clb: bool, direct: bool, nat: bool,
    encrypt: Literal["off", "sites", "all"], bare: Path | None,
    breaks: tuple[str, ...], capsule: Path | None, source: str | None, kubernetes: bool, binaries: Path | None,
    nodes: int, http: int, as_json: bool, name: str,
) -> None:  # fmt: skip
    """A whole two-site cluster on this machine, in network namespaces, checked with real packets.

    A VPC with cloud nodes and a data centre with external nodes, a router between them, a real NATS
    server, a real controller, a real agent on each node, pods attached by the standard CNI plugins.
    Needs no root where the kernel allows user namespaces. Everything it makes is in namespaces of its
    own and goes away with it, however it ends.

    \b
    isthmus lab                         run every check, then take it down
    isthmus lab --secure                … with TLS and credentials on
    isthmus lab --keep                  … and stay up for exploring
    isthmus lab exec cloud-1 ip route   look around, from another terminal
    isthmus lab exec idc-1-a bash       a shell in a pod
    isthmus lab down                    take it down
    isthmus lab --churn tests/data/node-churn   recorded joins and leaves on top
    isthmus lab --churn tests/data/node-churn --kills 9 --seed 4    … and kills
    isthmus lab --bus-servers 3         the leading one is killed under load
    isthmus lab --clb                   … while backends and gateways fail
    isthmus lab --direct                nodes of one site without the tunnel
    isthmus lab --encrypt all           packets encrypted, none in the clear
    isthmus lab --nat                   two branches, routers that change
    isthmus lab --nat --bare FILE       … who joins has only Python
    isthmus lab --nat --encrypt all     … encrypted, relayed packets, too
    isthmus lab --break filter          break a path: filter, route, mtu, …
    isthmus lab --break all --cloud 8   … all kinds; with --keep they stay so
    isthmus lab --leaf                  a mirror of the log, its link cut
    isthmus lab --bus-servers 3 --leaf --secure --keep   all of it, and stay up
    isthmus lab --from flannel --nodes 10       take a flannel cluster over
    isthmus lab --kubernetes            kubelets, pods, Services
    isthmus lab --capsule incident.isthmus      an incident again
    """
    if ctx.invoked_subcommand is not None:
        return
    if capsule is not None:
        sys.exit(_replay_capsule(capsule, as_json=as_json, pause=keep))
    if source is not None:
        sys.exit(_take_over(nodes, as_json=as_json))
    if once and keep:
        raise Usage("usage", "--once takes the lab down at the end, --keep keeps it: give one of them")
    if secure and churn:
        raise Usage(
            "usage",
            "--secure lets a node's own credentials alone report for it, so simulated nodes cannot: "
            "give --churn without --secure",
        )
    if kubernetes and (churn or kills or secure or leaf or clb or breaks or bus_servers != "1"):
        raise Usage(
            "usage",
            "--kubernetes goes with --cloud, --external, --pods, --keep and --json only: its bus is a pod, "
            "with TLS and credentials",
        )
    if nat and (churn or kills or leaf or clb or direct or breaks or kubernetes or bus_servers != "1"):
        raise Usage("usage", "--nat goes with --encrypt, --pods, --secure, --keep, --http and --json only")
    if bare is not None and (not nat or secure):
        raise Usage("usage", "--bare is how a machine joins behind NAT: give --nat, too, and no --secure")
    if binaries is not None and not kubernetes:
        raise Usage("usage", "--binaries is where --kubernetes finds its programs: give --kubernetes, too")
    from deploy.churn.trace import find_files
    from deploy.lab import scenario
    from deploy.lab.checks.mesh import chosen
    from deploy.lab.machines import sandbox, shell
    from deploy.lab.machines.bare import require_python
    from deploy.lab.reports import run_directory
    from deploy.lab.topology.layout import two_sites, with_branches

    files, broken = find_files(churn), chosen(breaks, cloud)
    if kills and not files:
        raise Usage("usage", "--kills needs --churn: processes are killed while recorded churn runs")
    plugins = shell.require_programs()
    if bare is not None:
        require_python()
        if not bare.is_file():
            raise Usage("file_unusable", f"{bare} is not there: `make node` makes it, in dist/")
    programs = None
    if kubernetes:
        from deploy.lab.kubernetes.nodes import group, make_groups, remove_groups
        from deploy.lab.kubernetes.programs import require

        programs = require(binaries, plugins, os.environ)
    if encrypt != "off":
        from deploy.lab.checks.encryption import unable

        if unable():
            raise Refused("prerequisite_missing", f"nothing can be encrypted here: {unable()}")
    directory = run_directory.for_lab(name)
    lock = directory.wait_until_free(LOCK_PATIENCE_S)
    if lock is None:
        running = directory.read()
        raise Refused(
            "lab_running",
            f"a lab called {name!r} is running already (PID {running.main if running else 'unknown'}): "
            f"end it with `isthmus lab down --name {name}`, or choose another --name",
            lab=name,
        )
    if directory.prepare() and not as_json:
        click.echo("removed what a lab that did not end properly had left behind")
    console = _listen(http) if keep else None
    options = scenario.LabOptions(
        keep=keep, as_json=as_json, churn=files, seed=seed, kills=kills, secure=secure,
        bus_servers=int(bus_servers), leaf=leaf, clb=clb, direct=direct, encrypt=encrypt, nat=nat,
        bare=bare and bare.absolute(), breaks=broken,
        console=console.fileno() if console else -1,
        console_url=f"http://127.0.0.1:{console.getsockname()[1]}" if console else "",
    )  # fmt: skip
    topology = with_branches(pods) if nat else two_sites(cloud, external, pods)
    state = run_directory.LabState(name=name, main=os.getpid())

    def work() -> int:
        own = directory.read() or state
        if programs is None:
            return scenario.work(options, topology, directory, plugins, own)
        from deploy.lab.kubernetes import checks

        return checks.work(checks.Wanted(topology, pods, programs, keep, as_json), directory, own)

    try:
        if programs is not None:
            make_groups(group(name))
        code = sandbox.run(
            work,
            lambda init, user_namespace: directory.write(
                msgspec.structs.replace(state, init=init, user_namespace=user_namespace)
            ),
        )
    finally:
        if programs is not None:
            remove_groups(group(name))
        directory.free(lock)
    sys.exit(code)


def _replay_capsule(file: Path, *, as_json: bool, pause: bool) -> int:
    from deploy.lab import capsule_replay
    from deploy.lab.machines import sandbox, shell
    from replay.capsule import Capsule

    Capsule(file).close()  # a file that is none is refused before anything is made
    shell.require_programs()
    return sandbox.run(lambda: capsule_replay.work(file, as_json=as_json, pause=pause), lambda *_: None)


def _take_over(nodes: int, *, as_json: bool) -> int:
    from deploy.lab import flannel_lab
    from deploy.lab.machines import sandbox, shell

    plugins = shell.require_programs()
    shell.require_for_flannel(plugins)
    return sandbox.run(lambda: flannel_lab.work(plugins, nodes, as_json=as_json), lambda *_: None)


def _listen(port: int) -> socket.socket:
    """A listening socket on the host's loopback, made while the host's network is still ours."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=64)
    except OSError:
        return socket.create_server(("127.0.0.1", 0), backlog=64)


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("machine")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_name
def exec(machine: str, command: tuple[str, ...], name: str) -> None:  # noqa: A001 - the command's name
    """Run a command on a machine of the running lab, or in a pod.

    \b
    isthmus lab exec cloud-1 ip -d link show type vxlan
    isthmus lab exec cloud-1 isthmus agent status
    isthmus lab exec controller isthmus events tail
    isthmus lab exec idc-1-a ping -c 3 10.200.0.2
    isthmus lab exec router                          (a shell)
    """
    from deploy.lab.reports import run_directory

    state = run_directory.running(name)
    pid = state.machines.get(machine)
    if pid is None:
        raise Usage("usage", f"the lab has no {machine!r}; it has: {', '.join(sorted(state.machines))}")
    shell = shutil.which("bash") or "sh"
    enter_sandbox = ["nsenter", "-t", str(state.init), "-m", "-p", "-n"]
    if state.user_namespace:
        enter_sandbox += ["-U", "--preserve-credentials"]
    # The second step uses PIDs of the lab's own PID namespace, which the first one has entered.
    enter_machine = ["nsenter", "-t", str(pid), "-m", "-u", "-n", "--", *(command or (shell,))]
    kept = run_directory.for_lab(name).node(machine) / "state"
    environment = {
        **os.environ,
        **state.environment,
        **({"ISTHMUS_STATE_DIR": str(kept)} if kept.is_dir() else {}),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        "PS1": f"{machine}# ",
    }
    sys.stdout.flush()
    os.execvpe("nsenter", [*enter_sandbox, "--", *enter_machine], environment)  # noqa: S606 - no shell is meant


@lab.command()
@_name
def down(name: str) -> None:
    """Take the running lab down, or clear away what a crashed one left.

    \b
    Example: isthmus lab down
    """
    from deploy.lab.kubernetes.nodes import group, remove_groups
    from deploy.lab.reports import run_directory

    directory = run_directory.for_lab(name)
    lock = directory.lock()
    if lock is not None:
        remains = directory.path.exists()
        remove_groups(group(name))
        directory.free(lock)
        click.echo("cleared what a crashed lab had left" if remains else f"no lab called {name!r} is running")
        return
    _stop(directory, directory.read())
    click.echo("the lab is down")


def _stop(directory: RunDirectory, state: LabState | None) -> None:
    """Asks the lab to end and insists when it does not. Raises Refused(not_permitted) without a state."""
    if state is None:
        raise Refused(
            "not_permitted", f"the lab at {directory.path} holds its lock but left no state; end it by hand"
        )
    for number, patience_s in ((signal.SIGTERM, DOWN_LIMIT_S), (signal.SIGKILL, 5.0)):
        directory.signal(state.main, number)  # its children may end a moment later
        if (lock := directory.wait_until_free(patience_s)) is not None:
            directory.free(lock)
            return
    raise Refused(
        "lab_running",
        f"the lab called {state.name!r} (PID {state.main}) does not end: some of its processes do not die; "
        f"`isthmus lab status --name {state.name}` names them",
        lab=state.name,
    )


@lab.command()
@_name
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str, as_json: bool) -> None:
    """What runs: the lab's machines and pods. Exit code 2 when no lab runs.

    \b
    Example: isthmus lab status
    """
    from deploy.lab.reports import run_directory

    state = run_directory.running(name)
    if as_json:
        click.echo(msgspec.json.encode(state).decode())
        return
    click.echo(f"lab {state.name!r} runs as PID {state.main}")
    click.echo(f"machines and pods: {', '.join(sorted(state.machines)) or '(starting)'}")


if __name__ == "__main__":
    lab()
