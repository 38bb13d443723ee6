"""Everything that one secured site needs, in one call: keys, certificates, accounts, credentials.

For the laboratory, for tests and for a first installation. It writes files and starts nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from deploy.credentials import certificates
from deploy.credentials.authority import Authority
from deploy.credentials.layout import Role
from deploy.credentials.servers import jwt_block, limits_block, plain_block, tls_block
from events.bus.connection import BusOptions


class SecureSite(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`prepare` made. Paths are absolute; ``server_extra`` goes into the server's configuration."""

    authority: Authority
    cluster: str
    ca: Path
    server_extra: str
    controllers: tuple[Path, ...]
    system: Path
    issuer: Path
    operator: Path
    audit: Path
    bridge: Path
    nodes: dict[str, Path]

    def options(self, credentials: Path, *servers: str) -> BusOptions:
        """How the holder of these credentials reaches the servers, with verified TLS."""
        return BusOptions(
            servers=tuple(server.replace("nats://", "tls://") for server in servers),
            credentials=str(credentials),
            ca=str(self.ca),
        )


def prepare(
    folder: Path,
    *,
    cluster: str,
    nodes: Sequence[str],
    hosts: Sequence[str],
    form: Literal["jwt", "plain"] = "jwt",
    controllers: int = 2,
    server: str = "server",
) -> SecureSite:
    """Make an authority in ``folder`` with credentials for the named nodes, and a server's configuration.

    ``hosts`` are the names and addresses by which clients reach the server. The controllers, one
    operator (``ops``), one auditor (``audit``), one Kubernetes bridge, the issuer and the system user get
    credentials too.
    Raises Refused(credentials_exist) when the folder is in use, BadRequest for malformed names.
    """
    folder = folder.absolute()
    authority = Authority.create(folder)
    certificates.create_authority(folder / "tls")
    files = certificates.issue_server(folder / "tls", server, hosts)

    def made(role: Role, name: str, *, core: bool = False) -> Path:
        return authority.issue(authority.add(role, "" if core else cluster, name))

    site = {
        "system": made("system", "system", core=True),
        "issuer": made("issuer", "issuer", core=True),
        "operator": made("operator", "ops"),
        "audit": made("audit", "audit"),
        "bridge": made("bridge", "bridge"),
    }
    controller_files = tuple(
        made("controller", f"controller-{index + 1}", core=True) for index in range(controllers)
    )
    node_files = {name: made("node", name) for name in nodes}
    if form == "jwt":
        accounts = folder / "resolver"
        shutil.copytree(folder / "nats" / "accounts", accounts)
        rules = jwt_block(authority.store, accounts_dir=accounts)
    else:
        rules = plain_block(authority.store)
    return SecureSite(
        authority=authority,
        cluster=cluster,
        ca=files.ca,
        server_extra=limits_block() + tls_block(files) + rules,
        controllers=controller_files,
        nodes=node_files,
        **site,
    )
