"""The lab's security: TLS, an account for everybody, credentials per node, an issuer for join tokens.

Cloud nodes get their credentials as a file, as an image or a configuration tool would bring them; external
nodes are bare machines that redeem a join token. The lab's own view has an operator's credentials, no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from deploy.credentials.authority import Authority
from deploy.credentials.prepare import SecureSite, prepare
from deploy.credentials.push import push_accounts
from deploy.credentials.tokens import make_token
from deploy.lab import commands
from deploy.lab.machines.daemons import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.lab.machines.machine import Machine
    from deploy.lab.topology.layout import Node


class Security:
    """The authority of one lab, in its run directory. ``urls`` are the hub's servers; ``leaf`` is the machine
    of a site's own server and its URL.

    Cancelled, some servers may know some of the accounts, and a join token may be used up; all of it may be
    repeated.
    """

    def __init__(self, site: SecureSite, folder: Path) -> None:
        self.site = site
        self.urls: tuple[str, ...] = ()
        self.leaf: tuple[Machine, str] | None = None
        self.server_config = folder / "auth.conf"

    @classmethod
    def prepare(cls, folder: Path, cluster: str, host: str) -> Self:
        """Make keys, certificates and the core's credentials; nodes are admitted one by one."""
        site = prepare(folder / "authority", cluster=cluster, nodes=(), hosts=[host, "127.0.0.1"])
        self = cls(site, folder)
        self.urls = (f"tls://{host}:{commands.BUS_PORT}",)
        self.server_config.write_text(site.server_extra)
        return self

    @property
    def authority(self) -> Authority:
        return self.site.authority

    def environment(self, credentials: Path) -> dict[str, str]:
        """What makes an isthmus command use these credentials."""
        return {
            "ISTHMUS_BUS": ",".join(self.urls),
            "ISTHMUS_CREDS": str(credentials),
            "ISTHMUS_CA": str(self.site.ca),
        }

    def up_arguments(self) -> list[str]:
        return ["--server-config", str(self.server_config)]

    def issuer(self, machine: Machine, log: Path) -> Daemon:
        """The process that redeems tokens, beside the controller."""
        arguments = [commands.ISTHMUS, "credentials", "serve", "--store", str(self.authority.store.path)]
        return Daemon("issuer", machine, arguments, log, self.environment(self.site.issuer))

    def admit_site(self, name: str) -> None:
        """Make the credentials of a site's own server."""
        self.authority.issue(self.authority.add("site", "", name))

    async def announce(self, *accounts: str) -> None:
        """Tell the servers about these accounts. The leaf, which only its site reaches, is told there."""
        await push_accounts(self.site.options(self.site.system, *self.urls), self.authority.store, accounts)
        if self.leaf is not None:
            machine, url = self.leaf
            store = str(self.authority.store.path)
            await machine.run(commands.ISTHMUS, "credentials", "push", url, "--store", store)

    async def announce_people(self) -> None:
        """Those who were there before the servers, to servers that know only the core."""
        people = self.authority.store.principals()
        await self.announce(*(each.account for each in people if each.account))

    async def admit(self, node: Node, machine: Machine, directory: Path) -> Path:
        """Give the node's machine its credentials; the path of the file on it.

        It may be repeated.
        """
        principal = self.authority.add("node", self.site.cluster, node.name)
        await self.announce(principal.account)
        if node.kind == "cloud":
            return self.authority.issue(principal)
        token = make_token(
            self.authority, self.site.cluster, node.name, servers=self.urls, ca=self.site.ca, minutes=5
        )
        # On standard input, as a person would: a command line shows up in process lists.
        redeem = [commands.ISTHMUS, "credentials", "redeem", "--token-file", "-", "--to", str(directory)]
        await machine.run(*redeem, stdin=token.text())
        return directory / "agent.creds"
