"""A control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on one of the nodes.

Accounts have tokens and the rights that Kubernetes gives them by their names; the lab's kubelets take commands
from everybody who reaches them, which nobody outside of the lab's namespaces does.
"""

from __future__ import annotations

import json
import secrets
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.credentials import certificates
from deploy.lab.machines.daemons import Daemon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.lab.kubernetes.programs import Programs
    from deploy.lab.machines.machine import Machine

PORT = 6443
ADMIN, MANAGER, SCHEDULER, PROXY = (
    "admin", "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy",
)  # fmt: skip
_ETCD = "http://127.0.0.1:2379"


class ControlPlane:
    """Its files are in ``folder``; ``address`` is where the API server is reached."""

    def __init__(
        self, machine: Machine, address: str, services: IPv4Network, programs: Programs, folder: Path
    ) -> None:
        self._machine, self._address, self._services = machine, address, services
        self._programs, self._folder = programs, folder
        self._tokens: dict[str, tuple[str, str]] = {}
        """Account → (token, group)."""
        self._ca = Path()
        self.daemons: dict[str, Daemon] = {}

    def prepare(self, kubelets: Sequence[str]) -> None:
        """Make certificate, keys and accounts."""
        self._ca = certificates.create_authority(self._folder / "tls", name="lab")
        names = [self._address, "127.0.0.1", str(self._services[1]), "kubernetes.default.svc"]
        certificates.issue_server(self._folder / "tls", "apiserver", names)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self._folder / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )  # fmt: skip
        groups = {ADMIN: "system:masters", MANAGER: "", SCHEDULER: "", PROXY: ""}
        groups |= {f"system:node:{name}": "system:nodes" for name in kubelets}
        self._tokens = {name: (secrets.token_hex(16), group) for name, group in groups.items()}
        lines = [
            f'{token},{name},{number},"{group}"\n'
            for number, (name, (token, group)) in enumerate(self._tokens.items())
        ]
        (self._folder / "tokens.csv").write_text("".join(lines))

    def kubeconfig(self, account: str) -> Path:
        """A file that gives access as ``account``."""
        file = self._folder / f"{account.replace(':', '-')}.kubeconfig"
        cluster = {"server": f"https://{self._address}:{PORT}", "certificate-authority": str(self._ca)}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "lab", "user": {"token": self._tokens[account][0]}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        }  # fmt: skip
        file.write_text(json.dumps(document))
        file.chmod(0o600)
        return file

    async def start(self) -> None:
        """Start all four. They wait for one another by themselves. Cancelled, those started run on."""
        folder, tls = self._folder, self._folder / "tls"
        key = folder / "accounts.key"
        lines = {
            "etcd": [
                f"--data-dir={folder}/etcd", f"--listen-client-urls={_ETCD}",
                f"--advertise-client-urls={_ETCD}",
                "--listen-peer-urls=http://127.0.0.1:2380", "--log-level=warn",
            ],
            "kube-apiserver": [
                f"--etcd-servers={_ETCD}", f"--advertise-address={self._address}", f"--secure-port={PORT}",
                f"--tls-cert-file={tls}/apiserver.pem", f"--tls-private-key-file={tls}/apiserver.key",
                f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
                f"--service-cluster-ip-range={self._services}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
                "--kubelet-preferred-address-types=InternalIP",
            ],
            "kube-controller-manager": [
                f"--kubeconfig={self.kubeconfig(MANAGER)}", "--bind-address=127.0.0.1", "--leader-elect=false",
                "--allocate-node-cidrs=false", "--use-service-account-credentials=true",
                f"--service-account-private-key-file={key}", f"--root-ca-file={self._ca}",
                f"--cert-dir={folder}/manager",
            ],
            "kube-scheduler": [
                f"--kubeconfig={self.kubeconfig(SCHEDULER)}", "--bind-address=127.0.0.1",
                "--leader-elect=false", f"--cert-dir={folder}/scheduler",
            ],
        }  # fmt: skip
        for name, options in lines.items():
            log = folder.parent / "logs" / f"{name}.log"
            self.daemons[name] = Daemon(name, self._machine, [self._programs[name], *options], log)
            await self.daemons[name].start()

    async def stop(self) -> None:
        """End all that was started, the store last. Cancelled, the rest runs until the sandbox ends."""
        for daemon in reversed(self.daemons.values()):
            await daemon.kill()
