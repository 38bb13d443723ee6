"""The first start on a control-plane node: authority, bus and credentials, and where agents find them.

Every step may be repeated. The folder on the node and the ConfigMap of the cluster name the same authority:
a pod that comes up on a node without that folder refuses to begin a second log beside the first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from deploy.credentials import certificates
from deploy.credentials.authority import Authority
from deploy.credentials.layout import Role
from deploy.credentials.store import Principal
from deploy.kubernetes.all_in_one import (
    BUS_CONFIG,
    ENROLMENT,
    NAMESPACE,
    OPERATOR,
    config_map,
    secret,
)
from deploy.kubernetes.variants import RESTRICTED
from deploy.nats.secure import Server, configuration, environment, rules
from events.bus.access.creds import write_secret
from events.errors import Refused

DAYS = 3650
"""Lifetime of what lies beside the authority's own keys: an earlier end would keep nobody out."""
RENEW_DAYS = 365
DAY_S = 86_400
BUS_FOLDER = Path("/var/lib/isthmus/nats")
"""Where the bus's container has its part of the folder."""
BUS_LABEL = f"{RESTRICTED}/bus"
_CORE: tuple[tuple[Role, str], ...] = (("system", "system"), ("issuer", "issuer"), ("controller", "control"))


class Objects(Protocol):
    """Objects of the API by their paths. Each raises Unavailable(kubernetes_unreachable), Refused."""

    async def read(self, path: str) -> dict[str, Any] | None:
        """None when there is none. Cancelled, it leaves nothing behind."""
        ...

    async def create(self, path: str, thing: Mapping[str, Any]) -> bool:
        """False when it is there already. Cancelled, it may be there."""
        ...

    async def merge(self, path: str, patch: Mapping[str, Any]) -> None:
        """Cancelled, it may have been patched."""
        ...


class Made(NamedTuple):
    """What the folder holds. ``authority`` is the operator's public key."""

    authority: str
    ca: str
    enrolment: str
    operator: str


def prepare(
    folder: Path, *, cluster: str, hosts: Sequence[str], port: int, bus_folder: Path = BUS_FOLDER
) -> Made:
    """Make what ``folder`` lacks: ``authority``, ``nats`` (to be mounted at ``bus_folder``), ``controller``.

    Raises Refused for a damaged authority.
    """
    store = folder / "authority"
    authority = (
        Authority.open(store) if (store / "book.json").exists() else Authority.create(store, name=cluster)
    )
    certificates.create_authority(store / "tls", name=f"{cluster} bus")
    for role, name in (*_CORE, ("kubernetes", "pods"), ("operator", "admin")):
        owner = "" if (role, name) in _CORE else cluster
        _issued(authority, authority.add(role, owner, name))
    _bus(authority, folder / "nats", hosts=hosts, port=port, at=bus_folder)
    controller = folder / "controller"
    (controller / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = (store / "tls" / "ca.pem").read_text()
    handed: tuple[tuple[Role, str, str], ...] = (
        ("controller", "", "control"),
        ("kubernetes", cluster, "pods"),
        ("operator", cluster, "admin"),
    )
    creds = {
        role: authority.store.creds(authority.find(role, owner, name)).read_text()
        for role, owner, name in handed
    }
    write_secret(controller / "controller.creds", creds["controller"])
    write_secret(controller / "ca.pem", ca)
    return Made(authority.book.keys["operator"], ca, creds["kubernetes"], creds["operator"])


def _issued(authority: Authority, principal: Principal) -> None:
    """Its credentials, made when there are none or their end is near."""
    last = principal.users[-1].expires if principal.users else 0
    if last < authority.now() + RENEW_DAYS * DAY_S or not authority.store.creds(principal).exists():
        authority.issue(principal, days=DAYS)


def _bus(authority: Authority, folder: Path, *, hosts: Sequence[str], port: int, at: Path) -> None:
    """The server's files, anew each time: the node's address may be another one by now."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "tls").mkdir(exist_ok=True)
    # Clients are ours, and nobody is there to renew it: as long as the authority itself.
    names = [*hosts, "127.0.0.1", "localhost"]
    files = certificates.issue_server(authority.store.path / "tls", "bus", names, days=DAYS)
    for source, target in ((files.ca, "ca.pem"), (files.certificate, "server.pem"), (files.key, "server.key")):
        write_secret(folder / "tls" / target, source.read_bytes())
    # The server is not running now: what it is told of later, it starts with.
    accounts = folder / "data" / "accounts"
    accounts.mkdir(parents=True, exist_ok=True)
    for file in (authority.store.path / "nats" / "accounts").glob("*.jwt"):
        write_secret(accounts / file.name, file.read_bytes())
    server = Server(name="isthmus-control", shape="single", at=at, data=at / "data", client_port=port)
    write_secret(folder / "nats-server.conf", configuration(server, authority.store))
    write_secret(folder / "auth.conf", rules(server, authority.store))
    write_secret(folder / "nats.env", environment(server))


def hand_over(folder: Path, owner: int) -> None:
    """Everything to the account of the roles; the folder itself too."""
    for path in (folder, *sorted(folder.rglob("*"))):
        os.chown(path, owner, owner, follow_symlinks=False)


async def publish(api: Objects, made: Made, *, bus: str, node: str) -> None:
    """Say in the cluster where the bus is. Raises Refused(bus_elsewhere) when it is on another node.

    Cancelled, some of it may be said; it may be repeated.
    """
    path = f"/api/v1/namespaces/{NAMESPACE}"
    data = {"bus": bus, "ca.pem": made.ca, "authority": made.authority, "node": node}
    config = config_map(BUS_CONFIG, data)
    if not await api.create(f"{path}/configmaps", config):
        found = (await api.read(f"{path}/configmaps/{BUS_CONFIG}") or {}).get("data") or {}
        if found.get("authority") != made.authority:
            raise on_another_node(str(found.get("node", "?")), node)
        await api.merge(f"{path}/configmaps/{BUS_CONFIG}", {"data": data})
    for name, text in (
        (ENROLMENT, {"pods.creds": made.enrolment}),
        (OPERATOR, {"operator.creds": made.operator, "ca.pem": made.ca}),
    ):
        wanted = secret(name, text)
        if not await api.create(f"{path}/secrets", wanted):
            await api.merge(f"{path}/secrets/{name}", {"data": wanted["data"]})
    await api.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {BUS_LABEL: ""}}})


async def elsewhere(api: Objects, folder: Path) -> str:
    """The node that has the bus, if this folder has not been it: nothing is to be made then. Empty: nobody has.

    Raises Unavailable, Refused. Cancelled, it leaves nothing behind.
    """
    found = await api.read(f"/api/v1/namespaces/{NAMESPACE}/configmaps/{BUS_CONFIG}")
    if found is None or known(folder):
        return ""
    return str((found.get("data") or {}).get("node", "?"))


def known(folder: Path) -> bool:
    """Whether an authority was made here before."""
    return (folder / "authority" / "book.json").exists()


def on_another_node(there: str, node: str) -> Refused:
    """Why nothing is begun here."""
    return Refused(
        "bus_elsewhere",
        f"the bus and its log are on the node {there}, this is {node}: a second log would give the same "
        f"ranges again. Let the pod run there; if that node is gone for good, copy its folder here, or give "
        f"the log up: kubectl -n {NAMESPACE} delete configmap {BUS_CONFIG}",
        node=node,
    )
