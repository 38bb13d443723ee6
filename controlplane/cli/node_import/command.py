"""``isthmus node import``: many nodes of one file, with a report per node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import netaddr

from controlplane.cli.node_import.encoding import SIZE_MAX_BYTES, text_of
from controlplane.cli.node_import.parse import Line, NodeFile, all_unreadable, read_file
from controlplane.kubernetes.node_objects import EXTERNAL_LABELS, KIND_LABELS, PROVIDERS, SITE_LABELS, Rules
from events.bus.client import ControllerClient
from events.cli.files import INPUT_FILE, Input
from events.cli.options import BusContext, bus_options, controller, json_option, run
from events.cli.tables import print_json, print_table
from events.errors import BadRequest, Refused
from events.protocol.commands import ImportNodes

BATCH = 400
"""Nodes per request: two events each fit the 1,000 of one atomic batch, replaced members included."""

_PROVISIONAL = ("cidr", "index", "epoch")
_STATUSES = ("joined", "unchanged", "not written", "refused")


@click.command("import")
@click.argument("file", type=INPUT_FILE)
@click.option("--kind", type=click.Choice(["cloud", "external"]), help="Kind of nodes that do not say it.")
@click.option(
    "--underlay-cidr", "underlay_cidrs", multiple=True, metavar="CIDR",
    help="Kubernetes: the node's address is the one in this network. Repeatable.",
)  # fmt: skip
@click.option(
    "--kind-label", "kind_labels", multiple=True, metavar="KEY",
    help=f"Kubernetes: a label that says cloud or external. Repeatable. [default: {', '.join(KIND_LABELS)}]",
)  # fmt: skip
@click.option(
    "--external-label", "external_labels", multiple=True, metavar="KEY=VALUE",
    help="Kubernetes: a further label that marks external nodes, beside TKE's and EKS's. Repeatable.",
)  # fmt: skip
@click.option(
    "--site-label", "site_labels", multiple=True, metavar="KEY",
    help=f"Kubernetes: a label that names the site. Repeatable. [default: {', '.join(SITE_LABELS)}]",
)  # fmt: skip
@click.option(
    "--provider", "providers", multiple=True, metavar="SCHEME=KIND",
    help="Kubernetes: what nodes are whose providerID begins with SCHEME://, as openstack=cloud. Repeatable.",
)  # fmt: skip
@click.option(
    "--replace", multiple=True, metavar="NODE",
    help="Fence this member if its line has another uid. Nobody else who was ever heard is. Repeatable.",
)  # fmt: skip
@click.option(
    "--partial/--all-or-none", default=None,
    help="Whether the others join when one is refused. [default: --partial for Kubernetes, else --all-or-none]",
)  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(1, BATCH), default=BATCH, show_default=True, help="Nodes per atomic batch."
)
@click.option(
    "--dry-run", is_flag=True, help="Check everything; show the ranges and who would be fenced; write nothing."
)
@json_option
@bus_options
def import_(
    *,
    context: BusContext,
    file: Input,
    replace: tuple[str, ...],
    partial: bool | None,
    batch: int,
    dry_run: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Make all nodes of FILE members, with a report per node.

    FILE (- for standard input) is one of:

    \b
    CSV with a header:   node,uid,kind,underlay,announced,site
    JSON:                [{"node": …, "uid": …, "kind": …, "underlay": …}, …]
    Kubernetes:          kubectl get nodes -o json, or one Node of it

    Repeating an import changes nothing for nodes that are members already. Exit code 1 when a
    node was refused.

    \b
    Example:
      isthmus node import nodes.csv --dry-run
      kubectl get nodes -o json | isthmus node import -
    """
    found = read_file(text_of(file.read(SIZE_MAX_BYTES + 1)), _rules(**how))
    partial = found.kubernetes if partial is None else partial
    absent = sorted(set(replace) - {line.command.node for line in found.lines})
    if absent:
        raise BadRequest(
            "bad_request", f"--replace {', '.join(absent)[:200]}: no such node can be read in the file"
        )
    if found.problems and (not partial or not found.lines):
        raise all_unreadable(found)
    batches = [found.lines[i : i + batch] for i in range(0, len(found.lines), batch)]

    async def main() -> list[dict[str, Any]]:
        from rich.progress import Progress

        from events.cli.tables import console

        report: list[dict[str, Any]] = []
        async with controller(context) as client:
            sender = _Sender(client, frozenset(replace), dry_run=dry_run, partial=partial)
            with Progress(console=console(stderr=True), transient=True, disable=as_json) as progress:
                task = progress.add_task("importing", total=len(found.lines))
                for part in batches:
                    sent = await sender.send(part)
                    if dry_run and report:
                        # Nothing of the batches before was written, so these would not be the ranges.
                        sent = [{k: v for k, v in entry.items() if k not in _PROVISIONAL} for entry in sent]
                    report += sent
                    progress.advance(task, len(part))
        return report

    _show_report([*_unreadable(found), *run(main())], dry_run=dry_run, as_json=as_json)


def _rules(
    *,
    kind: str | None,
    underlay_cidrs: tuple[str, ...],
    kind_labels: tuple[str, ...],
    external_labels: tuple[str, ...],
    site_labels: tuple[str, ...],
    providers: tuple[str, ...],
) -> Rules:
    """The options as rules. Raises BadRequest(bad_request)."""
    for cidr in underlay_cidrs:
        if "/" not in cidr or not _is_network(cidr):
            raise BadRequest(
                "bad_request", f"--underlay-cidr {cidr[:64]!r} is no IPv4 network like 10.0.0.0/16"
            )
    marks = [_pair(option, "--external-label") for option in external_labels]
    kinds = dict(_pair(option, "--provider") for option in providers)
    for scheme, its in kinds.items():
        if its not in {"cloud", "external"}:
            raise BadRequest("bad_request", f"--provider {scheme}={its}: the kind is cloud or external")
    return Rules(
        kind=kind or "",
        underlay_cidrs=underlay_cidrs,
        kind_labels=kind_labels or KIND_LABELS,
        site_labels=site_labels or SITE_LABELS,
        external_labels=(*EXTERNAL_LABELS, *marks),
        providers={**PROVIDERS, **kinds},
    )


def _is_network(cidr: str) -> bool:
    try:
        network = netaddr.IPNetwork(cidr)
    except (netaddr.AddrFormatError, ValueError):
        return False
    return bool(network.version == 4 and network.ip == network.network)


def _pair(option: str, name: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not (key and equals and value):
        raise BadRequest("bad_request", f"{name} {option[:64]!r} is not KEY=VALUE")
    return key, value


def _unreadable(found: NodeFile) -> list[dict[str, Any]]:
    """One entry per node that cannot join, with everything that is wrong with it."""
    entries: dict[int, dict[str, Any]] = {}
    for problem in found.problems:
        known = entries.get(problem.number)
        if known is not None:
            known["message"] += f"; {problem.text}"
            continue
        entries[problem.number] = {
            "line": problem.number,
            "node": problem.node,
            "status": "refused",
            "code": "import_unreadable",
            "message": problem.text,
        }
    return list(entries.values())


class _Sender:
    """Sends batches; with ``partial`` again without the nodes that were refused."""

    def __init__(
        self, client: ControllerClient, replace: frozenset[str], *, dry_run: bool, partial: bool
    ) -> None:
        self._client = client
        self._replace = replace
        self._dry_run = dry_run
        self._partial = partial

    async def send(self, part: Sequence[Line]) -> list[dict[str, Any]]:
        """One batch, or two halves of it when it makes too many events; one entry per line of the file.

        Raises Refused and Unavailable. Cancelled, what was sent may have been written; the same import
        again changes nothing for it.
        """
        named = tuple(line.command.node for line in part if line.command.node in self._replace)
        command = ImportNodes(nodes=tuple(line.command for line in part), replace=named)
        try:
            reply = await self._client.send(command, dry_run=self._dry_run, timeout_s=30.0, try_timeout_s=10.0)
            found = reply.result.get("lines", [])
        except Refused as error:
            if error.code == "event_too_large" and len(part) > 1:
                half = len(part) // 2
                return await self.send(part[:half]) + await self.send(part[half:])
            if error.code != "import_refused":
                raise
            found = error.details.get("lines", [])
            refused = {entry["node"] for entry in found if entry["status"] == "refused"}
            rest = [line for line in part if line.command.node not in refused]
            if self._partial and len(rest) < len(part):
                others = await self.send(rest) if rest else []
                return [*_report(part, found, refused), *others]
            found = [
                entry if entry["status"] == "refused" else {"node": entry["node"], "status": "not written"}
                for entry in found
            ]
        return _report(part, found)


def _report(
    part: Sequence[Line], found: Sequence[dict[str, Any]], only: set[str] | None = None
) -> list[dict[str, Any]]:
    """The controller's lines with the numbers and notes of the file's; ``only`` those of some nodes."""
    by_name = {entry["node"]: entry for entry in found}
    report = []
    for line in part:
        name = line.command.node
        if only is not None and name not in only:
            continue
        # An answer repeated from the log names only what was written.
        entry = {**by_name.get(name, {"node": name, "status": "unchanged"}), "line": line.number}
        notes = [*line.notes, *([entry["note"]] if entry.get("note") else [])]
        if notes:
            entry["note"] = "; ".join(notes)
        report.append(entry)
    return report


def _show_report(report: list[dict[str, Any]], *, dry_run: bool, as_json: bool) -> None:
    report = sorted(report, key=lambda entry: int(entry["line"]))
    counts = dict.fromkeys(_STATUSES, 0)
    for entry in report:
        counts[entry["status"]] += 1
    fenced = sum(1 for entry in report if entry["status"] == "joined" and "fences" in entry)
    if as_json:
        print_json({"dry_run": dry_run, **counts, "fenced": fenced, "lines": report})
    else:
        print_table(
            ("line", "node", "status", "range", "fences", "because"),
            [
                (
                    e["line"],
                    e["node"],
                    e["status"],
                    e.get("cidr", ""),
                    e.get("fences", ""),
                    f"{e['message']} [{e['code']}]" if "code" in e else e.get("note", ""),
                )
                for e in report
            ],
            title="Dry run: nothing was written" if dry_run else "",
            right=("line",),
        )
        click.echo(", ".join(f"{count:,} {status}" for status, count in counts.items() if count))
        if fenced:
            click.echo(
                f"{fenced:,} {'would be fenced' if dry_run else 'fenced'}: such a uid can never join again"
            )
    if counts["refused"]:
        click.get_current_context().exit(1)
