"""`isthmus lab --from flannel`: a flannel cluster is taken over and given back under traffic between its pods.

Nodes are machines on one switch, each as flannel leaves it (:mod:`deploy.lab.machines.flannel`), with a pod on
its bridge. While every pod asks every other, `isthmus adopt` plans, runs and rolls back; on the way the
controller, an agent and the run itself are killed. Nothing but namespaces stands between the operator and the
nodes. Cancelled, everything stays until the sandbox ends.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.lab.commands import ISTHMUS
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.daemons import Daemon
from deploy.lab.machines.flannel import DEVICE, FlannelNode, kubernetes_list
from deploy.lab.machines.machine import BRIDGE_MAC, ip_batch, link_lines, start_machine
from deploy.lab.machines.pods import Pod, start_pod
from deploy.lab.machines.shell import run
from deploy.lab.reports.report import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.lab.machines.machine import Machine

SWITCH, CONTROLLER = "br-lab", "192.168.80.254"
BUS = f"nats://{CONTROLLER}:4222"
INTERVAL_MS, ROUND = 100, 20
"""Between two packets of a pair, and how many of them make a round."""
ANSWERED_MS = 10_000
LONGEST_S = 600.0


@dataclass(slots=True)
class FlannelMachine:
    """One node: what flannel knows of it, its machine, its pod, and its device before anything was done."""

    old: FlannelNode
    machine: Machine
    directory: Path
    pod: Pod | None = None
    device: tuple[int, str] = (0, "")

    async def batch(self, program: Sequence[str], lines: str) -> None:
        await self.machine.run(*program, stdin=lines + "\n")

    async def found_device(self, name: str) -> tuple[int, str]:
        """Index and MAC of the tunnel device, by any of its names."""
        link = json.loads(await self.machine.run("ip", "-j", "link", "show", name))[0]
        return link["ifindex"], link["address"]


@dataclass(slots=True)
class Traffic:
    """Every pod asks every other, round after round, and counts. Cancelled, a round's counts are lost."""

    places: Sequence[FlannelMachine]
    sent: int = 0
    lost: list[str] = field(default_factory=list)
    _stop: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._stop, self.sent, self.lost = False, 0, []
        self._tasks = [asyncio.create_task(self._ask(place)) for place in self.places]

    async def _ask(self, place: FlannelMachine) -> None:
        others = [other for other in self.places if other is not place and other.pod is not None]
        targets = [other.pod.address for other in others if other.pod is not None]
        while not self._stop and place.pod is not None:
            for found in await place.pod.probe(
                targets, count=ROUND, interval_ms=INTERVAL_MS, timeout_ms=ANSWERED_MS
            ):
                self.sent += found["sent"]
                if found["received"] < found["sent"]:
                    missing = found["sent"] - found["received"]
                    self.lost.append(f"{place.old.name} → {found['target']}: {missing} of {found['sent']}")

    async def collect(self) -> str:
        """End with whole rounds and say how many packets there were. Raises CheckFailedError for any lost."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        if self.lost:
            raise CheckFailedError(f"packets were lost: {'; '.join(self.lost[:6])}")
        return f"{self.sent:,} packets between all pairs of pods, none lost"


class FlannelLab:
    """The whole of it; leaving the sandbox ends everything."""

    def __init__(self, report: Report, directory: Path, plugins: str, count: int) -> None:
        self._report, self._directory, self._plugins, self._count = report, directory, plugins, count
        self.places: list[FlannelMachine] = []
        self._plan = directory / "plan.json"
        self._controller: Daemon | None = None
        self._traffic = Traffic(())

    async def build(self) -> None:
        """The switch, the nodes as flannel leaves them, and their pods."""
        await run(["ip", "link", "add", SWITCH, "address", BRIDGE_MAC, "type", "bridge"])
        await run(["ip", "link", "set", SWITCH, "up"])
        controller = await self._machine("controller", CONTROLLER)
        up = [ISTHMUS, "up", "--data", str(self._directory / "up"), "--host", CONTROLLER, "--http", "off"]
        self._controller = Daemon("controller", controller, up, self._directory / "up.log")
        await self._controller.start()
        old = [FlannelNode(f"node-{n}", n, f"192.168.80.{n + 1}") for n in range(self._count)]
        machines = await asyncio.gather(*(self._machine(node.name, node.underlay) for node in old))
        for node, machine in zip(old, machines, strict=True):
            directory = self._directory / node.name
            directory.mkdir()
            (directory / "machine").write_text(str(machine.pid))
            self.places.append(FlannelMachine(node, machine, directory))
        await asyncio.gather(*(self._install(place, old) for place in self.places))
        self._traffic = Traffic(self.places)

    async def _machine(self, name: str, address: str) -> Machine:
        machine = await start_machine(name)
        await ip_batch([], link_lines(f"u-{name}", SWITCH, "eth0", machine))
        lines = [f"addr add {address}/24 dev eth0", "link set eth0 up"]
        if address != CONTROLLER:
            lines.append(f"route add default via {CONTROLLER}")
        await ip_batch(machine.inside(), lines)
        return machine

    async def _install(self, place: FlannelMachine, everybody: Sequence[FlannelNode]) -> None:
        old = place.old
        ip, bridge = old.device(), list[str]()
        for other in everybody:
            if other is not old:
                rows = old.rows_towards(other)
                ip += rows[0]
                bridge += rows[1]
        await place.batch(["ip", "-batch", "-"], "\n".join(ip))
        await place.batch(["bridge", "-batch", "-"], "\n".join(bridge))
        await place.batch(["iptables-restore", "--noflush"], old.rules())
        await place.machine.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        (place.directory / "cni").mkdir()
        (place.directory / "cni" / "10-flannel.conflist").write_text(old.conflist())
        pod = old.bridge_configuration(str(place.directory / "networks"))
        document = {"cniVersion": pod["cniVersion"], "name": pod["name"], "plugins": [pod]}
        place.pod = await start_pod(f"pod-{old.name}", place.machine, json.dumps(document), self._plugins)
        place.device = await place.found_device(DEVICE)

    # --- the operator ------------------------------------------------------------------------------------

    def _line(self, verb: str, *more: str) -> list[str]:
        """`isthmus adopt VERB` with how a line is run on a node, and the lines."""
        own = f"{self._directory}/{{node}}"
        on_node = self._directory / "on-node"
        on_node.write_text(f'exec nsenter -t "$(cat {self._directory}/$1/machine)" -n -m -u -- sh -c "$2"\n')
        where = f"--state-dir {own}/state --cni-dir {own}/cni"
        take = (
            f"[ -e {own}/pid ] && kill -0 $(cat {own}/pid) 2>/dev/null || {{ "
            f"{ISTHMUS} agent --bus {BUS} --node {{node}} --uid {{uid}} --kind {{kind}} --underlay {{address}} "
            f"--take-over {{device}} {where} --cni-data-dir {own}/networks --metrics off --heartbeat 1 "
            f">>{own}/agent.log 2>&1 </dev/null & echo $! >{own}/pid; }}"
        )
        give = (
            f"[ ! -e {own}/pid ] || kill $(cat {own}/pid); rm -f {own}/pid; for i in $(seq 30); do "
            f"{ISTHMUS} agent give-back --yes {where} && exit 0; sleep 0.3; done; exit 1"
        )
        how = ["--on-node", f"sh {shlex.quote(str(on_node))} {{node}}", "--take", take, "--give", give]
        return [ISTHMUS, "adopt", verb, str(self._plan), "--yes", "--bus", BUS, *how, "--pings", "3", *more]

    async def _operate(self, *command: str) -> str:
        if self._controller is None:
            raise RuntimeError("it was built")
        return await run(self._controller.machine.inside(*command), timeout_s=LONGEST_S)

    async def plan(self) -> str:
        """What `isthmus adopt plan` says of the Node objects."""
        nodes = self._directory / "nodes.json"
        nodes.write_text(kubernetes_list([place.old for place in self.places]))
        env = self._directory / "subnet.env"
        env.write_text(self.places[0].old.subnet_env())
        files = ("--nodes", str(nodes), "--subnet-env", str(env), "--to", str(self._plan))
        said = await self._operate(ISTHMUS, "adopt", "plan", *files)
        return "\n".join(said.strip().splitlines()[-4:-1])

    def _over(self) -> int:
        file = self._plan.with_name(f"{self._plan.name}.progress")
        found: dict[str, Any] = json.loads(file.read_text())["nodes"] if file.exists() else {}
        return sum(node.get("state") == "over" for node in found.values())

    async def run_with_kills(self) -> str:
        """The run over all nodes, while the controller, an agent and the run itself die.

        Raises CheckFailedError, CommandFailedError, TimeoutError.
        """
        killed: list[str] = []
        process = await asyncio.create_subprocess_exec(
            *self._inside(self._line("run")),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(LONGEST_S):
                for at, what in ((2, "controller"), (4, "agent"), (6, "run")):
                    while self._over() < at and process.returncode is None:
                        with suppress(TimeoutError):
                            async with asyncio.timeout(0.1):
                                await process.wait()
                    if process.returncode is not None:
                        break
                    await self._kill(what, process)
                    killed.append(f"{what} after {self._over()} nodes")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await self._operate(*self._line("run"))
        if self._over() != self._count:
            raise CheckFailedError(f"{self._over()} of {self._count} nodes are over")
        return f"{self._count} nodes are over; killed: {', '.join(killed) or 'nothing'}"

    def _inside(self, command: Sequence[str]) -> list[str]:
        if self._controller is None:
            raise RuntimeError("it was built")
        return self._controller.machine.inside(*command)

    async def _kill(self, what: str, process: asyncio.subprocess.Process) -> None:
        if what == "run":
            process.kill()
        elif what == "controller" and self._controller is not None:
            await self._controller.kill()
            await self._controller.start()
        elif what == "agent":
            first = self.places[0]
            await first.machine.run(
                "sh", "-c", f"kill -9 $(cat {first.directory}/pid); rm {first.directory}/pid"
            )
            take = self._line("run")[self._line("run").index("--take") + 1]
            words = {"node": first.old.name, "uid": first.old.uid, "kind": "external", "device": DEVICE,
                     "address": first.old.underlay}  # fmt: skip
            for key, value in words.items():
                take = take.replace("{" + key + "}", value)
            await first.machine.run("sh", "-c", take)

    # --- what must hold ----------------------------------------------------------------------------------

    async def taken(self) -> str:
        """No row without our mark, no other address, MAC or device. Raises CheckFailedError."""
        async with asyncio.timeout(LONGEST_S):
            for place in self.places:
                while wrong := await self._foreign(place):
                    if not wrong[0].startswith("rule"):
                        raise CheckFailedError(f"{place.old.name}: {'; '.join(wrong[:4])}")
                    await asyncio.sleep(0.2)
        await self._same_addresses()
        return "every neighbour and route has our mark; index, MAC and pods' addresses are what they were"

    async def _same_addresses(self) -> None:
        """Look into each pod for its address. Raises CheckFailedError."""
        for place in self.places:
            if place.pod is None:
                continue
            inside = [
                "nsenter",
                "-t",
                str(place.pod.pid),
                "-n",
                "ip",
                "-4",
                "-o",
                "addr",
                "show",
                "dev",
                "eth0",
            ]
            said = await run(inside)
            if f" inet {place.pod.address}/" not in said:
                raise CheckFailedError(f"the pod on {place.old.name} was {place.pod.address}, and has: {said}")

    async def _foreign(self, place: FlannelMachine) -> list[str]:
        wrong: list[str] = []
        if (
            await place.found_device("isthmus") != place.device
            or await place.found_device(DEVICE) != place.device
        ):
            wrong.append("the device is another one")
        routes = (await place.machine.run("ip", "-4", "route", "show", "dev", "isthmus")).splitlines()
        rows = (
            await place.machine.run("ip", "neigh", "show", "dev", "isthmus", "nud", "permanent")
        ).splitlines()
        if len(routes) < self._count - 1 or len(rows) < self._count - 1:
            wrong.append(f"{len(routes)} routes and {len(rows)} neighbours")
        wrong += [row for row in (*routes, *rows) if "proto 84" not in row]
        if "-A FLANNEL-" in await place.machine.run("iptables-save"):
            wrong.append("rules of flannel are left")
        return wrong

    async def given_back(self) -> str:
        """Everything is as flannel left it. Raises CheckFailedError."""
        for place in self.places:
            routes = await place.machine.run("ip", "-4", "route", "show")
            own = routes.count(f"dev {DEVICE} onlink")
            rules = (await place.machine.run("iptables-save")).count("-A FLANNEL-POSTRTG")
            files = [file.name for file in (place.directory / "cni").iterdir()]
            found = (await place.found_device(DEVICE), own, "proto 84" in routes, rules, files)
            if found != (place.device, self._count - 1, False, 6, ["10-flannel.conflist"]):
                raise CheckFailedError(f"{place.old.name} is not as it was: {found}")
        await self._same_addresses()
        return (
            f"{self._count} nodes are flannel's again: device, {self._count - 1} routes each, rules, CNI file"
        )

    async def everything(self) -> None:
        """All stages in order; each rests on the ones before."""
        report = self._report
        with report.stage(f"{self._count} nodes as flannel leaves them") as check:
            await self.build()
            self._traffic.start()
            await asyncio.sleep(2 * ROUND * INTERVAL_MS / 1000)
            check.detail = await self._traffic.collect()
        if self._failed():
            return
        with report.stage("the plan") as check:
            check.detail = await self.plan()
        for name, action, looked in (
            ("taken over, while controller, agent and run are killed", self.run_with_kills, self.taken),
            ("given back", self._roll_back, self.given_back),
        ):
            if self._failed():
                return
            with report.stage(name) as check:
                self._traffic.start()
                said = await action()
                seen = await looked()
                check.detail = f"{said}\n{seen}\n{await self._traffic.collect()}"
                check.measured = {"packets": self._traffic.sent, "lost": len(self._traffic.lost)}

    def _failed(self) -> bool:
        return not self._report.ok

    async def _roll_back(self) -> str:
        return (await self._operate(*self._line("rollback"))).strip().splitlines()[-1]


def work(plugins: str, count: int, *, as_json: bool) -> int:
    """The sandbox's worker: exit code 0 when nothing was lost."""
    from events.cli.tables import console, print_json

    report = Report(None if as_json else console())
    with tempfile.TemporaryDirectory(prefix="isthmus-flannel-") as name:
        lab = FlannelLab(report, Path(name), plugins, count)
        asyncio.run(lab.everything())
    report.summary()
    if as_json:
        print_json(report.document())
    return 0 if report.ok else 1
