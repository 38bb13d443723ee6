"""NATS servers on machines of their own: one or three at the hub, and on request a leaf at the IDC.

    br-mgmt ── bus-1, bus-2, bus-3 (the hub: cluster.conf, or single.conf for one)
    br-mgmt ── idc-bus ── br-idc   (the site's leaf: site.conf; external nodes know only this one)

They run the shipped configuration files as an operator would; with TLS and credentials, the files that `isthmus
deploy nats` writes. A server that dies stays dead until the lab starts it again; nothing here may touch a
server that it did not start.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import deploy.nats
from deploy.lab.commands import BUS_PORT, ISTHMUS
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.daemons import Daemon
from deploy.lab.machines.shell import run
from deploy.lab.topology.layout import MANAGEMENT, Site
from events.bus.connection import BusOptions, connect
from events.bus.server.process import find_binary
from events.errors import Unavailable
from events.jetstream.api import DEFAULT_PREFIX, ApiError, call, prefix_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address

    from nats.aio.client import Client

    from deploy.lab.machines.machine import Fabric
    from deploy.lab.machines.secure import Security
    from deploy.lab.reports.run_directory import RunDirectory

TEMPLATES = Path(deploy.nats.__file__).parent
ROUTE_PORT, LEAF_PORT = 6222, 7422
MONITOR = "127.0.0.1:8222"
LEAF = "idc-bus"
FIRST_HUB, LEAF_ADDRESS = 240, 250  # in the management network, above every node
LEAF_IN_SITE = 5  # in the IDC's subnet, below every node
ASK_S = 1.0


class Buses:
    """The servers by name. ``servers`` is 1 or 3; with ``leaf`` the IDC gets one of its own.

    Cancelled, its coroutines leave the servers as they are then: some may be built, run, or have their signal;
    `stop` ends them.
    """

    def __init__(self, servers: int, *, leaf: bool, idc: Site, directory: RunDirectory) -> None:
        self.replicas = servers
        self.hub: dict[str, Daemon] = {}
        self.leaf: Daemon | None = None
        self._with_leaf = leaf
        self._idc = idc
        self._directory = directory
        self._security: Security | None = None
        self._addresses = {f"bus-{i}": MANAGEMENT[FIRST_HUB + i] for i in range(1, servers + 1)}

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients at the hub connect."""
        return tuple(f"{self._scheme}://{address}:{BUS_PORT}" for address in self._addresses.values())

    @property
    def leaf_url(self) -> str:
        """Where the external nodes connect."""
        return f"{self._scheme}://{self._idc.subnet[LEAF_IN_SITE]}:{BUS_PORT}"

    @property
    def _scheme(self) -> str:
        return "tls" if self._security is not None else "nats"

    def url_for(self, kind: str) -> str:
        """What an agent of a node of that kind is told as its bus."""
        return self.leaf_url if self._with_leaf and kind == "external" else ",".join(self.urls)

    async def build(self, fabric: Fabric, security: Security | None = None) -> None:
        """Makes the machines and describes the servers; none runs yet."""
        self._security = security
        form = "cluster" if self.replicas > 1 else "single"
        for name, address in self._addresses.items():
            await fabric.add_server(name, address)
            if security is not None:
                peers = self._members if form == "cluster" else ()
                self.hub[name] = await self._locked(fabric, security, name, form, address, peers=peers)
                continue
            self.hub[name] = self._server(fabric, name, form, {
                "ISTHMUS_LISTEN": f"{address}:{BUS_PORT}",
                "ISTHMUS_CLUSTER_LISTEN": f"{address}:{ROUTE_PORT}",
                "ISTHMUS_ROUTES": json.dumps([f"nats-route://{each}:{ROUTE_PORT}" for each in self._members]),
                "ISTHMUS_LEAF_LISTEN": f"{address}:{LEAF_PORT}",
            })  # fmt: skip
        if not self._with_leaf:
            return
        inside = self._idc.subnet[LEAF_IN_SITE]
        await fabric.add_server(LEAF, MANAGEMENT[LEAF_ADDRESS], self._idc, inside)
        if security is not None:
            security.admit_site(self._idc.name)
            self.leaf = await self._locked(fabric, security, LEAF, "site", inside, hub=self._members)
            return
        remotes = [{"urls": [f"nats-leaf://{each}:{LEAF_PORT}" for each in self._members]}]
        self.leaf = self._server(fabric, LEAF, "site", {
            "ISTHMUS_LISTEN": f"{inside}:{BUS_PORT}",
            "ISTHMUS_SITE": self._idc.name,
            "ISTHMUS_HUB": json.dumps(remotes),
        })  # fmt: skip

    @property
    def _members(self) -> list[IPv4Address]:
        return list(self._addresses.values())

    def store(self, name: str) -> Path:
        """The directory of that server's streams."""
        return self._directory.path / "buses" / name

    def _server(self, fabric: Fabric, name: str, form: str, variables: dict[str, str]) -> Daemon:
        store = self.store(name)
        store.mkdir(parents=True, mode=0o700)
        common = {"ISTHMUS_SERVER_NAME": name, "ISTHMUS_STORE": str(store), "ISTHMUS_MONITOR": MONITOR}
        return self._daemon(fabric, name, TEMPLATES / f"{form}.conf", common | variables)

    async def _locked(
        self,
        fabric: Fabric,
        security: Security,
        name: str,
        form: str,
        address: IPv4Address,
        *,
        peers: Sequence[IPv4Address] = (),
        hub: Sequence[IPv4Address] = (),
    ) -> Daemon:
        """The files come from the command that the guide names; the lab only starts what they describe."""
        store, files = self.store(name), self._directory.path / "servers" / name
        store.mkdir(parents=True, mode=0o700)
        more = [item for peer in peers for item in ("--peer", str(peer))]
        more += [item for each in hub for item in ("--hub", str(each))]
        if hub:
            more += ["--site", self._idc.name]
        await run([
            ISTHMUS, "deploy", "nats", form, "--store", str(security.authority.store.path), "--name", name,
            "--host", str(address), "--listen", str(address), "--at", str(files), "--data", str(store),
            "--monitor", MONITOR, "--to", str(files), *more,
        ])  # fmt: skip
        # What systemd makes of an EnvironmentFile: NAME='value'.
        lines = (files / "nats.env").read_text().splitlines()
        variables = {name: value[1:-1] for name, _, value in (line.partition("=") for line in lines)}
        return self._daemon(fabric, name, files / "nats-server.conf", variables)

    def _daemon(self, fabric: Fabric, name: str, config: Path, variables: dict[str, str]) -> Daemon:
        arguments = [str(find_binary()), "--config", str(config)]
        return Daemon(name, fabric.machines[name], arguments, self._directory.log(name), variables)

    # ------------------------------------------------------------------ life

    @property
    def daemons(self) -> list[Daemon]:
        return [*self.hub.values(), *([self.leaf] if self.leaf else [])]

    async def start(self) -> None:
        """Starts every server that does not run; `ready` says when they answer."""
        await asyncio.gather(*(daemon.start() for daemon in self.daemons if not daemon.running))

    async def kill_hub(self) -> None:
        """SIGKILL for every server of the hub; a leaf at the site lives on."""
        await asyncio.gather(*(daemon.kill() for daemon in self.hub.values()))

    async def stop(self) -> None:
        """SIGTERM for every server."""
        await asyncio.gather(*(daemon.stop() for daemon in self.daemons))

    async def ready(self) -> bool:
        """Whether JetStream answers on every server of the hub. Raises CheckFailedError when one ended."""
        for daemon in self.daemons:
            if not daemon.running:
                raise CheckFailedError(f"the server {daemon.name} ended:\n{daemon.log_tail()}")
        return all(await asyncio.gather(*(_answers(self._options(url)) for url in self.urls)))

    def _options(self, url: str) -> BusOptions:
        if self._security is None:
            return BusOptions(servers=(url,), connect_timeout_s=ASK_S)
        options = self._security.site.options(self._security.site.controllers[0], url)
        return msgspec.structs.replace(options, connect_timeout_s=ASK_S)

    # ------------------------------------------------------------------ the log's replicas

    async def exists(self, client: Client, stream: str) -> bool:
        """Whether the hub has that stream and somebody answers for it."""
        try:
            await _info(client, stream)
        except (Unavailable, ApiError):
            return False
        return True

    async def leader(self, client: Client, stream: str) -> str:
        """The server that leads the stream; "" while there is none, or nobody answers."""
        return str((await _cluster_of(client, stream)).get("leader", ""))

    async def level(self, client: Client, stream: str, name: str) -> bool:
        """Whether that server, as a follower or as the leader, holds everything that the leader holds."""
        found = await _cluster_of(client, stream)
        if found.get("leader") == name:
            return True
        return any(
            each["name"] == name and each.get("current") and not each.get("offline") and not each.get("lag")
            for each in found.get("replicas", [])
        )


async def _info(client: Client, stream: str) -> dict[str, Any]:
    return await call(client, f"{prefix_of(client, DEFAULT_PREFIX)}.STREAM.INFO.{stream}", timeout_s=ASK_S)


async def _cluster_of(client: Client, stream: str) -> dict[str, Any]:
    try:
        info = await _info(client, stream)
    except (Unavailable, ApiError):
        return {}
    return dict(info.get("cluster") or {})


async def _answers(options: BusOptions) -> bool:
    try:
        client = await connect(options, name="isthmus-lab")
    except Unavailable:
        return False
    try:
        await call(client, "$JS.API.INFO", timeout_s=ASK_S)
    except (Unavailable, ApiError):
        return False
    finally:
        await client.close()
    return True
