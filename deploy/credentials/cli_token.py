"""``isthmus token``: what an operator hands to whoever sets up a machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deploy.credentials.cli_common import (
    MINUTES_RANGE,
    cluster_option,
    push_option,
    store_option,
    tokens,
    urls_of,
)
from deploy.credentials.tokens import MINUTES
from events.bus.access.creds import write_secret
from events.bus.enrolment import JoinToken
from events.cli.files import INPUT_FILE, Input
from events.cli.options import json_option
from events.cli.tables import print_json
from events.errors import Usage
from events.subjects import check_node_name

COUNT_MAX = 10_000
FILE_LIMIT = 1024 * 1024


@click.group()
def token() -> None:
    """Join tokens: one for each machine that is to become a node.

    A token carries all that `isthmus join` needs on the machine: the bus's addresses, its certificate
    authority, the cluster, the node's name, kind and site, and the right to ask for that node's
    credentials, once.

    \b
    isthmus token create idc-7 --bus tls://10.0.0.5:4222 --kind external --site ams
    isthmus token create rack-3 --count 20 --bus tls://10.0.0.5:4222 --to tokens
    """


@token.command("create")
@click.argument("nodes", nargs=-1)
@click.option("--file", "listed", type=INPUT_FILE, help="Names, one a line; - is standard input.")
@click.option("--count", type=click.IntRange(1, COUNT_MAX), help="As many nodes as this: NAME-1, NAME-2, …")
@click.option("--bus", "servers", required=True, envvar="ISTHMUS_BUS", metavar="URL[,URL…]",
              help="Where the node finds the bus.")  # fmt: skip
@cluster_option
@store_option
@click.option("--open", "is_open", is_flag=True,
              help="For a bus that asks for no credentials; needs no authority.")  # fmt: skip
@click.option("--kind", type=click.Choice(["cloud", "external"]), default="external", show_default=True,
              help="What the node joins as.")  # fmt: skip
@click.option("--site", default="", help="Name of its site, for people.")
@click.option(
    "--minutes", type=MINUTES_RANGE, default=MINUTES, show_default=True, help="How long the token is good."
)
@click.option("--to", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for files NAME.token; without it one token is printed.")  # fmt: skip
@push_option
@json_option
def create(
    *, nodes: tuple[str, ...], listed: Input | None, count: int | None, servers: str, cluster: str, store: Path,
    is_open: bool, kind: str, site: str, minutes: float, to: Path | None, push: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make join tokens. Each is for one name, good once, and ends soon. Whoever has it can become that node.

    \b
    Example:
      isthmus token create idc-7 --bus tls://10.0.0.5:4222 --site ams --push tls://10.0.0.5:4222
      isthmus token create --file nodes.txt --bus tls://10.0.0.5:4222 --to tokens
    """
    names = _names(nodes, listed, count)
    if len(names) > 1 and to is None and not as_json:
        raise Usage("usage", f"{len(names)} tokens need a place: --to FOLDER (a file each), or --json")
    if is_open:
        urls = tuple(urls_of(servers))
        made = [JoinToken(cluster=cluster, node=name, servers=urls, kind=kind, site=site) for name in names]
    else:
        made = tokens(names, store, cluster, servers, minutes=minutes, push=push, kind=kind, site=site)
    if to is not None:
        for each in made:
            write_secret(to / f"{each.node}.token", each.text() + "\n")
    if as_json:
        print_json([
            {"node": each.node, "cluster": cluster, "minutes": None if is_open else minutes}
            | ({"file": str(to / f"{each.node}.token")} if to is not None else {"token": each.text()})
            for each in made
        ])  # fmt: skip
    elif to is not None:
        click.echo(f"{len(made)} tokens in {to}; on each machine: isthmus join --token-file NAME.token")
    else:
        click.echo(made[0].text())


def _names(nodes: Sequence[str], listed: Input | None, count: int | None) -> list[str]:
    """The nodes asked for, each once, in order. Raises Usage, BadRequest(node_name_invalid)."""
    given = [*nodes]
    if listed is not None:
        lines = (line.strip() for line in listed.read_text(FILE_LIMIT).splitlines())
        given += [line for line in lines if line and not line.startswith("#")]
    if count is not None:
        if len(given) != 1:
            raise Usage("usage", f"--count makes NAME-1, NAME-2, … of one NAME, and {len(given)} are given")
        given = [f"{given[0]}-{number}" for number in range(1, count + 1)]
    if not given:
        raise Usage("usage", "name the node: isthmus token create NODE, or --file FILE")
    if len(given) > COUNT_MAX:
        raise Usage("usage", f"{len(given):,} tokens at once are more than {COUNT_MAX:,}")
    return list(dict.fromkeys(check_node_name(name) for name in given))
