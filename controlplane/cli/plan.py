"""``isthmus plan``: the address plan as a table, without a bus."""

from __future__ import annotations

import click

from controlplane.cli.common import PODS_PER_NODE, addresses_for, usable_pods_option
from controlplane.cluster.addressing.addresses import network
from controlplane.cluster.addressing.plan import (
    MAX_SERVICES,
    MIN_PODS_PER_NODE,
    MIN_SERVICES,
    Plan,
    formula,
    make_plan,
    prefix_of,
)
from controlplane.cluster.addressing.proposal import Proposal, propose
from events.cli.options import json_option
from events.cli.tables import print_json, print_table
from events.errors import Refused


@click.command()
@click.option("--cidr", default="", metavar="CIDR", help="Container CIDR, for example 10.200.0.0/16.")
@click.option(
    "--pods",
    type=int,
    default=PODS_PER_NODE,
    show_default=True,
    help=f"Addresses per node (at least {MIN_PODS_PER_NODE}), rounded up to 2ⁿ: 64 addresses, 61 pods.",
)
@usable_pods_option
@click.option(
    "--services",
    type=int,
    default=256,
    show_default=True,
    help=f"Services ({MIN_SERVICES} … {MAX_SERVICES}), rounded up to a power of two.",
)
@click.option("--nodes", type=int, help="Propose the smallest plan for so many nodes.")
@click.option("--avoid", multiple=True, metavar="CIDR", help="A network to stay clear of. Repeatable.")
@click.option(
    "--kubeadm", is_flag=True, help="Print what a Kubernetes cluster on it is made with: kubeadm's file."
)
@json_option
def plan(
    *,
    cidr: str,
    pods: int,
    usable_pods: int | None,
    services: int,
    nodes: int | None,
    avoid: tuple[str, ...],
    kubeadm: bool,
    as_json: bool,
) -> None:
    """Cut a container CIDR into node ranges and the Service range, or propose one.

    Needs no bus and changes nothing.

    \b
    isthmus plan --cidr 172.16.0.0/16 --pods 64 --services 256
    isthmus plan --cidr 172.16.0.0/16 --pods 64 --services 256 --nodes 300
    isthmus plan --cidr 172.16.0.0/16 --usable-pods 64
    isthmus plan --pods 64 --nodes 5000 --avoid 10.0.0.0/12
    isthmus plan --cidr 10.200.0.0/16 --pods 64 --kubeadm > kubeadm.yaml
    """
    if kubeadm and as_json:
        raise click.UsageError("--kubeadm prints kubeadm's file, --json the plan: one of them")
    pods = addresses_for(pods, usable_pods)
    if not cidr and nodes is None:
        raise click.UsageError("give --cidr, or --nodes for a proposal, or both")
    if nodes is not None:
        proposal = propose(cidr, pods, services, nodes, avoid)
        _check_clear(proposal.plan, avoid)
        if kubeadm:
            click.echo(_kubeadm(proposal.plan), nl=False)
            return
        if as_json:
            print_json(proposal)
            return
        _show(proposal.plan, _headline(proposal))
        return
    made = make_plan(cidr, pods, services)
    _check_clear(made, avoid)
    if kubeadm:
        click.echo(_kubeadm(made), nl=False)
    elif as_json:
        print_json(made)
    else:
        _show(made, f"{made.container_cidr} holds {made.capacity:,} nodes")


def _kubeadm(made: Plan) -> str:
    """The parts of kubeadm's file that must fit the plan; ``kubeadm init --config FILE``."""
    return (
        "# No podSubnet: ranges are given by Isthmus, and by nobody else.\n"
        "apiVersion: kubeadm.k8s.io/v1beta4\n"
        "kind: ClusterConfiguration\n"
        "networking:\n"
        f"  serviceSubnet: {made.service_cidr}\n"
        "controllerManager:\n"
        "  extraArgs:\n"
        '    - {name: allocate-node-cidrs, value: "false"}\n'
        "---\n"
        "apiVersion: kubelet.config.k8s.io/v1beta1\n"
        "kind: KubeletConfiguration\n"
        f"# The addresses of a range of {made.range_size}, less three.\n"
        f"maxPods: {made.usable_pods}\n"
        "---\n"
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n"
        "kind: KubeProxyConfiguration\n"
        "# After `isthmus cluster append`: detectLocalMode NodeCIDR, in the place of the CIDR.\n"
        f"clusterCIDR: {made.container_cidr}\n"
        "detectLocalMode: ClusterCIDR\n"
    )


def _check_clear(made: Plan, avoid: tuple[str, ...]) -> None:
    ours = network(made.container_cidr)
    for item in avoid:
        theirs = network(item, "network to avoid")
        if ours.overlaps(theirs):
            raise Refused(
                "cidr_conflict_with_route",
                f"container CIDR {ours} overlaps {theirs}, which is to be avoided; "
                f"with --nodes and without --cidr a free one is proposed",
                ours=str(ours),
                theirs=str(theirs),
            )


def _headline(proposal: Proposal) -> str:
    made = proposal.plan
    if proposal.smaller:
        return f"{made.container_cidr} is enough for {proposal.nodes:,} nodes (asked: {proposal.asked_cidr})"
    if proposal.asked_cidr:
        return f"{made.container_cidr} is the smallest that holds {proposal.nodes:,} nodes"
    return f"{made.container_cidr} would hold {proposal.nodes:,} nodes"


def _show(made: Plan, title: str) -> None:
    net = network(made.container_cidr)
    spare = f", {made.stranded} stranded" if made.stranded else ""
    rows = [
        ("container CIDR", made.container_cidr, f"{net.size:,} addresses{spare}"),
        ("node range", f"/{prefix_of(made.range_size)}", _rounded(made.max_pods_per_node, made.range_size)),
        ("pods per node", f"{made.usable_pods:,}", f"{made.range_size} − 3 (network, broadcast, gateway)"),
        ("Service range", made.service_cidr, _rounded(made.max_services, made.service_size)),
        ("Services", f"{made.usable_services:,}", f"{made.service_size} − 5 (network, broadcast, 3 default)"),
        ("nodes", f"{made.capacity:,}", formula(net.size, made.range_size, made.service_size)),
        ("first range", made.first_range, "given first; then cyclically and sequentially"),
        ("last range", made.last_range, ""),
    ]
    print_table(("what", "value", "how"), rows, title=title)


def _rounded(asked: int, size: int) -> str:
    return f"{size:,} addresses" + ("" if asked == size else f" ({asked:,} rounded up)")
