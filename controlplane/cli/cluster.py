"""``isthmus cluster``: define, show, append a CIDR, declare networks, delete."""

from __future__ import annotations

from typing import Any

import click
from msgspec import UNSET

from controlplane.cli.common import (
    PODS_PER_NODE,
    addresses_for,
    ask,
    override_option,
    pages,
    send,
    show_conditions,
    show_written,
    usable_pods_option,
    write_options,
)
from controlplane.cli.rollback.command import prepare_rollback_command
from controlplane.cluster.addressing.plan import addresses_and_pods
from events.cli.hints import hint
from events.cli.options import BusContext, bus_options, confirm, controller, json_option, run
from events.cli.output import listing_options
from events.cli.tables import output, print_json, print_table
from events.errors import Usage
from events.protocol.commands import (
    AppendCidr,
    DeclareNetwork,
    DefineCluster,
    DeleteCluster,
    Override,
    SetEncryption,
    WithdrawNetwork,
)
from events.protocol.encryption import SCOPES, Encryption
from events.protocol.queries import (
    AddressOwner,
    ClusterView,
    ListRanges,
    RangePage,
    RangeView,
    ShowCluster,
    WhoHas,
)
from events.types import EncryptionScope, Network

KINDS = ("vpc", "idc", "clb", "route")


@click.group()
def cluster() -> None:
    """Define a cluster, look at it, let it grow.

    \b
    isthmus cluster define --cidr 10.200.0.0/16 --pods 64 --services 256 \\
        --network vpc=10.0.0.0/16
    isthmus cluster show
    isthmus cluster append 10.201.0.0/16
    """


cluster.add_command(prepare_rollback_command)


def parse_network(value: str) -> Network:
    """``vpc=10.0.0.0/16`` or ``vpc:office=10.0.0.0/16`` → a network. Raises Usage(usage)."""
    left, equals, cidr = value.partition("=")
    kind, _, name = left.partition(":")
    if not equals or kind not in KINDS or not cidr:
        raise Usage(
            "usage",
            f"network {value!r} is not of the form KIND=CIDR or KIND:NAME=CIDR, KIND one of {', '.join(KINDS)}",
        )
    return Network(cidr=cidr, kind=kind, name=name)  # type: ignore[arg-type]  # checked above


@cluster.command()
@click.option(
    "--cidr", "container_cidr", required=True, metavar="CIDR", help="Container CIDR, for example 10.200.0.0/16."
)
@click.option(
    "--pods",
    type=int,
    default=PODS_PER_NODE,
    show_default=True,
    help="Addresses per node, rounded up to 2ⁿ: 64 addresses, 61 pods.",
)
@usable_pods_option
@click.option("--services", type=int, default=256, show_default=True, help="Services, rounded up to 2ⁿ.")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="KIND[:NAME]=CIDR",
    help="A routed network to stay clear of; KIND is vpc, idc, clb or route. Repeatable.",
)
@click.option("--vni", type=int, default=100, show_default=True, help="VXLAN network identifier.")
@click.option("--port", "vxlan_port", type=int, default=8472, show_default=True, help="VXLAN UDP port.")
@click.option(
    "--quarantine",
    "quarantine_s",
    type=float,
    default=60,
    show_default=True,
    help="Seconds that a released range rests.",
)
@click.option(
    "--unreachable-after",
    "unreachable_after_s",
    type=float,
    default=30,
    show_default=True,
    help="Seconds of silence of a node's agent.",
)
@click.option(
    "--remove-after",
    "remove_after_s",
    type=float,
    default=0,
    show_default=True,
    help="Seconds after which an unreachable node is fenced and its range drains; 0 is never.",
)
@click.option(
    "--encrypt",
    type=click.Choice(SCOPES),
    help="What WireGuard encrypts: nothing, packets between sites, all between nodes. See `cluster encrypt`.",
)
@override_option
@write_options
def define(
    *,
    context: BusContext,
    container_cidr: str,
    pods: int,
    usable_pods: int | None,
    networks: tuple[str, ...],
    encrypt: EncryptionScope | None,
    how: dict[str, Any],
    as_json: bool,
    **settings: Any,
) -> None:
    """Define the cluster's address plan; the first event of its log.

    The plan never changes in place: look at it first with `isthmus plan`, or with --dry-run.

    \b
    isthmus cluster define --cidr 172.16.0.0/16 --pods 64 --services 256
    isthmus cluster define --cidr 10.0.0.0/16 --network vpc=10.0.0.0/8 \\
        --override cidr_conflict_with_vpc='the VPC routes 10.128/9, ticket 4711'
    """
    command = DefineCluster(
        container_cidr=container_cidr,
        pods_per_node=addresses_for(pods, usable_pods),
        networks=tuple(parse_network(item) for item in networks),
        encrypt=encrypt if encrypt is not None else UNSET,
        **settings,
    )
    reply = send(context, command, how)
    made = reply.result
    sentence = (
        f"cluster {context.cluster} defined: {made.get('container_cidr', container_cidr)}, "
        f"{made.get('capacity', 0):,} ranges of {addresses_and_pods(made.get('range_size', 0))}, "
        f"Services {made.get('service_cidr', '')}"
    )
    show_written(reply, sentence, as_json=as_json)


@cluster.command()
@json_option
@bus_options
def show(*, context: BusContext, as_json: bool) -> None:
    """Show the plan, the pool, the networks and what deserves attention.

    \b
    Example: isthmus cluster show --json
    """
    view = ask(context, ShowCluster(), ClusterView)
    if as_json:
        print_json(view)
        return
    _show(context, view)


def _show(context: BusContext, view: ClusterView) -> None:
    made, pool = view.definition, view.pool
    if made is None:
        way = hint(context.cluster, "isthmus cluster define --cidr CIDR")
        click.echo(f"cluster {view.cluster} is not defined yet: {way}")
        return
    phases = (
        f"{pool.allocated:,} allocated + {pool.draining:,} draining + {pool.quarantined:,} quarantined "
        f"+ {pool.free:,} free = {pool.capacity:,}"
    )
    members = (
        f"{view.nodes:,}: {view.nodes - view.external:,} cloud, {view.external:,} external, "
        f"{view.unreachable:,} unreachable"
    )
    removal = f"removed after {made.remove_after_s:g} s more" if made.remove_after_s else "never removed"
    times = f"quarantine {made.quarantine_s:g} s, unreachable after {made.unreachable_after_s:g} s, {removal}"
    rows: list[tuple[str, object]] = [
        ("container CIDRs", ", ".join(f"{c.cidr} ({c.capacity:,} ranges)" for c in view.cidrs)),
        ("Service range", made.service_cidr),
        ("node range", addresses_and_pods(made.range_size)),
        ("ranges", phases),
        ("next range", pool.next_range or "none"),
        ("nodes", members),
        ("CLB reservations", view.reservations),
        ("overlay", f"VNI {made.vni}, UDP port {made.vxlan_port}"),
        ("encryption", _encryption(view.encryption)),
        ("times", times),
        ("applied everywhere", f"up to sequence {view.watermark} of {view.sequence}"),
        ("digest", view.digest[:16]),
    ]
    if pool.earliest_free is not None:
        rows.insert(5, ("next return", pool.earliest_free.isoformat(timespec="seconds")))
    print_table((f"cluster {view.cluster}", ""), rows)
    if view.networks:
        print_table(
            ("network", "kind", "name"), [(n.cidr, n.kind, n.name) for n in view.networks], title="Networks"
        )
    click.echo()
    show_conditions(view.conditions, context=context)


def _encryption(here: Encryption) -> str:
    if here.off:
        return "off"
    stages = f"{here.within_sites} within sites, {here.between_sites} between sites"
    return f"{here.scope} ({stages}) since event {here.since:,}"


@cluster.command()
@click.argument("scope", type=click.Choice(SCOPES))
@write_options
def encrypt(*, context: BusContext, scope: EncryptionScope, how: dict[str, Any], as_json: bool) -> None:
    """Encrypt packets between nodes by WireGuard: off, between sites, or all.

    The cluster goes there in steps, each when every node's agent has applied the one before, so that no packet
    is lost: first all nodes accept both, then they send encrypted, then nothing in the clear is taken any more.
    `isthmus cluster show` says how far it is. Refused while a member has no WireGuard.

    \b
    isthmus cluster encrypt sites
    isthmus cluster encrypt all
    """
    reply = send(context, SetEncryption(scope=scope), how)
    settled = reply.result.get("settled", False)
    sentence = f"cluster {context.cluster} encrypts {scope!r}" + (
        "" if settled else ": on the way, step by step as agents report; see isthmus cluster show"
    )
    show_written(reply, sentence, as_json=as_json)


@cluster.command()
@click.option(
    "--phase", type=click.Choice(["allocated", "draining", "quarantined"]), help="Only ranges in this phase."
)
@listing_options
@bus_options
def ranges(*, context: BusContext, phase: Any, as_json: bool) -> None:
    """List the ranges that are not free, with their owners and what they wait for.

    \b
    Example: isthmus cluster ranges
    """

    async def main() -> list[RangeView]:
        async with controller(context) as client:
            query = ListRanges(phase=phase)
            return [one async for page in pages(client, query, RangePage) for one in page.ranges]

    found = run(main())
    if as_json:
        print_json({"ranges": found})
        return
    print_table(
        ("range", "index", "phase", "node", "epoch", "uid", "waits for"),
        [(r.cidr, r.index, r.phase, r.node, r.epoch, r.uid, _waits(r)) for r in found],
        right=("index", "epoch"),
        wide=("uid",),
        drop=("index", "phase"),
        shorten=("waits for", "node"),
        empty="every range is free",
    )


def _waits(view: RangeView) -> str:
    if view.until is not None:
        return f"rest until {view.until.isoformat(timespec='seconds')}"
    if view.draining_since is not None:
        return f"all agents to apply sequence {view.draining_since}"
    return ""


@cluster.command()
@click.argument("address")
@json_option
@bus_options
def who(*, context: BusContext, address: str, as_json: bool) -> None:
    """Say whose an address is now. (Whose it was: isthmus replay who --ip ADDRESS --at WHEN)

    \b
    Example: isthmus cluster who 10.200.7.9
    """
    holder = ask(context, WhoHas(address=address), AddressOwner)
    if as_json:
        print_json(holder)
        return
    click.echo(f"{address} {_belongs(holder)}")


def _belongs(holder: AddressOwner) -> str:
    if holder.kind == "range" and holder.range is not None:
        epoch = f"epoch {holder.range.epoch}"
        if holder.range.phase == "allocated":
            return f"lies in {holder.cidr}, the range of node {holder.node} ({epoch})"
        return f"lies in {holder.cidr}, {holder.range.phase}; its last owner was node {holder.node} ({epoch})"
    return {
        "free_range": f"lies in {holder.cidr}, which is free",
        "service": f"lies in the Service range {holder.cidr}",
        "stranded": f"lies in {holder.cidr} between the last node range and the Service range",
        "node": f"is the underlay address of node {holder.node}",
        "clb": f"is reserved for CLB {holder.reservation} ({holder.purpose})",
        "outside": "is outside the container network",
    }[holder.kind]


@cluster.command()
@click.argument("cidr", required=False)
@click.option("--cidr", "named", metavar="CIDR", help="The same as the argument.")
@override_option
@write_options
def append(
    *,
    context: BusContext,
    cidr: str | None,
    named: str | None,
    overrides: tuple[Override, ...],
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Append a container CIDR: ranges continue into it, nothing that exists changes.

    \b
    isthmus cluster append 10.201.0.0/16
    """
    if (cidr is None) == (named is None):
        raise Usage("usage", "name one CIDR: isthmus cluster append CIDR")
    cidr = cidr or named or ""
    reply = send(context, AppendCidr(cidr=cidr, overrides=overrides), how)
    made = reply.result
    sentence = (
        f"{made.get('cidr', cidr)} appended: {made.get('capacity', 0):,} more ranges from index "
        f"{made.get('first_index', 0):,} on"
    )
    show_written(reply, sentence, as_json=as_json)


@cluster.command()
@click.option("--reason", default="", help="Why; recorded for ever.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@write_options
def delete(*, context: BusContext, reason: str, yes: bool, how: dict[str, Any], as_json: bool) -> None:
    """Delete the cluster: refused while nodes live. Its log stays readable for ever.

    \b
    Example: isthmus cluster delete --cluster old --yes
    """
    if not how["dry_run"]:
        confirm(f"Delete cluster {context.cluster}? Its log will take no further command.", yes=yes)
    reply = send(context, DeleteCluster(reason=reason), how)
    show_written(reply, f"cluster {context.cluster} deleted", as_json=as_json)


@cluster.group()
def network() -> None:
    """Networks that the container network must stay clear of."""


@network.command("add")
@click.argument("cidr")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is.")
@click.option("--name", default="", help="A name for messages.")
@override_option
@write_options
def network_add(
    *,
    context: BusContext,
    cidr: str,
    kind: str,
    name: str,
    overrides: tuple[Override, ...],
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Declare a routed network; overlap checks know it from now on.

    \b
    isthmus cluster network add 192.168.0.0/20 --kind idc --name shenzhen
    """
    command = DeclareNetwork(
        network=Network(cidr=cidr, kind=kind, name=name),  # type: ignore[arg-type]  # click checked it
        overrides=overrides,
    )
    show_written(send(context, command, how), f"{kind} network {cidr} declared", as_json=as_json)


@network.command("remove")
@click.argument("cidr")
@write_options
def network_remove(*, context: BusContext, cidr: str, how: dict[str, Any], as_json: bool) -> None:
    """Forget a declared network.

    \b
    Example: isthmus cluster network remove 10.9.0.0/16
    """
    show_written(send(context, WithdrawNetwork(cidr=cidr), how), f"network {cidr} withdrawn", as_json=as_json)


@network.command("list")
@listing_options
@bus_options
def network_list(*, context: BusContext, as_json: bool) -> None:
    """List the declared networks and the overlaps that somebody accepted.

    \b
    Example: isthmus cluster network list
    """
    view = ask(context, ShowCluster(), ClusterView)
    if as_json:
        print_json({"sequence": view.sequence, "networks": view.networks, "overrides": view.overrides})
        return
    print_table(
        ("network", "kind", "name"),
        [(n.cidr, n.kind, n.name) for n in view.networks],
        empty="no network is declared",
    )
    if view.overrides and not output().form:
        print_table(
            ("check", "ours", "theirs", "reason"),
            [(o.code, o.ours, o.theirs, o.reason) for o in view.overrides],
            title="Accepted overlaps",
        )
