"""``isthmus adopt plan``: what of a running cluster fits, what does not and why, and the plan."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from controlplane.cli.adopt import plan_file, planning, reading
from controlplane.cli.adopt.planning import Origin
from events.cli.options import json_option, run
from events.cli.tables import print_json, print_table
from events.errors import BadRequest

MTU_MIN = 576
SOURCES = ("flannel", "cilium", "podcidr")
FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


@click.command("plan")
@click.option("--from", "source", type=click.Choice(SOURCES),
              help="What the ranges are of [as the input shows].")  # fmt: skip
@click.option("--kubernetes", is_flag=True,
              help="Read the API server's Nodes, by kubectl's access or as a pod.")  # fmt: skip
@click.option("--kubeconfig", type=click.Path(exists=True, dir_okay=False),
              help="Access to the API server; implies --kubernetes.")  # fmt: skip
@click.option("--nodes", type=FILE, help="Node objects: kubectl get nodes -o json (- for standard input).")
@click.option("--leases", type=FILE,
              help="Flannel's leases: etcdctl get --prefix /coreos.com/network -w json.")  # fmt: skip
@click.option("--cilium", type=FILE, help="CiliumNode objects: kubectl get ciliumnodes -o json.")
@click.option("--hosts", type=FILE, help="Without Kubernetes: lines of ADDRESS NODE UID.")
@click.option("--subnet-env", "subnet_envs", type=click.Path(exists=True, dir_okay=False),
              multiple=True, help="A node's /run/flannel/subnet.env. Repeatable.")  # fmt: skip
@click.option("--cidr", default="", help="Container CIDR [as the input says].")
@click.option("--range-size", type=int, default=0, help="Addresses per node [what most nodes have].")
@click.option("--services", type=int, default=256, show_default=True,
              help="Services; the last segment of the CIDR stays free for them.")  # fmt: skip
@click.option("--service-cidr", default="", help="The cluster's own Service range, to stay clear of.")
@click.option("--vni", type=int, default=0, help="VXLAN network identifier [what most nodes have].")
@click.option("--port", type=int, default=0, help="VXLAN UDP port [as the input says, or 8472].")
@click.option(
    "--mtu", type=click.IntRange(0, 65485), default=0, help="Inner MTU in bytes [FLANNEL_MTU, or followed]."
)
@click.option("--keep-name", is_flag=True,
              help="Devices keep their name, for Linux before 6.2: agents with --device.")  # fmt: skip
@click.option("--kind", type=click.Choice(["cloud", "external"]), default="cloud", show_default=True,
              help="Kind of nodes that do not say it.")  # fmt: skip
@click.option("--underlay-cidr", "underlay_cidrs", multiple=True, metavar="CIDR",
              help="A node's address is the one in this network. Repeatable.")  # fmt: skip
@click.option("--skip", multiple=True, metavar="NODE",
              help="Leave this node out: it joins as a new one later. Repeatable.")  # fmt: skip
@click.option("--cluster", envvar="ISTHMUS_CLUSTER", default="default", show_default=True)
@click.option("--to", "to", type=click.Path(path_type=Path, dir_okay=False), help="Where the plan goes.")
@json_option
def plan_command(
    *,
    source: str | None,
    kubernetes: bool,
    kubeconfig: str | None,
    nodes: str | None,
    leases: str | None,
    cilium: str | None,
    hosts: str | None,
    subnet_envs: tuple[str, ...],
    kind: str,
    underlay_cidrs: tuple[str, ...],
    to: Path | None,
    as_json: bool,
    **wish: Any,
) -> None:
    """Report what of a running cluster fits, and what does not and why.

    Needs no bus and changes nothing; with --to and no finding, the plan is written there, and nothing else.
    Exit code 1 when something does not fit: then no plan is written.

    \b
    isthmus adopt plan --kubernetes --to plan.json
    kubectl get nodes -o json | isthmus adopt plan --nodes - --to plan.json
    isthmus adopt plan --nodes nodes.json --cilium ciliumnodes.json
    isthmus adopt plan --leases etcd.json --hosts hosts.txt \\
        --subnet-env subnet.env
    """
    api = kubernetes or bool(kubeconfig)
    if not api and nodes is None and hosts is None:
        raise BadRequest(
            "bad_request",
            "say who the nodes are: --kubernetes, --nodes FILE, or --hosts FILE with --leases FILE",
        )
    if api and (nodes is not None or cilium is not None):
        raise BadRequest("bad_request", "the API server's Nodes or those of files: --kubernetes or --nodes")
    if [nodes, leases, cilium, hosts].count(reading.PIPE) > 1:
        raise BadRequest("bad_request", "standard input can be one of the files only")
    if 0 < wish["mtu"] < MTU_MIN:
        raise BadRequest(
            "bad_request", f"--mtu {wish['mtu']}: {MTU_MIN} … 65485 bytes, or 0 to follow the underlay"
        )
    origin = Origin(
        kubernetes=api,
        kubeconfig=kubeconfig or "",
        nodes=nodes or "",
        leases=leases or "",
        cilium=cilium or "",
        hosts=hosts or "",
        subnet_envs=subnet_envs,
        kind=kind,
        source=source or "",
        underlay_cidrs=underlay_cidrs,
    )
    found = run(reading.read(origin))
    report = planning.make(
        found.candidates,
        planning.Wish(source=source or found.source, **wish),
        configured=found.configured,
        subnet_envs=found.subnet_envs,
        origin=reading.kept(origin),
    )
    if to is not None and report.plan is not None:
        plan_file.save(to, report.plan)
    if as_json:
        print_json(report)
    else:
        _show(report, to)
    if report.findings:
        raise SystemExit(1)


def _show(report: planning.Report, to: Path | None) -> None:
    if report.findings:
        rows = [(entry["node"], entry["code"], entry["message"]) for entry in report.findings]
        print_table(("node", "code", "what does not fit"), rows)
        several = {entry["node"] for entry in report.findings}
        click.echo(f"{len(rows)} findings about {len(several)} nodes: no plan was made")
    plan = report.plan
    if plan is not None:
        print_table(
            ("node", "range", "underlay", "vtep mac", "kind", "site"),
            [(n.node, n.range, n.announced or n.underlay, n.vtep_mac, n.kind, n.site) for n in plan.nodes],
        )
        define = plan.define
        click.echo(
            f"{len(plan.nodes):,} nodes of {plan.capacity:,} ranges fit: {define.container_cidr} in ranges of "
            f"{planning.size_text(plan)}; the next new node gets range {plan.cursor:,}"
        )
        mtu = f"{plan.mtu:,} bytes" if plan.mtu else "the underlay's less 50"
        click.echo(
            f"VNI {define.vni}, port {define.vxlan_port}, MTU {mtu}; "
            f"Service range kept free: {plan.service_cidr}"
        )
    for note in report.notes:
        click.echo(note)
    if plan is not None:
        next_step = f"the plan is in {to}; next: isthmus adopt run {shlex.quote(str(to))}"
        where = next_step if to else "to keep the plan: --to FILE"
        click.echo(where)
