"""``isthmus credentials``: renewing, taking back, looking, telling the servers, and the issuer."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from controlplane.kubernetes.tokens import ACCOUNT
from deploy.credentials.authority import LIFETIME_DAYS, Authority
from deploy.credentials.cli import credentials
from deploy.credentials.cli_common import (
    DAYS,
    DAYS_MAX,
    ROLES,
    account_of,
    cluster_option,
    days_option,
    issue,
    key_of,
    push_if_asked,
    push_line,
    push_option,
    say,
    store_option,
    when,
)
from deploy.credentials.layout import Role
from events.cli.listen import METAVAR, Listen
from events.cli.numbers import Finite
from events.cli.options import BusContext, asked, bus_options, confirm, json_option, run
from events.cli.tables import print_json, print_table
from events.errors import Refused, Usage
from events.input_files import read_whole


@credentials.command()
@store_option
@cluster_option
@click.argument("role", type=click.Choice([*ROLES, "key", "tls"]))
@click.argument("name")
@days_option
@click.option("--retire", is_flag=True, help="Refuse everything older at once instead of letting it expire.")
@click.option("--finish", is_flag=True, help="For a key: stop accepting what the old key signed.")
@push_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@json_option
def rotate(
    *,
    store: Path,
    cluster: str,
    role: str,
    name: str,
    days: float | None,
    retire: bool,
    finish: bool,
    push: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Replace credentials, a signing key or a server's certificate without downtime.

    Old and new are valid side by side until the old ones expire, or until --retire.

    \b
    Examples:
      isthmus credentials rotate node idc-7 --retire --push tls://10.0.0.5:4222
      isthmus credentials rotate key nodes --push …      then, when all have it:
      isthmus credentials rotate key nodes --finish --push …
      isthmus credentials rotate tls server              then SIGHUP to the server
    """
    authority = Authority.open(store)
    if role == "key":
        if finish:
            ends = f"Whoever has not renewed since the {name} key was replaced is shut out. Go on?"
            confirm(ends, yes=yes or not asked())
        count = authority.rotate_key(name, finish=finish)
        accounts = [p.account for p in authority.store.principals() if p.account and not p.revoked_at]
        servers = push_if_asked(authority, push, accounts)
        result: dict[str, Any] = {"key": name, "accounts": count, "servers": servers, "finished": finish}
        if as_json:
            print_json(result)
        else:
            done = "the old key is no longer accepted" if finish else "both keys are accepted"
            click.echo(f"key {name}: {count} account(s) rewritten, {done}")
        return
    if role == "tls":
        _reissue(store, name, as_json=as_json)
        return
    found: Role = next(known for known in ROLES if known == role)
    authority.find(*key_of(found, cluster, name))
    result = issue(store, found, cluster, name, days=days, push=None)
    principal = authority.find(*key_of(found, cluster, name))
    result["retired"] = authority.retire(principal) if retire else []
    if retire:
        result["servers"] = push_if_asked(authority, push, [account_of(authority, principal)])
    say(result, as_json=as_json)


def _reissue(store: Path, name: str, *, as_json: bool) -> None:
    """The same names and addresses, a new key and a new end."""
    from cryptography import x509

    from deploy.credentials.certificates import expiry, issue_server

    file = store / "tls" / f"{name}.pem"
    expiry(file)  # refuses a missing or damaged one
    names = x509.load_pem_x509_certificate(read_whole(file)).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    hosts = [str(value.value) for value in names.value]
    files = issue_server(store / "tls", name, hosts)
    result = {"certificate": str(files.certificate), "key": str(files.key), "hosts": hosts,
              "expires": expiry(files.certificate).isoformat()}  # fmt: skip
    if as_json:
        print_json(result)
    else:
        click.echo(
            f"{files.certificate} for {', '.join(hosts)} until {result['expires']}; send the server SIGHUP"
        )


@credentials.command()
@store_option
@cluster_option
@click.argument("role", type=click.Choice(ROLES))
@click.argument("name")
@push_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def revoke(
    *, store: Path, cluster: str, role: Role, name: str, push: str | None, yes: bool, as_json: bool
) -> None:
    """Revoke a name: every credential it ever had. With --push its connections end at once.

    \b
    Example: isthmus credentials revoke node idc-7 --yes --cluster prod \\
                 --push tls://10.0.0.5:4222
    """
    authority = Authority.open(store)
    confirm(f"Revoke {role} {name}? Every credential that it ever had ends, for good.", yes=yes)
    principal = authority.revoke(*key_of(role, cluster, name))
    servers = push_if_asked(authority, push, [account_of(authority, principal)])
    if as_json:
        print_json({"role": role, "name": name, "revoked_at": when(principal.revoked_at), "servers": servers})
    elif servers:
        click.echo(f"{role} {name} is revoked; {servers} server(s) know it")
    else:
        click.echo(f"{role} {name} is revoked in {store}; the servers learn it by `{push_line(store)}`")


@credentials.command("list")
@store_option
@click.option("--role", type=click.Choice(ROLES), metavar="ROLE", help="Only this role.")
@click.option(
    "--expiring", type=Finite(0, DAYS_MAX), metavar="DAYS", help="Only what ends within so many days."
)
@json_option
def list_(store: Path, role: Role | None, expiring: float | None, as_json: bool) -> None:
    """Who has credentials, and until when. Never shows a secret.

    \b
    Example: isthmus credentials list --expiring 30
    """
    authority = Authority.open(store)
    rows = []
    for principal in authority.store.principals(role=role):
        if principal.role == "token":
            continue  # `isthmus token list` shows those
        last = principal.users[-1] if principal.users else None
        if expiring is not None and (last is None or last.expires > authority.now() + expiring * 86_400):
            continue
        state = (
            "revoked"
            if principal.revoked_at
            else "expired"
            if last and last.expires <= authority.now()
            else "ok"
        )
        rows.append(
            {
                "cluster": principal.cluster,
                "role": principal.role,
                "name": principal.name,
                "state": state if last or principal.revoked_at else "no credentials yet",
                "expires": when(last.expires) if last else "",
                "account": principal.account,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        ("Cluster", "Role", "Name", "State", "Until (UTC)"),
        [(r["cluster"], r["role"], r["name"], r["state"], r["expires"]) for r in rows],
        empty="nobody",
    )


@credentials.command()
@store_option
@click.argument("name")
@click.option("--host", "hosts", multiple=True, required=True, help="A name or address of the server.")
@click.option("--days", type=click.IntRange(1, DAYS_MAX), default=397, show_default=True)
def tls(store: Path, name: str, hosts: tuple[str, ...], days: int) -> None:
    """A certificate for one server, signed by the authority of the store.

    \b
    Example: isthmus credentials tls bus-2 --host bus-2.example --host 10.0.0.6
    """
    from deploy.credentials.certificates import create_authority, issue_server

    create_authority(store / "tls")
    files = issue_server(store / "tls", name, hosts, days=days)
    click.echo(f"{files.certificate} and {files.key}, authority {files.ca}")


@credentials.command()
@store_option
@click.argument("servers", metavar="URL[,URL…]")
def push(store: Path, servers: str) -> None:
    """Tell running servers about every account of the store.

    \b
    Example: isthmus credentials push tls://10.0.0.5:4222
    """
    authority = Authority.open(store)
    keys = authority.book.keys
    accounts = [keys["system"], keys["control"], keys["issuer"]]
    accounts += [principal.account for principal in authority.store.principals() if principal.account]
    count = push_if_asked(authority, servers, accounts)
    click.echo(f"{len(accounts)} account(s), {count} server(s)")


@credentials.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def show(file: Path, as_json: bool) -> None:
    """What a .creds file says about itself; the seed stays in it.

    \b
    Example: isthmus credentials show /etc/isthmus/agent.creds
    """
    from events.bus.access.creds import load
    from events.bus.enrolment import renewal_due

    found = load(file)
    due = renewal_due(found)
    result = {
        "name": found.name,
        "public_key": str(found.claims.get("sub", "")),
        "account": str(found.claims["nats"].get("issuer_account") or found.claims.get("iss", "")),
        "expires": found.expires.isoformat() if found.expires else "never",
        "renewal_due": due.isoformat() if due else "never",
        "key_fits": found.key.public == found.claims.get("sub"),
    }
    if not result["key_fits"]:
        raise Refused("credentials_invalid", f"{file}: the seed does not belong to the JWT")
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        click.echo(f"{name.replace('_', ' '):<12} {value}")


@credentials.command()
@click.argument("file", metavar="AUTH_CONF", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def prune(file: Path, as_json: bool) -> None:
    """Take users whose credentials have ended out of a plain configuration; then reload the server.

    In the plain form the server knows keys, not their end; the file says it behind each user. The unit
    isthmus-nats-expiry.timer runs this every five minutes and reloads the server, which closes the
    connections of who was taken out. (In the JWT form the servers do it by themselves.)

    \b
    Example: isthmus credentials prune /etc/isthmus/nats/auth.conf && \\
                 systemctl reload isthmus-nats
    """
    from deploy.credentials.expiry import prune as pruned
    from events.bus.access.creds import write_secret

    try:
        text, before = read_whole(file).decode(), file.stat()
    except OSError as error:
        raise Refused("credentials_missing", f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Refused("credentials_invalid", f"{file} is no text: {error}") from error
    result = pruned(text, datetime.now(UTC))
    if not result.marks:
        raise Refused(
            "credentials_invalid",
            f"{file} says of no user until when: it is no plain configuration, or one of a release before "
            f"0.2.0; `isthmus deploy nats … --form plain` renders it anew",
        )
    if result.ended:
        write_secret(file, result.text, like=before)
    if as_json:
        print_json({"ended": result.ended, "left": result.marks - len(result.ended), "next": result.next})
        return
    for user in result.ended:
        click.echo(f"{user.public}: ended at {user.until:%Y-%m-%d %H:%M} UTC, taken out")
    click.echo(
        f"{result.marks - len(result.ended)} users left"
        + (f", the next one ends at {result.next:%Y-%m-%d %H:%M} UTC" if result.next else "")
    )


@credentials.command()
@store_option
@bus_options
@click.option(
    "--days", type=DAYS, default=LIFETIME_DAYS["node"], show_default=True, help="Lifetime of what it issues."
)
@click.option(
    "--kubernetes", is_flag=True, envvar="ISTHMUS_KUBERNETES",
    help="Also to agents in pods, by their ServiceAccount tokens; needs the whole store, and as a pod itself "
    "the right to create tokenreviews (or --kubeconfig).",
)  # fmt: skip
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Access to the API server; implies --kubernetes.")  # fmt: skip
@click.option(
    "--service-account",
    default=ACCOUNT,
    show_default=True,
    metavar="NAMESPACE/NAME",
    help="What agents run as.",
)
@click.option("--adopt", is_flag=True, help="With --kubernetes: also nodes that were let in without it before.")
@click.option("--admit", is_flag=True,
              help="Also machines with a join token for several of them; needs the whole store.")  # fmt: skip
@click.option("--metrics", type=Listen(), default="off", show_default=True, metavar=METAVAR,
              help="Where /metrics is served, and /healthz: 503 while the bus is away.")  # fmt: skip
def serve(
    *, store: Path, context: BusContext, days: float, kubernetes: bool, kubeconfig: Path | None,
    service_account: str, adopt: bool, admit: bool, metrics: str,
) -> None:  # fmt: skip
    """Run the issuer: it redeems join tokens and renews nodes' credentials.

    Of the store it needs book.json and keys/nodes.seed only; give it the issuer's credentials. With
    --kubernetes agents prove themselves by their pods' tokens, with --admit machines come with a token that is
    good for several (`isthmus token create --uses 20`): nodes are let in as they come, and the store must be
    the whole authority.

    \b
    Example: isthmus credentials serve --store /etc/isthmus/issuer \\
               --bus tls://10.0.0.5:4222 --creds /etc/isthmus/issuer.creds \\
               --ca /etc/isthmus/ca.pem
    """
    account = None
    if kubernetes or kubeconfig is not None:
        account = service_account
        if account.count("/") != 1 or account.startswith("/") or account.endswith("/"):
            raise Usage("usage", f"--service-account {account!r} is not NAMESPACE/NAME")
    run(_serve(store, context, days, account, kubeconfig, adopt=adopt, admit=admit, metrics=metrics))


async def _serve(
    store: Path, context: BusContext, days: float, account: str | None, kubeconfig: Path | None, *,
    adopt: bool, admit: bool, metrics: str,
) -> None:  # fmt: skip
    import signal

    from controlplane.kubernetes.api import KubernetesClient
    from deploy.credentials.issuers.admission import Admission
    from deploy.credentials.issuers.pods import PodIssuer
    from deploy.credentials.issuers.tokens import Issuer
    from deploy.credentials.store import Store
    from events.bus.connection import connect
    from events.telemetry.http import serve_where

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        client = await connect(context.bus, name=f"isthmus-issuer/{os.getpid()}")
        stack.push_async_callback(client.close)
        connections = [client]
        if admit or account is not None:
            authority = Authority.open(store)
            authority.store.key("operator")  # refuses before anybody asks
            own = authority.store.creds(authority.find("system", "", "system"))
            system = await connect(
                msgspec.structs.replace(context.bus, credentials=str(own)), name="isthmus-issuer/accounts"
            )
            stack.push_async_callback(system.close)
            connections.append(system)
        issuer = Issuer(client, Store(store), days=days, admission=Admission(store, system) if admit else None)
        await issuer.start()
        stack.push_async_callback(issuer.close)
        pods: PodIssuer | None = None
        if account is not None:
            api = await KubernetesClient.open(kubeconfig)
            stack.push_async_callback(api.close)
            pods = PodIssuer(
                client, system, store, context.cluster, api, account=account, days=days, adopt=adopt
            )
            await pods.start()
            stack.push_async_callback(pods.close)

        def counted() -> tuple[int, int]:
            all_of = [issuer.answering, *([pods.answering] if pods else [])]
            return sum(each.issued for each in all_of), sum(each.refused for each in all_of)

        def render() -> bytes:
            connected = int(all(each.is_connected for each in connections))
            return issuer_metrics(*counted(), connected=connected)

        def healthy() -> str:
            return "" if all(each.is_connected for each in connections) else "the bus is away"

        await stack.enter_async_context(serve_where(render, metrics, healthy=healthy))
        click.echo(f"issuer ready at {client.connected_url.netloc if client.connected_url else 'the bus'}")
        await stop.wait()
    click.echo("issued {}, refused {}".format(*counted()))


def issuer_metrics(issued: int, refused: int, *, connected: int) -> bytes:
    """The issuer's numbers, as Prometheus reads them."""
    numbers = (
        ("isthmus_issuer_issued_total", "counter", "Credentials handed out since the start.", issued),
        ("isthmus_issuer_refused_total", "counter", "Requests refused since the start.", refused),
        ("isthmus_issuer_bus_connected", "gauge", "1 while the bus is connected.", connected),
    )
    return "".join(
        f"# HELP {name} {words}\n# TYPE {name} {kind}\n{name} {value}\n" for name, kind, words, value in numbers
    ).encode()
