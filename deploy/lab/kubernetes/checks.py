"""What must hold in the Kubernetes lab, and its worker."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import msgspec

from deploy.lab.failures import CheckFailedError
from deploy.lab.kubernetes.cluster import RESERVATION, KubernetesLab
from deploy.lab.machines.sandbox import Interruption
from deploy.lab.reports.report import Report
from deploy.lab.topology.layout import CONTAINER_CIDR

if TYPE_CHECKING:
    from deploy.lab.kubernetes.programs import Programs
    from deploy.lab.reports.report import Check
    from deploy.lab.reports.run_directory import LabState, RunDirectory
    from deploy.lab.topology.layout import Topology

PACKETS, INTERVAL_MS, ANSWERED_MS = 20, 5, 5000
FLOW_MS = 20
_ASK_API = "import ssl, urllib.request as r; c = ssl._create_unverified_context()"


async def everything(lab: KubernetesLab, report: Report, per_node: int) -> None:
    """All stages in order; each rests on the ones before. Cancelled, it leaves the lab as it is then."""
    for name, stage in (
        ("Two sites with machines, a container runtime on each", _built),
        ("A control plane, kubelets register their Nodes", _joined),
        ("kubectl apply of the one file makes every Node Ready", _ready),
        ("Every podCIDR is the range in the log", _ranges),
        ("Pods are placed by the scheduler, attached by the CNI plugins", partial(_placed, per_node=per_node)),
        ("Every pod reaches every other pod", _pairs),
        ("Every pod reaches the Service before them", _service),
        ("The log knows which pod has an address", _named),
        ("External nodes reach the API server by a CLB pair on two gateways", _balanced),
        ("A Node that is deleted and registers anew gets its range again", _registered_anew),
        ("SIGKILL of agent, bus, controller, kubelet, manager, scheduler, API server", _killed),
    ):
        with report.stage(name) as check:
            await stage(lab, report, check)
        if not check.ok:
            return


async def _built(lab: KubernetesLab, _: Report, check: Check) -> None:
    await lab.build()
    check.detail = f"{len(lab.nodes)} machines: {', '.join(lab.nodes)}"


async def _joined(lab: KubernetesLab, _: Report, check: Check) -> None:
    await lab.start_control_plane()
    await lab.join_nodes()
    check.detail = f"on {lab.first.name}; no Node has a network"


async def _ready(lab: KubernetesLab, _: Report, check: Check) -> None:
    seconds = await lab.apply_network()
    check.detail = f"{len(lab.nodes)} Nodes {seconds:.1f} s after the command began"
    check.measured = {"ready_s": round(seconds, 3)}


async def _placed(lab: KubernetesLab, _: Report, check: Check, *, per_node: int) -> None:
    await lab.start_pods(per_node)
    check.detail = f"{len(lab.pods)} pods"


async def _ranges(lab: KubernetesLab, report: Report, check: Check) -> None:
    """Every podCIDR is the range in the log, and nobody else's. Raises CheckFailedError."""
    found = await lab.node_objects()
    listed = msgspec.json.decode(await lab.isthmus("node", "list", "--json"))
    owned = {each["node"]: each["cidr"] for each in listed["nodes"]}
    kinds = {each["node"]: each["kind"] for each in listed["nodes"]}
    rows = []
    for each in found:
        name, cidr = each["metadata"]["name"], each["spec"].get("podCIDR", "")
        rows.append((name, lab.nodes[name].node.kind, lab.nodes[name].node.underlay, cidr))
        if cidr != owned.get(name) or not IPv4Network(cidr).subnet_of(CONTAINER_CIDR):
            raise CheckFailedError(f"{name} has podCIDR {cidr!r}, the log says {owned.get(name)!r}")
        if kinds[name] != lab.nodes[name].node.kind:
            raise CheckFailedError(f"{name} is {lab.nodes[name].node.kind}, the log says {kinds[name]}")
    report.table("Nodes", ("node", "kind", "InternalIP", "podCIDR"), rows)
    if len({row[3] for row in rows}) != len(rows):
        raise CheckFailedError(f"two Nodes have one podCIDR: {rows}")
    check.detail = f"{len(rows)} Nodes, no two with one"


async def _pairs(lab: KubernetesLab, _: Report, check: Check) -> None:
    answers = await asyncio.gather(
        *(_ask(pod, [other.address for other in lab.pods if other is not pod]) for pod in lab.pods)
    )
    check.detail, check.measured = _judged([each for found in answers for each in found])


async def _service(lab: KubernetesLab, _: Report, check: Check) -> None:
    answers = await asyncio.gather(*(_ask(pod, [lab.service]) for pod in lab.pods))
    detail, check.measured = _judged([each for found in answers for each in found])
    check.detail = f"{lab.service}: {detail}"


async def _named(lab: KubernetesLab, _: Report, check: Check) -> None:
    pod = lab.pods[-1]
    said = ""

    async def named() -> bool:
        nonlocal said
        said = await lab.isthmus("replay", "who", "--ip", pod.address)
        return pod.name in said and pod.node in said

    await lab.until(named, f"`isthmus replay who --ip {pod.address}` to name {pod.name}")
    check.detail = f"{pod.address}: {pod.name} on {pod.node}"


async def _balanced(lab: KubernetesLab, _: Report, check: Check) -> None:
    """Nobody says where the API server is: the backends follow Kubernetes. Raises CheckFailedError."""
    subnet = f"{lab.topology.sites[0].subnet[64]}/28"
    await lab.isthmus("clb", "reserve", RESERVATION, "--subnet", subnet, "--provider", "gateway")
    for name in lab.gateways:
        await lab.isthmus("clb", "gateway", "add", name)
    shown: dict[str, Any] = {}

    async def held() -> bool:
        shown.update(msgspec.json.decode(await lab.isthmus("clb", "show", RESERVATION, "--json")))
        healthy = [each["healthy"] for each in shown["backends"]]
        return all(each["node"] for each in shown["holders"]) and bool(healthy) and all(healthy)

    await lab.until(held, "both addresses to be held, and backends to be healthy")
    (address,) = (each["address"] for each in shown["holders"] if each["purpose"] == "apiserver")
    asking = [node for node in lab.nodes.values() if node.node.kind == "external"]
    code = f"{_ASK_API}; print(r.urlopen('https://{address}/readyz', context=c, timeout=20).read().decode())"
    said = await asyncio.gather(*(node.machine.run(sys.executable, "-c", code) for node in asking))
    if {each.strip() for each in said} != {"ok"}:
        raise CheckFailedError(f"{address} answers {said}")
    holders = ", ".join(f"{each['purpose']} {each['address']} on {each['node']}" for each in shown["holders"])
    check.detail = f"{holders}; asked from {', '.join(node.name for node in asking)}"


async def _registered_anew(lab: KubernetesLab, report: Report, check: Check) -> None:
    before = await lab.pod_cidrs()
    started = time.monotonic()
    name = lab.pods[-1].node
    kubelet = lab.nodes[name].daemons["kubelet"]
    await kubelet.kill()
    await lab.kubectl("delete", "node", name)
    await kubelet.start()
    await lab.label(name)
    await lab.until(lab.ready, f"{name} to be Ready again")
    seconds = time.monotonic() - started
    after = await lab.pod_cidrs()
    if after != before:
        raise CheckFailedError(f"podCIDRs were {before} and are {after}")
    await lab.until(lab.network_is_up, "all of Isthmus' containers to be ready again")
    await lab.attach_pods()
    await _ranges(lab, report, check)
    check.detail = f"{name}: {after[name]}, Ready {seconds:.1f} s after it was deleted"


async def _killed(lab: KubernetesLab, report: Report, check: Check) -> None:
    """A stream between two nodes goes on all the while. Raises CheckFailedError."""
    before = await lab.pod_cidrs()
    asking = lab.pods[0]
    asked = next(pod for pod in reversed(lab.pods) if pod.node != asking.node)
    await lab.attach_again(asking)
    await asking.start_flow(asked.address, interval_ms=FLOW_MS)
    for node in (asking.node, asked.node):
        await lab.kill_container("agent", node)
    for name in ("bus", "controller"):
        await lab.kill_container(name)
    servers = lab.control.daemons
    killed = [lab.nodes[asked.node].daemons["kubelet"], *(servers[name] for name in servers if name != "etcd")]
    for daemon in killed:
        await daemon.kill()
        await daemon.start()
    await lab.until(lab.ready, "all Nodes to be Ready again")
    await lab.until(lab.network_is_up, "all of Isthmus' containers to be ready again")
    after = await lab.pod_cidrs()
    if after != before:
        raise CheckFailedError(f"podCIDRs were {before} and are {after}")
    await lab.attach_again(asking)
    flow = await asking.stop_flow()
    detail, check.measured = _judged([{**flow, "from": f"{asking.name} on {asking.node}"}])
    await _ranges(lab, report, check)
    check.detail = f"every podCIDR is what it was; {detail}"


async def _ask(pod: Any, targets: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await pod.probe(
        targets, count=PACKETS, interval_ms=INTERVAL_MS, timeout_ms=ANSWERED_MS
    )
    return [{**each, "from": f"{pod.name} on {pod.node}"} for each in found]


def _judged(answers: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    sent = sum(each["sent"] for each in answers)
    lost = [each for each in answers if each["received"] < each["sent"]]
    if lost or not sent:
        said = [f"{each['from']} → {each['target']}: {each['received']} of {each['sent']}" for each in lost]
        raise CheckFailedError(f"answers are missing: {'; '.join(said[:8])} ({len(lost)} of {len(answers)})")
    return f"{sent:,} packets of {len(answers)} pairs, all answered", {"packets": sent, "lost": 0}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to do, from the command line."""

    topology: Topology
    pods: int
    """On each node."""
    programs: Programs
    keep: bool
    as_json: bool


def work(wanted: Wanted, directory: RunDirectory, state: LabState) -> int:
    """The sandbox's worker: exit code 0 when all checks passed, 1 when one failed, or the interruption's."""
    from events.cli.tables import console, print_json

    logging.basicConfig(filename=directory.log("lab"), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    report = Report(None if wanted.as_json else console())
    code = asyncio.run(_main(wanted, directory, state, report))
    if wanted.as_json:
        print_json(report.document())
    return code


async def _main(wanted: Wanted, directory: RunDirectory, state: LabState, report: Report) -> int:
    stop = Interruption()
    async with KubernetesLab(wanted.topology, directory, wanted.programs) as lab:
        checking = asyncio.create_task(everything(lab, report, wanted.pods), name="lab: checks")
        stopping = asyncio.create_task(stop.came.wait(), name="lab: wait for a stop")
        await asyncio.wait({checking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = not checking.done()
        if interrupted:
            checking.cancel()
        await asyncio.gather(checking, return_exceptions=interrupted)
        report.summary(interrupted=interrupted)
        if wanted.keep and not interrupted:
            directory.write(msgspec.structs.replace(state, machines=lab.machines, environment=lab.environment))
            report.note(_invitation(directory, wanted.programs))
            await stop.came.wait()
            report.note("taking the lab down")
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    return stop.exit_code if interrupted else (0 if report.ok else 1)


def _invitation(directory: RunDirectory, programs: Programs) -> str:
    name = directory.path.name
    option = "" if name == "lab" else f" --name {name}"
    return (
        f"\nThe lab stays up. From another terminal:\n"
        f"  isthmus lab exec{option} cloud-1 {programs['kubectl']} get nodes,pods -A -o wide\n"
        f"  isthmus lab down{option}          (or Ctrl-C here)\nLogs: {directory.path / 'logs'}"
    )
