"""``isthmus token``: what an operator hands to whoever sets up a machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from deploy.credentials.cli_common import (
    MINUTES_RANGE,
    Wanted,
    cluster_option,
    push_option,
    shared_token,
    store_option,
    tokens,
)
from deploy.credentials.tokens import MINUTES, USES_MAX
from events.bus.access.creds import decode_claims, write_secret
from events.bus.access.temporaries import drop_left
from events.bus.enrolment import JoinToken
from events.bus.names import HOSTNAME, NUMBER, check_names, name_of
from events.cli.bus_urls import bus_servers
from events.cli.files import INPUT_FILE, Input
from events.cli.options import json_option
from events.cli.tables import print_json
from events.codes.extras import our_version
from events.errors import Usage
from events.subjects import check_node_name, check_site

COUNT_MAX = 10_000
FILE_LIMIT = 1024 * 1024
LEFT = re.compile(r"\..+\.token\.[0-9a-f]{8}")
"""What a killed process has left of a token's file."""


@click.group()
def token() -> None:
    """Join tokens for machines that are to become nodes.

    A token carries all that `isthmus join` needs on the machine: the bus's addresses, its certificate
    authority, the cluster, the node's name, kind and site, and the right to ask for that node's
    credentials, once. One with --uses is good for several machines.

    \b
    isthmus token create idc-7 --bus tls://10.0.0.5:4222 --kind external \\
        --site ams
    isthmus token create --count 20 --name 'rack-3-{}' --bus tls://10.0.0.5:4222 \\
        --to tokens
    isthmus token create --uses 20 --name 'rack-3-{}' --bus tls://10.0.0.5:4222
    isthmus token list
    """


KINDS = ("cloud", "external")


@token.command("create")
@click.argument("nodes", nargs=-1)
@click.option("--file", "listed", type=INPUT_FILE,
              help="A node a line: NAME [SITE [KIND]]; - is standard input.")  # fmt: skip
@click.option("--count", type=click.IntRange(1, COUNT_MAX), help="As many nodes as this, a token each.")
@click.option("--uses", type=click.IntRange(1, USES_MAX),
              help="One token for so many machines, each by a name that nobody had before.")  # fmt: skip
@click.option("--name", "names", default="", metavar="PATTERN",
              help="Names for --count or --uses: {} is a number, {hostname} the machine's own.")  # fmt: skip
@click.option("--bus", "servers", required=True, envvar="ISTHMUS_BUS", metavar="URL[,URL…]",
              help="Where the node finds the bus.")  # fmt: skip
@cluster_option
@store_option
@click.option("--open", "is_open", is_flag=True,
              help="For a bus that asks for no credentials; needs no authority.")  # fmt: skip
@click.option("--kind", type=click.Choice(KINDS), default="external", show_default=True,
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
    *, nodes: tuple[str, ...], listed: Input | None, count: int | None, uses: int | None, names: str,
    servers: str, cluster: str, store: Path, is_open: bool, kind: str, site: str, minutes: float,
    to: Path | None, push: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make join tokens. Each is for one name, good once, and ends soon. Whoever has it can become that node.

    With --uses it is one token for several machines, which the issuer (`isthmus credentials serve --admit`)
    gives names. It never takes over a name that somebody has or had, and the controllers hold its nodes to
    --kind and --site.

    \b
    Example:
      isthmus token create idc-7 --bus tls://10.0.0.5:4222 --site ams \\
          --push tls://10.0.0.5:4222
      isthmus token create --file nodes.txt --bus tls://10.0.0.5:4222 --to tokens
      isthmus token create --uses 20 --name 'ams-{hostname}' \\
          --bus tls://10.0.0.5:4222 --push tls://10.0.0.5:4222
    """
    check_site(site)
    said = click.get_current_context().get_parameter_source("minutes")
    if is_open and said is not click.core.ParameterSource.DEFAULT:
        raise Usage("usage", "--open is for a bus that asks for no credentials: no --minutes ends such a token")
    if uses is not None:
        if nodes or listed is not None or count is not None or is_open:
            raise Usage(
                "usage",
                "--uses makes one token, for names by --name: no NODE, --file, --count or --open goes with it",
            )
        pattern = check_names(names or HOSTNAME)
        shared = shared_token(
            pattern, uses, store, cluster, servers, minutes=minutes, push=push, kind=kind, site=site
        )
        _say(
            [shared],
            [str(decode_claims(shared.jwt)["name"])],
            cluster,
            uses=uses,
            minutes=minutes,
            to=to,
            as_json=as_json,
        )
        return
    wanted = [
        Wanted(each.name, each.site or site, each.kind or kind) for each in _nodes(nodes, listed, count, names)
    ]
    if len(wanted) > 1 and to is None and not as_json:
        raise Usage("usage", f"{len(wanted)} tokens need a place: --to FOLDER (a file each), or --json")
    made: Iterable[JoinToken]
    if is_open:
        urls = bus_servers(servers)
        made = [
            JoinToken(cluster=cluster, node=each.name, servers=urls, kind=each.kind, site=each.site)
            for each in wanted
        ]
    else:
        made = tokens(wanted, store, cluster, servers, minutes=minutes, push=push)
    files = [each.name for each in wanted]
    _say(made, files, cluster, uses=1, minutes=None if is_open else minutes, to=to, as_json=as_json)


def _say(
    tokens_made: Iterable[JoinToken], files: Sequence[str], cluster: str, *, uses: int, minutes: float | None,
    to: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make, write and print them one by one. Raises OSError."""
    made: list[JoinToken] = []
    if to is not None:
        drop_left(to, LEFT)
    for each in tokens_made:
        if to is not None:
            write_secret(to / f"{files[len(made)]}.token", each.text() + "\n", tidy=False)
        made.append(each)
    if as_json:
        print_json([
            {"node": each.node, "names": each.names, "uses": uses, "cluster": cluster, "minutes": minutes}
            | ({"file": str(to / f"{name}.token")} if to is not None else {"token": each.text()})
            for each, name in zip(made, files, strict=True)
        ])  # fmt: skip
    elif to is not None:
        what = f"{len(made)} tokens" if len(made) > 1 else f"{files[0]}.token is"
        click.echo(f"{what} in {to}; on each machine: {_ways('NAME.token')}")
    else:
        click.echo(made[0].text())
        if sys.stdout.isatty():  # a person reads it
            name = f"{files[0]}.token"
            click.echo(f"on the machine, with this line as {name}: {_ways(name)}", err=True)


def _ways(file: str) -> str:
    """What is typed on the machine, with and without Isthmus there."""
    return (
        f"isthmus join --token-file {file}\n"
        f"or, with only Python there: python3 isthmus-{our_version()}-node.pyz --token-file {file}"
    )


def _nodes(nodes: Sequence[str], listed: Input | None, count: int | None, names: str) -> list[Wanted]:
    """The nodes asked for, each once, in order. Raises Usage, BadRequest(node_name_invalid)."""
    given = [Wanted(name) for name in nodes]
    if listed is not None:
        lines = (line.strip() for line in listed.read_text(FILE_LIMIT).splitlines())
        given += [_wanted(line) for line in lines if line and not line.startswith("#")]
    if names and count is None:
        raise Usage(
            "usage", "--name is the pattern of the names that --count or --uses makes: give one of them"
        )
    if count is not None:
        if len(given) + bool(names) != 1:
            raise Usage(
                "usage",
                f"--count makes NAME-1, NAME-2, … of one NAME, or names by --name 'idc-{NUMBER}', and "
                f"{len(given) + bool(names)} are given",
            )
        pattern = check_names(names or f"{given[0].name}-{NUMBER}")
        if NUMBER not in pattern:
            raise Usage("usage", f"--count numbers its names: --name 'idc-{NUMBER}', not {names!r}")
        given = [Wanted(name_of(pattern, str(number))) for number in range(1, count + 1)]
    if not given:
        raise Usage("usage", "name the node: isthmus token create NODE, or --file FILE")
    if len(given) > COUNT_MAX:
        raise Usage("usage", f"{len(given):,} tokens at once are more than {COUNT_MAX:,}")
    once: dict[str, Wanted] = {}
    for each in given:
        if once.setdefault(check_node_name(each.name), each) != each:
            raise Usage("usage", f"{each.name} is given twice, with different sites or kinds: give it once")
    return list(once.values())


def _wanted(line: str) -> Wanted:
    """A line of the file: name, site, kind. Raises Usage."""
    words = line.replace(",", " ").split()
    if len(words) > 3 or (len(words) == 3 and words[2] not in KINDS):
        raise Usage("usage", f"{line[:100]!r} is not NAME [SITE [{'|'.join(KINDS)}]]")
    wanted = Wanted(*words)
    check_site(wanted.site)
    return wanted
