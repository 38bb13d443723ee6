"""``isthmus deploy``: write what real machines need, from the files of this package."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import get_args

import click
import msgspec

from deploy.kubernetes.all_in_one import OwnBus, render
from deploy.kubernetes.values import Values, read_values
from deploy.kubernetes.variants import (
    controller_options,
    external,
    valued_agent,
    valued_bridge,
    valued_controller,
    without_bridge,
)
from deploy.nats.secure import Form, Server, Shape, check_host, configuration, environment, rules
from events.bus.access.creds import load, write_secret
from events.cli.bus_urls import bus_servers
from events.cli.options import run
from events.errors import Refused, Usage

HERE = Path(__file__).parent
to_option = click.option(
    "-o",
    "--output",
    "--to",
    "to",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write into.",
)


@click.group()
def deploy() -> None:
    """Write configuration for real machines: the bus, systemd units, Kubernetes manifests.

    \b
    isthmus deploy nats single  --name bus-1 --host 10.0.0.5 --to out
    isthmus deploy nats cluster --name bus-1 --host 10.0.0.5 --peer bus-1 \\
        --peer bus-2 --peer bus-3 --to out
    isthmus deploy systemd --to /etc/systemd/system
    isthmus deploy kubernetes --to manifests
    isthmus deploy kubernetes --all-in-one --to isthmus.yaml
    """


@deploy.command()
@click.argument("shape", type=click.Choice(get_args(Shape)))
@click.option(
    "--store", envvar="ISTHMUS_STORE", type=click.Path(path_type=Path), default=Path("credentials"),
    show_default=True, help="Folder of the credentials authority.",
)  # fmt: skip
@click.option("--name", required=True, help="Name of this server, unique in its cluster.")
@click.option("--host", "hosts", multiple=True, required=True, help="A name or address that clients use.")
@click.option("--peer", "peers", multiple=True, help="With cluster: every member's host, this one included.")
@click.option("--hub", multiple=True, help="With site: a host of the hub.")
@click.option("--site", default="", help="With site: its name; becomes the JetStream domain.")
@click.option("--form", type=click.Choice(get_args(Form)), default="jwt", show_default=True,
              help="Accounts as signed JWTs, or all in the file; a site's server: as the hub.")  # fmt: skip
@click.option("--at", type=click.Path(path_type=Path), default=Path("/etc/isthmus/nats"),
              show_default=True, help="Where the files will be on the server.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), default=Path("/var/lib/isthmus/nats"),
              show_default=True, help="Where the server keeps its data.")  # fmt: skip
@click.option("--listen", default="0.0.0.0", show_default=True, help="Address that the server listens on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=4222, show_default=True, help="Port for clients."
)
@click.option("--cluster-port", default=6222, show_default=True)
@click.option("--leaf-port", default=7422, show_default=True)
@click.option("--monitor", default="127.0.0.1:8222", show_default=True, help="Address of the health endpoint.")
@to_option
def nats(
    *, shape: Shape, store: Path, name: str, hosts: tuple[str, ...], peers: tuple[str, ...],
    hub: tuple[str, ...], site: str, form: Form, at: Path, data: Path, listen: str, port: int,
    cluster_port: int, leaf_port: int, monitor: str, to: Path,
) -> None:  # fmt: skip
    """A NATS server's files: nats-server.conf, auth.conf, nats.env and TLS, with everything locked.

    Copy the folder to the server (to --at), then start it with the environment of nats.env:
    the systemd unit isthmus-nats.service does so.

    \b
    Example: isthmus deploy nats single --name bus-1 --host 10.0.0.5 \\
                 --to out/bus-1
    """
    from deploy.credentials.certificates import issue_server
    from deploy.credentials.store import Store

    if shape == "cluster" and len(set(peers)) < 3:
        raise Usage("usage", f"a cluster has three members or more, --peer names {len(set(peers))}")
    if shape == "site" and not (hub and site):
        raise Usage("usage", "a site needs --site NAME and --hub HOST")
    for host in hosts:
        check_host("--host", host)
    authority = Store(store)
    authority.load()
    server = Server(
        name=name, shape=shape, at=at, data=data, listen=listen, client_port=port, cluster_port=cluster_port,
        leaf_port=leaf_port, monitor=monitor, peers=tuple(dict.fromkeys(peers)), site=site, hub=hub, form=form,
    )  # fmt: skip
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = issue_server(store / "tls", name, hosts)
    (to / "tls").mkdir(exist_ok=True)
    for source, target in ((files.ca, "ca.pem"), (files.certificate, "server.pem"), (files.key, "server.key")):
        write_secret(to / "tls" / target, source.read_bytes())
    (to / "nats-server.conf").write_text(configuration(server, authority))
    (to / "auth.conf").write_text(rules(server, authority))
    variables = environment(server)
    if shape == "site":
        creds = store / "creds" / f"site-{site}.creds"
        if not creds.exists():
            raise Refused("credentials_missing", f"the site {site!r} has none: isthmus credentials site {site}")
        write_secret(to / "site.creds", creds.read_bytes())
        variables += f"ISTHMUS_SITE_SEED='{load(creds).seed}'\n"
    write_secret(to / "nats.env", variables)
    click.echo(f"{to}: copy it to {name}:{at}; data in {data}")


@deploy.command()
@click.option("--gateway", is_flag=True, help="Also what lets this machine's agent hold CLB addresses.")
@to_option
def systemd(to: Path, *, gateway: bool) -> None:
    """The systemd units of agent, controller, issuer and bus, and what makes their account and folders.

    \b
    Example: isthmus deploy systemd --to /etc/systemd/system
    """
    _copy("systemd", "isthmus-*", to)
    if gateway:
        _copy("systemd", "gateway.conf", to / "isthmus-agent.service.d")


@deploy.command()
@click.option("--all-in-one", is_flag=True,
              help="One file for kubectl apply: bus, issuer, controller and agents.")  # fmt: skip
@click.option("--values", "values_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="TOML, JSON or YAML; `isthmus deploy values` prints all of them.")  # fmt: skip
@click.option("--bus", "urls", default="", metavar="URL[,URL…]",
              help="With --all-in-one: a bus of your own, whose authority is in --store.")  # fmt: skip
@click.option(
    "--store", envvar="ISTHMUS_STORE", type=click.Path(file_okay=False, path_type=Path),
    default=Path("credentials"), show_default=True, help="With --bus: folder of the credentials authority.",
)  # fmt: skip
@click.option(
    "--external-site", "sites", multiple=True, metavar="SITE",
    help="Also agents for the external nodes of this site, by label. Repeatable.",
)  # fmt: skip
@click.option(
    "--evict-stale-pods", is_flag=True,
    help="The controller evicts pods that kept an address of a Node's earlier range; more rights: pods.",
)  # fmt: skip
@click.option(
    "--apiserver-backends", default="", metavar="RESERVATION",
    help="The apiserver backends of this CLB reservation follow Kubernetes; more rights: endpointslices.",
)  # fmt: skip
@click.option(
    "--service-backends", is_flag=True,
help="The other backends of CLB reservations follow annotated Services; more rights: "
    "services, endpointslices.",
)  # fmt: skip
@click.option(
    "--bridge-beside", is_flag=True,
    help="Two processes beside the controllers keep Nodes in step; the one that holds a Lease works.",
)  # fmt: skip
@click.option("-o", "--output", "--to", "to", type=click.Path(path_type=Path),
              help="Folder to write into; with --all-in-one the file [standard output].")  # fmt: skip
def kubernetes(
    *, all_in_one: bool, values_file: Path | None, urls: str, store: Path, sites: tuple[str, ...],
    evict_stale_pods: bool, apiserver_backends: str, service_backends: bool, bridge_beside: bool,
    to: Path | None,
) -> None:  # fmt: skip
    """The Kubernetes manifests, with their kustomization, or all in one file.

    External nodes are those labelled isthmus.node-restriction.kubernetes.io/kind=external and …/site=SITE.

    \b
    Example: isthmus deploy kubernetes --all-in-one --to isthmus.yaml && \\
                 kubectl apply -f isthmus.yaml
             isthmus deploy kubernetes --to manifests && \\
                 kubectl apply -k manifests
    """
    said = read_values(values_file) if values_file is not None else Values()
    values = msgspec.structs.replace(
        said,
        external_sites=(*said.external_sites, *sites),
        evict_stale_pods=said.evict_stale_pods or evict_stale_pods,
        apiserver_backends=apiserver_backends or said.apiserver_backends,
        service_backends=service_backends or said.service_backends,
        bridge="beside" if bridge_beside else said.bridge,
        bus=msgspec.structs.replace(said.bus, urls=bus_servers(urls)) if urls else said.bus,
    )
    if all_in_one:
        if values.bridge == "beside" and not values.bus.urls:
            raise Usage("usage", "--bridge-beside with --all-in-one needs a bus of your own: --bus URL")
        text = render(values, _own_bus(values, store) if values.bus.urls else None)
        if to is None or str(to) == "-":
            click.echo(text, nl=False)
        else:
            write_secret(to, text)
            click.echo(f"{to}: kubectl apply -f {shlex.quote(str(to))}")
        return
    if to is None:
        raise Usage("usage", "say where to: --to FOLDER, or --all-in-one for one file")
    shipped = HERE / "kubernetes"
    made = {file.name: file.read_text() for file in sorted(shipped.glob("*.yaml"))}
    agents = {
        f"agent-external-{site}.yaml": external(made["agent.yaml"], site)
        for site in dict.fromkeys(values.external_sites)
    }
    keeper = "controller.yaml"
    if values.bridge == "beside":
        keeper = "bridge.yaml"
        made[keeper] = (shipped / "beside" / keeper).read_text()
        made["controller.yaml"] = without_bridge(made["controller.yaml"])
        made["kustomization.yaml"] = made["kustomization.yaml"].replace(
            "  - controller.yaml\n", f"  - controller.yaml\n  - {keeper}\n"
        )
    for name in ("rbac.yaml", keeper):
        made[name] = controller_options(
            made[name],
            evict=values.evict_stale_pods,
            reservation=values.apiserver_backends,
            services=values.service_backends,
        )
    listed = "".join(f"  - {name}\n" for name in agents)
    made["kustomization.yaml"] = made["kustomization.yaml"].replace(
        "  - agent.yaml\n", f"  - agent.yaml\n{listed}"
    )
    made |= agents
    if values_file is not None:
        for name, text in made.items():
            if "kind: DaemonSet" in text:
                made[name] = valued_agent(text, values)
        made["controller.yaml"] = valued_controller(made["controller.yaml"], values)
        if values.bridge == "beside":
            made[keeper] = valued_bridge(made[keeper], values)
        made["settings.yaml"] = made["settings.yaml"].replace(
            "ISTHMUS_CLUSTER: prod",
            f"ISTHMUS_CLUSTER: {values.cluster_name}\n  ISTHMUS_LOG_LEVEL: {values.log_level}",
        )
    to.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (to / name).write_text(text)
    click.echo(f"{to}: {', '.join(made)}")


def _own_bus(values: Values, store: Path) -> OwnBus:
    """Credentials for agents that ask and for the controllers, by the authority of one's own bus."""
    from deploy.credentials.authority import Authority

    authority = Authority.open(store)
    ca = store / "tls" / "ca.pem"
    principals = [
        authority.add("kubernetes", values.cluster_name, "pods"),
        authority.add("controller", "", f"kubernetes-{values.cluster_name}"),
    ]
    if values.bridge == "beside":
        principals.append(authority.add("bridge", values.cluster_name, "kubernetes"))
    texts = [authority.issue(principal).read_text() for principal in principals]
    return OwnBus(ca.read_text() if ca.exists() else "", *texts)


@deploy.command("values")
def values_() -> None:
    """All values that `isthmus deploy kubernetes --values FILE` takes, with what they are unless said.

    \b
    Example: isthmus deploy values > values.json
    """
    click.echo(msgspec.json.format(msgspec.json.encode(Values()), indent=2))


@deploy.command()
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Where authority, bus and controller keep their files.")  # fmt: skip
@click.option("--host", "hosts", multiple=True, required=True, help="Address by which agents reach the bus.")
@click.option("--port", type=click.IntRange(1, 65535), default=4222, show_default=True, help="Port of the bus.")
@click.option("--node", required=True, envvar="NODE_NAME", help="Name of the Kubernetes Node this runs on.")
@click.option("--cluster", envvar="ISTHMUS_CLUSTER", default="default", show_default=True)
@click.option("--owner", default=65532, show_default=True, help="User id of the roles.")
@click.option("--at", type=click.Path(path_type=Path), default=Path("/var/lib/isthmus/nats"), show_default=True,
              help="Where the bus will have its part of the folder.")  # fmt: skip
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Access to the API server [as a pod].")  # fmt: skip
def bootstrap(
    *, folder: Path, hosts: tuple[str, ...], port: int, node: str, cluster: str, owner: int, at: Path,
    kubeconfig: Path | None,
) -> None:  # fmt: skip
    """The control pod's first container: keys, certificates and the bus's files, once; then where they are.

    \b
    Example: isthmus deploy bootstrap --folder /var/lib/isthmus --host 10.0.0.5 \\
                 --node cp-1 --cluster prod
    """
    from controlplane.kubernetes.api import KubernetesClient
    from deploy.kubernetes import bootstrap as steps

    async def work() -> None:
        api = await KubernetesClient.open(kubeconfig)
        try:
            if there := await steps.elsewhere(api, folder):
                raise steps.on_another_node(there, node)
            made = steps.prepare(folder, cluster=cluster, hosts=hosts, port=port, bus_folder=at)
            steps.hand_over(folder, owner)
            bus = f"tls://{hosts[0]}:{port}"
            await steps.publish(api, made, bus=bus, node=node)
        finally:
            await api.close()
        click.echo(f"bus {bus} on {node}, authority {made.authority}")

    run(work())


def _copy(folder: str, pattern: str, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    names = []
    for file in sorted((HERE / folder).glob(pattern)):
        shutil.copyfile(file, to / file.name)
        names.append(file.name)
    click.echo(f"{to}: {', '.join(names)}")
