"""``isthmus credentials``: who may do what on the bus. Making them; keeping them is in ``cli_keep``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from deploy.credentials.authority import Authority
from deploy.credentials.cli_common import (
    MINUTES_RANGE,
    Wanted,
    cluster_option,
    days_option,
    issue,
    push_option,
    say,
    store_option,
    tokens,
)
from deploy.credentials.layout import Role
from events.cli.files import INPUT_FILE, Input
from events.cli.options import BusContext, bus_options, json_option, run
from events.cli.tables import print_json
from events.errors import Usage
from events.subjects import check_node_name

folder_option = click.option(
    "--to", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("/etc/isthmus"),
    show_default=True, help="Folder for agent.creds and ca.pem.",
)  # fmt: skip


@click.group()
def credentials() -> None:
    """Make, renew and take back credentials for the bus.

    Every node, operator and auditor gets an account of its own on the bus, so that nothing one of
    them does can reach another. The folder of the authority (--store) holds the keys.

    \b
    Begin:        isthmus credentials init --host bus.example --host 10.0.0.5
    A node:       isthmus credentials node idc-7                 its .creds file
    … by token:   isthmus credentials token idc-7 --bus tls://10.0.0.5:4222
    A person:     isthmus credentials operator alice
    A reader:     isthmus credentials audit archive
    Renew:        isthmus credentials rotate node idc-7 --retire --push …
    Shut out:     isthmus credentials revoke node idc-7 --yes --push …
    """


_FIRST: tuple[tuple[Role, str], ...] = (
    ("system", "system"),
    ("issuer", "issuer"),
    ("controller", "controller-1"),
)


@credentials.command()
@store_option
@click.option("--name", default="isthmus", show_default=True, help="Name of the bus, for people.")
@click.option("--host", "hosts", multiple=True, help="A name or address by which clients reach the servers.")
@json_option
def init(store: Path, name: str, hosts: tuple[str, ...], as_json: bool) -> None:
    """Make an authority: keys, core accounts, a certificate authority and a server certificate.

    \b
    Example: isthmus credentials init --host bus.example --host 10.0.0.5
    """
    from deploy.credentials.certificates import create_authority, issue_server

    authority = Authority.create(store, name=name)
    create_authority(store / "tls", name=f"{name} bus")
    if hosts:
        issue_server(store / "tls", "server", hosts)
    files = {role: str(authority.issue(authority.add(role, "", first))) for role, first in _FIRST}
    if as_json:
        print_json({"store": str(store), "operator": authority.book.keys["operator"], "credentials": files})
        return
    click.echo(f"The authority is in {store}. Keep that folder off line and backed up.")
    for role, path in files.items():
        click.echo(f"  {role:<11} {path}")
    if not hosts:
        click.echo("  No server certificate yet: isthmus credentials tls server --host ADDRESS")
    click.echo("Next: isthmus deploy nats single|cluster|site   and   isthmus credentials node NAME")


def _role_command(role: Role, summary: str, example: str) -> click.Command:
    @click.command(role, help=f"{summary}\n\n\b\nExample: isthmus credentials {role} {example}")
    @store_option
    @cluster_option
    @click.argument("name")
    @days_option
    @click.option("--again", is_flag=True, help="Let a revoked name in anew, with a new account.")
    @push_option
    @json_option
    def command(*, store: Path, cluster: str, name: str, as_json: bool, **how: Any) -> None:
        say(issue(store, role, cluster, name, **how), as_json=as_json)

    return command


_ROLES: tuple[tuple[Role, str, str], ...] = (
    (
        "node",
        "Credentials of one node's agent: its own commands and status, and reading.",
        "idc-7 --cluster prod",
    ),
    ("operator", "Credentials of a person or program that gives commands.", "alice --cluster prod"),
    ("audit", "Credentials that read the events and can change nothing.", "archive --cluster prod"),
    (
        "kubernetes",
        "Credentials by which agents of a Kubernetes cluster may ask for those of their nodes.",
        "pods --cluster prod",
    ),
    ("bridge", "Credentials of a Kubernetes bridge beside the controllers.", "kube-1 --cluster prod"),
    ("site", "Credentials of a site's own server (a leaf node of the bus).", "idc-1"),
    ("controller", "Credentials of a controller; they belong to the bus, not to a cluster.", "controller-2"),
)
for _role in _ROLES:
    credentials.add_command(_role_command(*_role))


@credentials.command()
@store_option
@cluster_option
@click.argument("node")
@click.option("--bus", "servers", required=True, metavar="URL[,URL…]", help="Where the node finds the bus.")
@click.option(
    "--minutes", type=MINUTES_RANGE, default=60, show_default=True, help="How long the token is good."
)
@push_option
@json_option
def token(
    *, store: Path, cluster: str, node: str, servers: str, minutes: float, push: str | None, as_json: bool
) -> None:
    """A join token: bound to one node, good once and for a short time.

    It is printed once; whoever has it can become that node. On the node:
    isthmus credentials redeem --token-file FILE.

    \b
    Example: isthmus credentials token idc-7 --cluster prod \\
                 --bus tls://10.0.0.5:4222 --minutes 30
    """
    (made,) = tokens([Wanted(node)], store, cluster, servers, minutes=minutes, push=push)
    if as_json:
        print_json({"node": node, "cluster": cluster, "minutes": minutes, "token": made.text()})
    else:
        click.echo(made.text())


@credentials.command()
@bus_options
@click.option(
    "--node", required=True, envvar="NODE_NAME", help="Name of the Kubernetes Node that the pod runs on."
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("/var/run/secrets/isthmus/token"),
    show_default=True,
    help="The pod's projected ServiceAccount token, with the audience isthmus.",
)
@folder_option
@click.option("--wait", "within_s", default=120.0, show_default=True, help="Seconds to ask again for.")
@json_option
def enrol(
    *, context: BusContext, node: str, token_file: Path, folder: Path, within_s: float, as_json: bool
) -> None:
    """In a pod on a Kubernetes node: get the node's credentials for the pod's ServiceAccount token.

    --creds are those of `isthmus credentials kubernetes pods`, which open nothing else. Credentials that are
    there and good stay.

    \b
    Example: isthmus credentials enrol --node "$NODE_NAME" --cluster prod \\
               --bus tls://10.0.0.5:4222 --creds /enrolment/pods.creds \\
               --ca /enrolment/ca.pem
    """
    from events.bus.service_account import enrol as enrol_pod

    check_node_name(node)
    fetched = run(
        enrol_pod(context.bus, context.cluster, node, token_file=token_file, folder=folder, within_s=within_s)
    )
    file = folder / "agent.creds"
    if as_json:
        print_json({"node": node, "cluster": context.cluster, "credentials": str(file), "fetched": fetched})
    else:
        click.echo(f"node {node} of cluster {context.cluster}: {file} {'fetched' if fetched else 'is good'}")


@credentials.command()
@click.option("--token", "word", envvar="ISTHMUS_JOIN_TOKEN", help="The token itself (better: --token-file).")
@click.option("--token-file", type=INPUT_FILE, help="File with the token; - is standard input.")
@click.option("--node", default="", help="Refuse a token for any other node.")
@folder_option
@json_option
def redeem(word: str | None, token_file: Input | None, node: str, folder: Path, as_json: bool) -> None:
    """On a node: turn a join token into this node's own credentials.

    The key is made here; only its public half leaves the machine.

    \b
    Example: isthmus credentials redeem --token-file - < token.txt
    """
    from events.bus.enrolment import redeem as redeem_token

    text = token_file.read_text(32 * 1024) if token_file is not None else word
    if not text:
        raise Usage("usage", "give the token by --token-file FILE, --token or ISTHMUS_JOIN_TOKEN")
    got, options = run(redeem_token(text, folder, node=node))
    result = {
        "node": got.node,
        "cluster": got.cluster,
        "credentials": options.credentials,
        "ca": options.ca,
        "bus": list(got.servers),
    }
    if as_json:
        print_json(result)
    else:
        click.echo(f"node {got.node} of cluster {got.cluster}: credentials in {options.credentials}")
        words = ["isthmus", "agent", "--bus", ",".join(got.servers), "--creds", str(options.credentials)]
        click.echo(f"Next: {shlex.join([*words, *(('--ca', str(options.ca)) if options.ca else ())])}")
