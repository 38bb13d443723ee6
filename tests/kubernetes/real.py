"""A real kube-apiserver on a real etcd, on the loopback: from the folder in ``KUBEBUILDER_ASSETS``.

That folder is the convention of controller-runtime's envtest: it holds ``kube-apiserver`` and ``etcd``. Where
it is not set, tests that need it are skipped; nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.waiting import until

ASSETS = os.environ.get("KUBEBUILDER_ASSETS", "")
CONTROLLER_MANAGER = bool(ASSETS) and Path(ASSETS, "kube-controller-manager").exists()
KUBE_PROXY = bool(ASSETS) and Path(ASSETS, "kube-proxy").exists()
BOUND = ("setpriv", "--pdeathsig", "KILL")
"""Tests that are killed themselves leave no server behind."""
ADMIN, KUBELET = "admin-token", "kubelet-token"
JSON = "application/json"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


class RealApiServer:
    """Started by :func:`serving`; ``ask`` as an administrator, or with another token."""

    def __init__(self, folder: Path, etcd_port: int, port: int, *, address: str, services: str) -> None:
        self.folder, self.port, self.etcd_port = folder, port, etcd_port
        self.address, self.services = address, services
        self.url = f"https://{address}:{port}"
        self._api: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Start the API server, or start it again on what etcd has."""
        self._api = subprocess.Popen(
            [
                *BOUND, f"{ASSETS}/kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
                f"--bind-address={self.address}", f"--advertise-address={self.address}",
                f"--secure-port={self.port}",
                f"--cert-dir={self.folder}/certs", f"--token-auth-file={self.folder}/tokens.csv",
                "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
                "--disable-admission-plugins=ServiceAccount", "--service-account-issuer=https://isthmus.test",
                f"--service-account-key-file={self.folder}/sa.key",
                f"--service-account-signing-key-file={self.folder}/sa.key",
                f"--service-cluster-ip-range={self.services}", "--allow-privileged=true",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self) -> None:
        """As by kill -9."""
        assert self._api is not None
        self._api.send_signal(signal.SIGKILL)
        self._api.wait(30)

    async def ready(self) -> None:
        """Wait until it answers. Cancelled, it goes on starting."""

        async def answers() -> bool:
            try:
                return (await self.ask("GET", "/readyz"))[0] == 200
            except (OSError, aiohttp.ClientError):
                return False

        for _ in range(600):
            if await answers():
                return
            await asyncio.sleep(0.1)
        raise AssertionError("kube-apiserver does not become ready")

    async def ask(
        self, method: str, path: str, body: Any = None, *, kind: str = JSON, token: str = ADMIN
    ) -> tuple[int, Any]:
        """One request: the status and the decoded answer. Cancelled, it may have been carried out."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        data = None if body is None else json.dumps(body)
        async with self._session.request(
            method, self.url + path, data=data, headers=headers, ssl=_unchecked()
        ) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text

    async def add(self, name: str, **spec: Any) -> dict[str, Any]:
        """Register a Node. Cancelled, it may be there."""
        node = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}
        code, made = await self.ask("POST", "/api/v1/nodes", node)
        assert code == 201, made
        found: dict[str, Any] = made
        return found

    async def node(self, name: str) -> dict[str, Any]:
        """The Node as it is now."""
        found: dict[str, Any] = (await self.ask("GET", f"/api/v1/nodes/{name}"))[1]
        return found

    async def network(self, name: str) -> tuple[str, str] | None:
        """Its condition NetworkUnavailable: (status, reason)."""
        conditions = (await self.node(name)).get("status", {}).get("conditions", [])
        return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "NetworkUnavailable"), None)

    def kubeconfig(self, token: str = ADMIN) -> Path:
        """A kubeconfig file for an account."""
        file = self.folder / f"kubeconfig-{abs(hash(token))}"
        cluster = {"server": self.url, "insecure-skip-tls-verify": True}
        file.write_text(
            json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "t",
                "clusters": [{"name": "t", "cluster": cluster}],
                "users": [{"name": "t", "user": {"token": token}}],
                "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
            })
        )  # fmt: skip
        return file

    @contextmanager
    def controller_manager(self, *options: str) -> Iterator[None]:
        """A kube-controller-manager beside it, until the block is left."""
        with (self.folder / "kcm.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *BOUND, f"{ASSETS}/kube-controller-manager", f"--kubeconfig={self.kubeconfig()}",
                    "--bind-address=127.0.0.1", f"--secure-port={free_ports(1)[0]}", "--leader-elect=false",
                    f"--cert-dir={self.folder}/kcm", *options,
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            yield
        finally:
            process.kill()
            process.wait(30)

    async def close(self) -> None:
        """End the API server and our connections to it."""
        if self._session is not None:
            await self._session.close()
        if self._api is not None and self._api.poll() is None:
            self.kill()


@cache
def _unchecked() -> ssl.SSLContext:
    """One for all requests, so that their connections are used again."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _etcd(folder: Path, own: str, peer_port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *BOUND, f"{ASSETS}/etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls={own}",
            f"--advertise-client-urls={own}", f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@asynccontextmanager
async def serving(
    folder: Path, *, address: str = "127.0.0.1", services: str = "10.99.0.0/24"
) -> AsyncIterator[RealApiServer]:
    """A new etcd and an API server on it, until the block is left. Cancelled, both are ended."""
    etcd_port, peer_port, port = free_ports(3)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "sa.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    (folder / "tokens.csv").write_text(
        f'{ADMIN},admin,1,"system:masters"\n{KUBELET},system:node:n1,2,"system:nodes"\n'
    )
    own = f"http://127.0.0.1:{etcd_port}"
    etcd = _etcd(folder, own, peer_port)
    server = RealApiServer(folder, etcd_port, port, address=address, services=services)
    try:
        server.start()
        await server.ready()
        await until(lambda: etcd.poll() is None)
        yield server
    finally:
        await server.close()
        etcd.kill()
        etcd.wait(30)
