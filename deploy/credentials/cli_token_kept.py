"""``isthmus token list``, ``show`` and ``revoke``: what became of join tokens.

The store knows what was made, the log who has used it: its word counts, and it is asked unless ``--offline``.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from deploy.credentials.authority import Authority
from deploy.credentials.cli_common import push_if_asked, push_line, push_option, store_option, when
from deploy.credentials.cli_token import token
from deploy.credentials.store import TokenRecord
from events import subjects
from events.cli.options import BusContext, bus_options, confirm, json_option, run
from events.cli.tables import print_json, print_table
from events.errors import Refused, Unavailable
from events.types import JoinTokenUsed, SharedTokenUsed

PATIENCE_S = 10.0
offline_option = click.option("--offline", is_flag=True, help="Do not ask the log who has used it.")


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """One use of a token, as the log has it: event ``sequence`` at ``at`` (UTC)."""

    node: str
    at: str
    sequence: int
    public_key: str
    expires: str


async def uses_in_log(context: BusContext) -> dict[str, list[Use]]:
    """Who has used which token (its public key), in the log's order. O(uses).

    Raises Unavailable, Refused. Cancelled, it leaves nothing behind.
    """
    from events.bus.connection import connect
    from events.jetstream.direct import DirectReader
    from events.jetstream.read import log_head

    client = await connect(context.bus, name="isthmus-token")
    found: dict[str, list[Use]] = defaultdict(list)
    try:
        prefix = context.bus.api_prefix
        await log_head(client, context.cluster, prefix=prefix, patience_s=PATIENCE_S)  # is there such a log?
        reader = DirectReader(client, subjects.stream(context.cluster), prefix=prefix)
        for message in await reader.every(
            subjects.aggregate_wildcard(context.cluster, JoinTokenUsed.aggregate)
        ):
            event: JoinTokenUsed | SharedTokenUsed
            if message.subject.endswith(f".{SharedTokenUsed.verb}"):
                event = msgspec.json.decode(message.body, type=SharedTokenUsed)
            else:
                event = msgspec.json.decode(message.body, type=JoinTokenUsed)
            found[event.token].append(
                Use(
                    node=event.node,
                    at=f"{datetime.fromtimestamp(message.recorded_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S}",
                    sequence=message.sequence,
                    public_key=event.public_key,
                    expires=f"{event.expires:%Y-%m-%d %H:%M}",
                )
            )
    finally:
        await client.close()
    return dict(found)


def _row(record: TokenRecord, used: list[Use] | None, now: int) -> dict[str, Any]:
    count = None if used is None else len(used)
    if record.revoked_at:
        state = "revoked"
    elif count is not None and count >= record.uses:
        state = "used"
    else:
        state = "expired" if record.until <= now else "good"
    return {
        "id": record.id, "for": record.names, "shared": record.shared, "uses": record.uses, "used": count,
        "kind": record.kind, "site": record.site, "made": when(record.made), "until": when(record.until),
        "state": state,
    }  # fmt: skip


def _used(context: BusContext, *, offline: bool) -> dict[str, list[Use]] | None:
    """Raises Unavailable, Refused: what the log says was asked for, and cannot be had."""
    try:
        return None if offline else run(uses_in_log(context))
    except (Unavailable, Refused) as error:
        error.message += "; what this store knows without the log: --offline"
        raise


@token.command("list")
@store_option
@bus_options
@offline_option
@click.option("--good", is_flag=True, help="Only what can still be used.")
@json_option
def list_(*, store: Path, context: BusContext, offline: bool, good: bool, as_json: bool) -> None:
    """Join tokens that were made here: for whom, used how often, good until when. Never shows a secret.

    \b
    Example: isthmus token list --good
    """
    authority = Authority.open(store)
    used = _used(context, offline=offline)
    rows = [
        _row(record, None if used is None else used.get(record.public, []), authority.now())
        for record in authority.store.tokens(context.cluster)
    ]
    rows = [row for row in rows if row["state"] == "good" or not good]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("Token", "For", "Used", "Kind", "Site", "Until (UTC)", "State"),
        [
            (r["id"], r["for"], f"{'?' if r['used'] is None else r['used']} of {r['uses']}", r["kind"],
             r["site"], r["until"], r["state"])
            for r in rows
        ],
        empty="no join token was made in this store",
    )  # fmt: skip


@token.command()
@click.argument("token_id", metavar="TOKEN")
@store_option
@bus_options
@offline_option
@json_option
def show(*, token_id: str, store: Path, context: BusContext, offline: bool, as_json: bool) -> None:
    """One join token, by its id: what it allows, and who has used it when.

    \b
    Example: isthmus token show uabc123def45
    """
    authority = Authority.open(store)
    record = authority.store.token(context.cluster, token_id)
    used = _used(context, offline=offline)
    uses = None if used is None else used.get(record.public, [])
    row = _row(record, uses, authority.now())
    if as_json:
        print_json({**row, "by": None if uses is None else msgspec.to_builtins(uses)})
        return
    for name in ("id", "for", "kind", "site", "made", "until", "state"):
        click.echo(f"{name:<8} {row[name] or '-'}")
    click.echo(f"used     {'?' if uses is None else len(uses)} of {record.uses}")
    for use in uses or ():
        click.echo(f"  {use.node}  {use.at} UTC  event {use.sequence}  credentials until {use.expires} UTC")


@token.command()
@click.argument("token_id", metavar="TOKEN")
@store_option
@click.option(
    "--cluster", envvar="ISTHMUS_CLUSTER", default="default", show_default=True, help="Name of the cluster."
)
@push_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def revoke(*, token_id: str, store: Path, cluster: str, push: str | None, yes: bool, as_json: bool) -> None:
    """Let nobody in by that token any more. Nodes that it has let in stay.

    \b
    Example: isthmus token revoke uabc123def45 --yes --push tls://10.0.0.5:4222
    """
    authority = Authority.open(store)
    record = authority.store.token(cluster, token_id)
    confirm(f"Revoke the join token for {record.names}? Nobody gets in by it any more.", yes=yes)
    principal = authority.revoke_token(cluster, record)
    servers = push_if_asked(authority, push, [principal.account])
    if as_json:
        print_json({"id": record.id, "for": record.names, "servers": servers})
    elif servers:
        click.echo(f"join token {record.id} is revoked; {servers} server(s) know it")
    else:
        click.echo(
            f"join token {record.id} is revoked in {store}; the servers learn it by `{push_line(store)}`"
        )
