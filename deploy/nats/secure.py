"""The plain templates of this folder with locks on: TLS on every port, accounts, limits.

Pure text: a template and what it needs in, configuration out. ``isthmus deploy nats`` writes the files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import msgspec

from deploy.credentials.certificates import ServerFiles
from deploy.credentials.servers import (
    CONNECTIONS_MAX,
    CONTROL_LINE_BYTES_MAX,
    jwt_block,
    plain_block,
    tls_block,
)
from deploy.credentials.store import Store
from events.errors import Usage

Shape = Literal["single", "cluster", "site"]
Form = Literal["jwt", "plain"]
TEMPLATES = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9\[:][A-Za-z0-9.:_\[\]-]{0,270}")
_PATH = re.compile(r"[A-Za-z0-9/._+@ -]{1,1024}")
CLIENT_PORT, CLUSTER_PORT, LEAF_PORT, MONITOR_PORT = 4222, 6222, 7422, 8222


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server. ``at`` is the folder where its files will be; ``peers`` are all members of the cluster.

    ``hub`` are the hub's hosts, for a site's leaf server.
    """

    name: str
    shape: Shape
    at: Path
    data: Path
    listen: str = "0.0.0.0"
    client_port: int = CLIENT_PORT
    cluster_port: int = CLUSTER_PORT
    leaf_port: int = LEAF_PORT
    monitor: str = f"127.0.0.1:{MONITOR_PORT}"
    peers: tuple[str, ...] = ()
    site: str = ""
    hub: tuple[str, ...] = ()
    form: Form = "jwt"
    """How the servers know their users; a site's server and the hub have the same form."""

    def __post_init__(self) -> None:
        """Everything here is written into files of three syntaxes; what needs no quoting in any is let in."""
        for what, value in (("--name", self.name), *((("--site", self.site),) if self.site else ())):
            _check(what, value, _NAME, "letters, digits, '.', '_' and '-', at most 64")
        hosts = (("--listen", self.listen), ("--monitor", self.monitor))
        for what, value in (
            *hosts,
            *(("--peer", peer) for peer in self.peers),
            *(("--hub", host) for host in self.hub),
        ):
            check_host(what, value)
        for what, path in (("--at", self.at), ("--data", self.data)):
            _check(what, str(path), _PATH, "a path of letters, digits, '/', '.', '_', '-', '+', '@' and spaces")
        for port in (self.client_port, self.cluster_port, self.leaf_port):
            if not 0 < port < 65_536:
                raise Usage("usage", f"{port} is no port; the bounds are 1 … 65,535")


def check_host(what: str, value: str) -> None:
    """Raises Usage(usage) for what is no host name or address."""
    _check(what, value, _HOST, "a host name or an address, with or without a port")


def _check(what: str, value: str, allowed: re.Pattern[str], form: str) -> None:
    if allowed.fullmatch(value) is None:
        raise Usage("usage", f"{what} {value[:80]!r} cannot be written into the server's files: {form}")


def files_of(server: Server) -> ServerFiles:
    """Where the server's TLS files will be."""
    tls = server.at / "tls"
    return ServerFiles(tls / "ca.pem", tls / "server.pem", tls / "server.key")


def environment(server: Server) -> str:
    """The variables that the template takes, as ``EnvironmentFile=`` of systemd and shells read them."""
    values = {
        "ISTHMUS_SERVER_NAME": server.name,
        "ISTHMUS_LISTEN": json.dumps(f"{server.listen}:{server.client_port}"),
        "ISTHMUS_STORE": json.dumps(str(server.data)),
        "ISTHMUS_MONITOR": json.dumps(server.monitor),
    }
    if server.shape in {"single", "cluster"}:
        values["ISTHMUS_LEAF_LISTEN"] = json.dumps(f"{server.listen}:{server.leaf_port}")
    if server.shape == "cluster":
        values["ISTHMUS_CLUSTER_LISTEN"] = json.dumps(f"{server.listen}:{server.cluster_port}")
        values["ISTHMUS_ROUTES"] = json.dumps([f"nats-route://{_port(p, CLUSTER_PORT)}" for p in server.peers])
    if server.shape == "site":
        values["ISTHMUS_SITE"] = server.site
        values["ISTHMUS_HUB"] = "[]"  # the secured file spells its remotes out
    # NATS reads a quoted value as one word; systemd and sh would take the quotes off: hence both.
    return "".join(f"{name}='{value}'\n" for name, value in values.items())


def _port(host: str, port: int) -> str:
    return host if ":" in host else f"{host}:{port}"


def configuration(server: Server, store: Store) -> str:
    """The template with TLS in every block, ending with the accounts (``auth.conf`` beside it)."""
    text = (TEMPLATES / f"{server.shape}.conf").read_text()
    files = files_of(server)
    mutual = tls_block(files, mutual=True, indent="  ")
    if server.shape == "cluster":
        text = text.replace("cluster {\n", f"cluster {{\n{mutual}", 1)
    if server.shape == "site":
        text = text.replace("  remotes: $ISTHMUS_HUB\n", _remotes(server, files, store), 1)
    else:
        text = text.replace("leafnodes {\n", f"leafnodes {{\n{mutual}", 1)
    return f'{text}\ninclude "auth.conf"\n'


def _remotes(server: Server, files: ServerFiles, store: Store) -> str:
    """A site speaks for its agents in CONTROL, as far as its own credentials let it."""
    tls = tls_block(files, mutual=True, indent="      ").replace("      tls {", "      tls: {", 1)
    tls = tls.replace("        verify: true\n", "")
    urls = json.dumps([f"tls://{_port(host, LEAF_PORT)}" for host in server.hub])
    # A plain configuration knows accounts by name and users by key, the other both by JWT.
    if server.form == "jwt":
        account = store.load().keys["control"]
        identity = f"credentials: {json.dumps(str(server.at / 'site.creds'))}"
    else:
        account, identity = "CONTROL", "nkey: $ISTHMUS_SITE_SEED"
    return (
        "  remotes: [\n"
        f"    {{\n      urls: {urls}\n      account: {account}\n"
        f"      {identity}\n{tls}    }}\n"
        "  ]\n"
    )


def rules(server: Server, store: Store) -> str:
    """``auth.conf``: limits, TLS for clients, and who may do what. Public keys only."""
    head = (
        "# Made by `isthmus deploy nats`; holds no secret.\n"
        f"max_connections: {CONNECTIONS_MAX}\nmax_control_line: {CONTROL_LINE_BYTES_MAX}\n"
        f"{tls_block(files_of(server))}"
    )
    if server.form == "plain":
        return head + plain_block(store)
    return head + jwt_block(store, accounts_dir=server.data / "accounts", operator=store.jwt("operator"))
