"""What the ``isthmus credentials`` commands share: options, and the steps that several of them take."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from deploy.credentials.authority import CORE_KEYS, Authority
from deploy.credentials.layout import TENANT_ROLES, Role
from deploy.credentials.store import Principal
from deploy.credentials.tokens import MINUTES_MAX
from events.bus.enrolment import JoinToken
from events.cli.bus_urls import bus_servers
from events.cli.numbers import Finite
from events.cli.options import run
from events.cli.tables import print_json
from events.errors import IsthmusError

ROLES: tuple[Role, ...] = (*TENANT_ROLES, "controller", "site", "issuer", "system")

store_option = click.option(
    "--store",
    envvar="ISTHMUS_STORE",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("credentials"),
    show_default=True,
    help="Folder of the authority. Keep it off line; nothing in it is needed to run.",
)
DAYS_MAX = 36_500
DAYS = Finite(0, DAYS_MAX, min_open=True)
MINUTES_RANGE = Finite(0, MINUTES_MAX, min_open=True)
days_option = click.option("--days", type=DAYS, help="Lifetime of the credentials [by role].")
cluster_option = click.option(
    "--cluster", envvar="ISTHMUS_CLUSTER", default="default", show_default=True, help="Name of the cluster."
)
push_option = click.option(
    "--push",
    metavar="URL[,URL…]",
    envvar="ISTHMUS_PUSH",
    help="Tell these running servers at once (with the system credentials of the store).",
)


def when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M") if seconds else "never"


def key_of(role: Role, cluster: str, name: str) -> tuple[Role, str, str]:
    """Core roles belong to the bus, not to a cluster."""
    return (role, cluster if role in TENANT_ROLES else "", name)


class Wanted(NamedTuple):
    """A node that is to have a join token: its name, and what it joins as."""

    name: str
    site: str = ""
    kind: str = ""


def tokens(
    wanted: Sequence[Wanted], store: Path, cluster: str, servers: str, *, minutes: float, push: str | None
) -> Iterator[JoinToken]:
    """A join token for each node, with an account that the servers are told about, if asked to.

    Each is made when it is asked for: what is broken off leaves no tokens in the store that nobody has.
    """
    from deploy.credentials.tokens import make_token

    urls = bus_servers(servers)  # before anything is made
    authority, ca = Authority.open(store), store / "tls" / "ca.pem"
    push_if_asked(authority, push, [authority.add("node", cluster, node.name).account for node in wanted])
    return (
        make_token(
            authority, cluster, node.name, servers=urls, ca=ca if ca.exists() else None,
            minutes=minutes, kind=node.kind, site=node.site,
        )
        for node in wanted
    )  # fmt: skip


def shared_token(
    names: str, uses: int, store: Path, cluster: str, servers: str, *, minutes: float, push: str | None,
    kind: str, site: str,
) -> JoinToken:  # fmt: skip
    """A join token for several machines, whose account the servers are told about, if asked to."""
    from deploy.credentials.tokens import make_shared_token

    urls = bus_servers(servers)  # before anything is made
    authority, ca = Authority.open(store), store / "tls" / "ca.pem"
    made, account = make_shared_token(
        authority, cluster, names, uses, servers=urls, ca=ca if ca.exists() else None,
        minutes=minutes, kind=kind, site=site,
    )  # fmt: skip
    push_if_asked(authority, push, [account])
    return made


def push_line(store: Path, urls: str = "URL") -> str:
    """What tells the servers, as it is typed."""
    named = ("--store", str(store)) if str(store) != "credentials" else ()
    return shlex.join(["isthmus", "credentials", "push", *named, urls])


def push_if_asked(authority: Authority, urls: str | None, accounts: Sequence[str]) -> int:
    """Tell the servers, if asked to. Returns how many took it. Raises IsthmusError, with the way to repeat."""
    if not urls:
        return 0
    from deploy.credentials.push import push_accounts
    from events.bus.connection import BusOptions

    ca = authority.store.path / "tls" / "ca.pem"
    system = authority.store.creds(authority.find("system", "", "system"))
    options = BusOptions(
        servers=bus_servers(urls),
        credentials=str(system),
        ca=str(ca) if ca.exists() else "",
    )
    try:
        return run(push_accounts(options, authority.store, accounts))
    except IsthmusError as error:
        again = push_line(authority.store.path, urls)
        error.message += f". The store has the change, the servers may not: `{again}` tells them"
        raise


def account_of(authority: Authority, principal: Principal) -> str:
    return principal.account or authority.book.keys[CORE_KEYS[principal.role]]


def issue(
    store: Path,
    role: Role,
    cluster: str,
    name: str,
    *,
    days: float | None,
    push: str | None,
    again: bool = False,
) -> dict[str, Any]:
    authority = Authority.open(store)
    principal = authority.add(*key_of(role, cluster, name), again=again)
    path = authority.issue(principal, days=days)
    accounts = [account_of(authority, principal)]
    if role == "kubernetes":
        accounts.append(authority.book.keys["issuer"])
    servers = push_if_asked(authority, push, accounts)
    issued = authority.find(*key_of(role, cluster, name)).users[-1]
    return {
        "role": role,
        "name": name,
        "cluster": principal.cluster,
        "file": str(path),
        "expires": when(issued.expires),
        "servers": servers,
    }


def say(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    told = f"; {result['servers']} server(s) know it" if result["servers"] else ""
    click.echo(f"{result['role']} {result['name']}: {result['file']} (until {result['expires']} UTC{told})")
