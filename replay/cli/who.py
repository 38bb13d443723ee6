"""``replay who``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, Session, at_option, opened, pods_of, source_options

if TYPE_CHECKING:
    from controlplane.controller.agents.pod_answer import PodAnswer
    from replay.queries.who import Holding, WhoAnswer


@click.command("who")
@source_options
@click.option("--ip", "address", default="", metavar="ADDR", help="A pod's, a node's or a balancer's address.")
@click.option(
    "--key", default="", metavar="KEY", help="Instead: a node's public key, as `agent status` shows it."
)
@at_option
@json_option
@awaited
async def who_command(source: LogSource, address: str, key: str, at: str, as_json: bool) -> None:
    """Whose an address or a key was: node, uid, epoch, from when to when, who asked for it.

    For a pod's address: the node whose range held it, and the pod, if the node told of it and the
    live cluster, or an archive that has it, is asked. "Nobody" names the last one.

    \b
    isthmus replay who --ip 10.200.7.9
    isthmus replay who --ip 10.200.7.9 --at 'yesterday 14:00' \\
        --archive prod.isthmus
    isthmus replay who --key 7hcPlbTgzBxWOv4F4gRqPGW4LcRRmXXYUdPnWmNmgUE=
    """
    if bool(address) == bool(key):
        raise click.UsageError("Missing option '--ip' (or '--key', not both): whose what?")
    if key:
        await _show_key(source, key, at, as_json=as_json)
        return
    from replay.queries.who import who

    async with opened(source) as session:
        answer = await who(session.history, address, await session.point(at))
        pod = await _pod(source, session, answer)
        if as_json:
            print_json({**msgspec.structs.asdict(answer), "pod": pod})
            return
        print_table(("", ""), _who_rows(session, answer, pod), title=f"{address} at {session.at(answer.at)}")


async def _show_key(source: LogSource, key: str, at: str, *, as_json: bool) -> None:
    from replay.queries.keys import who_had_key

    async with opened(source) as session:
        point = await session.point(at)
        held = await who_had_key(session.history, key, point)
        if as_json:
            print_json({"key": key, "at": point, "holdings": held})
            return
        rows = [
            (
                one.node,
                one.uid,
                str(one.port) if one.port else "none",
                session.when(one.since) if one.since else "before the first event here",
                session.when(one.to) if one.to else "still",
            )
            for one in held
        ]
        title = f"key {key} at {session.at(point)}" + ("" if held else ": nobody's")
        print_table(("node", "uid", "WireGuard port", "from", "to"), rows, title=title)


async def _pod(source: LogSource, session: Session, answer: WhoAnswer) -> PodAnswer | None:
    """Which pod had it; None for what is no pod's, or nobody's. Cancelled, it leaves nothing behind."""
    from controlplane.controller.agents.pod_answer import not_at_hand, pod_at
    from events.errors import IsthmusError

    if answer.kind != "pod" or answer.holder is None:
        return None
    at, history = answer.at, session.history
    moment = at.moment or (session.now if at.sequence == history.end else at.recorded_at)
    if source.archives and history.index.archive is not None:
        from replay.archive.pods import pods_in

        found = pods_in(history.index.archive, answer.address, answer.holder.node)
        if found.until is None:
            return not_at_hand("this archive has no facts of pods: it was made without, or before release 0.3")
        then = at.moment or (found.until if at.sequence == history.end else at.recorded_at) or found.until
        if then > found.until:
            return not_at_hand(f"what this archive has of pods ends at {session.show(found.until)}")
        return pod_at(found.view, answer.holder, then)
    try:
        return pod_at(
            await pods_of(source, answer.address, answer.holder.node), answer.holder, moment or session.now
        )
    except IsthmusError as error:
        return not_at_hand(error.message)


def _pod_rows(session: Session, pod: PodAnswer | None) -> list[tuple[str, str]]:
    if pod is None:
        return []
    if pod.state != "known":
        since = f" ({session.show(pod.since)})" if pod.since is not None else ""
        word = {"none": "none", "not at hand": "not known"}.get(pod.state, f"not known, {pod.state}")
        return [("by which pod", f"{word}: {pod.note}{since}")]
    named = f"{pod.namespace}/{pod.name}" if pod.name else f"container {pod.container[:40]}: {pod.note}"
    sure = {"told": "told by the container runtime", "found": "found later: it was not exactly then"}
    rows = [("by which pod", named)]
    if pod.uid:
        rows.append(("pod uid", pod.uid))
    rows.append(("pod from", f"{session.show(pod.since)}, {sure[pod.began]}"))
    rows.append(("pod to", f"{session.show(pod.until)}, {sure[pod.ended]}" if pod.until else "still"))
    return rows


def _who_rows(session: Session, answer: WhoAnswer, pod: PodAnswer | None) -> list[tuple[str, str]]:
    rows = [("kind", {"pod": "pod address", "outside": "not in this cluster"}.get(answer.kind, answer.kind))]
    if answer.range:
        rows.append(("range", answer.range + (f" ({answer.range_state})" if answer.range_state else "")))
    if answer.holder is not None:
        rows.append(("held then", "yes"))
        rows += _holding(session, answer.holder, current=True)
        return rows + _pod_rows(session, pod)
    rows.append(("held then", "no, by nobody" + (f": {answer.note}" if answer.note else "")))
    if answer.last is not None:
        rows.append(("the last one", ""))
        rows += _holding(session, answer.last, current=False)
    elif session.history.start:
        rows.append(("the last one", f"not known: what is here begins behind event {session.history.start:,}"))
    return rows


def _holding(session: Session, held: Holding, *, current: bool) -> list[tuple[str, str]]:
    rows = [("node", held.node), ("uid", held.uid)] if held.node else [("balancer", held.balancer)]
    if held.purpose:
        rows.append(("purpose", held.purpose))
    if held.gateway:
        rows += [("held by gateway", held.gateway), ("its uid", held.gateway_uid)]
    if held.epoch:
        rows.append(("epoch", str(held.epoch)))
    if held.gateway_since is not None:
        rows.append(
            ("gateway since", f"event {held.gateway_since.sequence:,} · {session.when(held.gateway_since)}")
        )
    before = f"before event {session.history.start + 1:,}, the first one here"
    rows.append(
        ("from", f"event {held.since.sequence:,} · {session.when(held.since)}" if held.since else before)
    )
    over = "still" if current else before
    rows.append(("to", f"event {held.to.sequence:,} · {session.when(held.to)}" if held.to else over))
    if held.since is not None:
        rows.append(("asked for by", f"{held.since.actor}, command {held.since.command_id}"))
        if held.since.trace_id:
            rows.append(("trace", held.since.trace_id))
    return rows
