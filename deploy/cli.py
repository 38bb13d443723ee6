"""``isthmus deploy``: write what real machines need, from the files of this package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import click

from deploy.kubernetes_variants import controller_options, external
from deploy.nats.secure import Form, Server, Shape, check_host, configuration, environment, rules
from events.bus.access.creds import load, write_secret
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
    isthmus deploy nats cluster --name bus-1 --host 10.0.0.5 --peer bus-1 --peer bus-2 --peer bus-3 --to out
    isthmus deploy systemd --to /etc/systemd/system
    isthmus deploy kubernetes --to manifests
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
@click.option("--port", default=4222, show_default=True, help="Port for clients.")
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
    Example: isthmus deploy nats single --name bus-1 --host 10.0.0.5 --to out/bus-1
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
@to_option
def kubernetes(to: Path, *, sites: tuple[str, ...], evict_stale_pods: bool, apiserver_backends: str) -> None:
    """The Kubernetes manifests, with their kustomization.

    External nodes are those labelled isthmus.node-restriction.kubernetes.io/kind=external and …/site=SITE.

    \b
    Example: isthmus deploy kubernetes --to manifests && kubectl apply -k manifests
    """
    agents = {
        f"agent-external-{site}.yaml": external((HERE / "kubernetes" / "agent.yaml").read_text(), site)
        for site in dict.fromkeys(sites)
    }
    _copy("kubernetes", "*.yaml", to)
    for name, text in agents.items():
        (to / name).write_text(text)
    for name in ("rbac.yaml", "controller.yaml"):
        text = (to / name).read_text()
        changed = controller_options(text, evict=evict_stale_pods, reservation=apiserver_backends)
        (to / name).write_text(changed)
    listed = to / "kustomization.yaml"
    lines = "".join(f"  - {name}\n" for name in agents)
    listed.write_text(listed.read_text().replace("  - agent.yaml\n", f"  - agent.yaml\n{lines}"))


def _copy(folder: str, pattern: str, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    names = []
    for file in sorted((HERE / folder).glob(pattern)):
        shutil.copyfile(file, to / file.name)
        names.append(file.name)
    click.echo(f"{to}: {', '.join(names)}")
