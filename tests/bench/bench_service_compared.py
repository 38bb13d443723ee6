"""The same joins with what somebody would pick instead. Reported, not judged: the designs differ.

``eventsourcing`` (the Python library) with its SQLite recorder, in process, no network at all: a pool
aggregate that hands out the next range, a node aggregate, both saved in one transaction per join.

flannel's subnet leases on etcd (``pkg/subnet/etcd/local_manager.go``, ``registry.go``): list all
leases, pick a free subnet at random among the first hundred, grant a lease, create the key if it does
not exist, try again when another was faster. Over etcd's JSON gateway from as many concurrent clients
as ours; etcd runs from Debian's ``etcd-server`` with its own defaults (it syncs each commit, as our
bus does).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from tests.bench.bench_service_joins import service
from tests.ports import free_ports

NODES = 1_000
LEASES = 300
"""Fewer for flannel: each join lists all leases, so that more of them would only look worse."""
CLIENTS = 16
PREFIX = "/coreos.com/network/subnets/"
SUBNETS = [str(net) for net in ipaddress.ip_network("10.0.0.0/14").subnets(new_prefix=26)]
RACES = 10
"""``raceRetries`` of flannel."""


def library(directory: Path) -> float:
    """Joins per second with the eventsourcing library."""
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event

    class Pool(Aggregate):  # type: ignore[misc]
        @event("Started")
        def __init__(self) -> None:
            self.cursor = 0
            self.owners: dict[int, str] = {}

        @event("RangeAllocated")
        def allocate(self, node: str, index: int) -> None:
            self.owners[index] = node
            self.cursor = (index + 1) % len(SUBNETS)

    class Node(Aggregate):  # type: ignore[misc]
        @event("NodeJoined")
        def __init__(self, name: str, uid: str, kind: str, underlay: str, cidr: str) -> None:
            self.name, self.uid, self.kind, self.underlay, self.cidr = name, uid, kind, underlay, cidr

    class Cluster(Application):  # type: ignore[misc,type-arg]
        def join(self, pool_id: Any, number: int) -> str:
            pool: Any = self.repository.get(pool_id)
            index = pool.cursor
            while index in pool.owners:
                index = (index + 1) % len(SUBNETS)
            pool.allocate(f"node-{number}", index)
            uid, underlay = uuid4().hex, f"192.168.{number >> 8}.{number & 255}"
            self.save(pool, Node(f"node-{number}", uid, "cloud", underlay, SUBNETS[index]))
            return SUBNETS[index]

    cluster = Cluster(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": str(directory / "library.db"),
            "AGGREGATE_CACHE_MAXSIZE": "1000",  # without it each join replays the whole pool
            "AGGREGATE_CACHE_FASTFORWARD": "n",
            "DEEPCOPY_FROM_AGGREGATE_CACHE": "n",
        }
    )
    pool = Pool()
    cluster.save(pool)
    started = time.perf_counter()
    given = {cluster.join(pool.id, number) for number in range(NODES)}
    took_s = time.perf_counter() - started
    cluster.close()
    if len(given) != NODES:
        raise RuntimeError("a range was given twice")
    return NODES / took_s


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def _lease(http: httpx.AsyncClient, node: str, pick: random.Random) -> str:
    """One node's subnet, the way flannel acquires it."""
    for _ in range(RACES):
        listed = await http.post(
            "/v3/kv/range", json={"key": _b64(PREFIX), "range_end": _b64(PREFIX[:-1] + "0")}
        )
        taken = {base64.b64decode(kv["key"]).decode()[len(PREFIX) :] for kv in listed.json().get("kvs", [])}
        free = (subnet for subnet in SUBNETS if subnet.replace("/", "-") not in taken)
        bag = list(islice(free, 100))
        subnet = pick.choice(bag)
        grant = await http.post("/v3/lease/grant", json={"TTL": 86400})
        key = _b64(PREFIX + subnet.replace("/", "-"))
        value = json.dumps({"PublicIP": node, "BackendType": "vxlan", "BackendData": {"VtepMAC": node}})
        done = await http.post(
            "/v3/kv/txn",
            json={
                "compare": [{"key": key, "target": "CREATE", "create_revision": "0"}],
                "success": [{"requestPut": {"key": key, "value": _b64(value), "lease": grant.json()["ID"]}}],
            },
        )
        if done.json().get("succeeded"):
            return subnet
    raise RuntimeError(f"{node} lost {RACES} races")


async def flannel(directory: Path) -> float:
    """Joins per second with flannel's algorithm on etcd."""
    client, peer = free_ports(2)
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    command = [
        *("etcd", "--data-dir", str(directory / "etcd"), "--log-level", "error"),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", f"default={peer_url}"),
    ]
    environment = {**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"}  # without meaning on amd64
    child = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limits = httpx.Limits(max_connections=CLIENTS)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as http:
            deadline = time.monotonic() + 20
            while True:
                try:
                    if (await http.get("/health")).json().get("health") == "true":
                        break
                except (httpx.HTTPError, ValueError):
                    pass
                if time.monotonic() > deadline:
                    raise RuntimeError("etcd does not start")
                await asyncio.sleep(0.1)
            pending = iter(range(LEASES))
            given: list[str] = []

            async def lane(seed: int) -> None:
                pick = random.Random(seed)
                for number in pending:
                    subnet = await _lease(http, f"192.168.{number >> 8}.{number & 255}", pick)
                    given.append(subnet)

            started = time.perf_counter()
            await asyncio.gather(*[lane(seed) for seed in range(CLIENTS)])
            took_s = time.perf_counter() - started
    finally:
        child.terminate()
        await child.wait()
    if len(set(given)) != LEASES:
        raise RuntimeError("a subnet was given twice")
    return LEASES / took_s


async def ours(directory: Path) -> float:
    """Joins per second through the whole service, by as many clients, in another process."""
    (directory / "jetstream").mkdir()
    async with (
        EmbeddedServer(ServerOptions(store_dir=directory / "jetstream")) as server,
        service(server, "joins0", directory / "controller"),
    ):
        command = [sys.executable, "-m", "tests.bench.service_load", server.url, "joins0"]
        child = await asyncio.create_subprocess_exec(*command, str(NODES), str(CLIENTS), stdout=subprocess.PIPE)
        out, _ = await child.communicate()
        return float(json.loads(out)["joins_per_s"])


def _row(name: str, mine: float, theirs: float) -> dict[str, Any]:
    return {
        "name": name,
        "ours": mine,
        "baseline": theirs,
        "unit": "joins/s",
        "ratio": mine / theirs,
        "target": None,
        "better": "higher",
        "ok": True,
    }


async def _run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as directory:
        mine = await ours(Path(directory))
        rows = [
            _row(
                f"joins, {CLIENTS} clients, vs the eventsourcing library (SQLite, no network)",
                mine,
                library(Path(directory)),
            )
        ]
        if shutil.which("etcd") is None:
            print("etcd is not installed (apt-get install etcd-server): flannel is left out", file=sys.stderr)
        else:
            theirs = await flannel(Path(directory))
            rows.append(_row(f"joins, {CLIENTS} clients, vs flannel's leases on etcd", mine, theirs))
    return rows


def run() -> list[dict[str, Any]]:
    """Two rows; one where etcd is not installed."""
    return asyncio.run(_run())
