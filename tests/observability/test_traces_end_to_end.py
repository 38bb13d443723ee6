"""One command, followed into three kernels: real agents, a real bus, a real OTLP receiver.

What a tracing backend would get: the tree, the names, kinds, attributes and links of the messaging
conventions; and the same picture from the built-in store for people without a backend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import Site, site
from tests.observability.otlp import Receiver, Span, receiving
from tests.waiting import wait_for as until

pytestmark = [pytest.mark.slow, pytest.mark.bus]

STREAM = "ISTHMUS_default"


def export_to(port: int) -> None:
    """The standard variables, as an operator would set them, for every process of the site."""
    os.environ.update(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://10.0.0.254:{port}",
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_METRIC_EXPORT_INTERVAL="500",
        ISTHMUS_LOG_LEVEL="info",
    )


@contextmanager
def running_site(*names: str) -> Iterator[Site]:
    """A site whose agents start when the cluster is defined: one that asks too early waits long."""
    with site(start=False) as place:
        until(lambda: place.isthmus("cluster", "show").returncode == 0, "the cluster is defined", 30)
        for node in place.add(*names):
            node.start()
        for node in place.nodes.values():
            node.ready(len(names) - 1)
        yield place


def only(spans: list[Span]) -> Span:
    assert len(spans) == 1, spans
    return spans[0]


def followed(receiver: Receiver, trace: str, node: str) -> tuple[list[Span], Span, Span]:
    """One agent's spans of a trace: each process, the apply that wrote, its netlink batch.

    A join (joined, its key, its range) is one batch to an agent, or more when some come a moment late.
    """
    taken = sorted(
        receiver.find(f"process {STREAM}", trace=trace, instance=node),
        key=lambda span: int(span.attributes["isthmus.sequence.first"]),
    )
    assert sum(int(span.attributes["messaging.batch.message_count"]) for span in taken) == 3, taken
    netlink = only(receiver.find("netlink batch", trace=trace, instance=node))
    applied = only([span for span in receiver.find("apply", trace=trace) if span.id == netlink.parent])
    assert applied.parent in {span.id for span in taken}, (applied, taken)
    return taken, applied, netlink


@inside
def test_a_join_is_one_trace_from_the_asking_node_to_the_kernel_of_every_peer() -> None:
    with receiving() as receiver:
        export_to(receiver.port)
        with running_site("a", "b", "c") as place:
            (newcomer,) = place.add("d")
            newcomer.start()
            newcomer.ready(3)
            root = until(lambda: receiver.find("send command.join", instance="d"), "the newcomer's span")[0]
            until(
                lambda: all(
                    receiver.find("firewall write", trace=root.trace, instance=node)
                    and followed(receiver, root.trace, node)
                    for node in "abc"
                ),
                "every peer's spans",
            )
            assert (root.parent, root.kind, root.service) == ("", "CLIENT", "isthmus-agent")
            assert root.attributes["messaging.operation.type"] == "send"
            assert root.attributes["messaging.system"] == "nats"

            process = only(receiver.find("process command.join", trace=root.trace))
            assert (process.parent, process.kind, process.service) == (
                root.id,
                "CONSUMER",
                "isthmus-controller",
            )
            assert process.attributes["isthmus.node"] == "d"
            assert process.attributes["messaging.destination.template"] == "command.join"
            first = int(process.attributes["isthmus.sequence.first"])
            assert process.attributes["isthmus.sequence.last"] == first + 2

            decide = only(receiver.find("decide join", trace=root.trace))
            assert (decide.parent, decide.kind, decide.attributes["isthmus.events"]) == (
                process.id,
                "INTERNAL",
                3,
            )
            append = only(receiver.find(f"send {STREAM}", trace=root.trace))
            assert (append.parent, append.kind) == (process.id, "PRODUCER")
            assert append.attributes["messaging.destination.name"] == STREAM
            assert append.attributes["messaging.batch.message_count"] >= 2
            moments = [root.start, process.start, append.start, append.end, root.end]
            assert moments == sorted(moments), [moment - root.start for moment in moments]

            for node in "abc":
                taken, applied, netlink = followed(receiver, root.trace, node)
                assert taken[0].attributes["isthmus.sequence.first"] == first
                assert taken[-1].attributes["isthmus.sequence.last"] == first + 2
                for part in taken:
                    assert (part.parent, part.kind, part.service) == (process.id, "CONSUMER", "isthmus-agent")
                    assert part.attributes["messaging.operation.type"] == "process"
                    assert "isthmus.replay" not in part.attributes
                    assert not part.failed
                    receive = only(receiver.find(f"receive {STREAM}", trace=root.trace, parent=part.id))
                    assert receive.kind == "CLIENT"
                    assert receive.attributes["messaging.operation.type"] == "receive"
                assert netlink.kind == "CLIENT"
                assert netlink.attributes["isthmus.netlink.operations"] == 3
                assert netlink.attributes["isthmus.netlink.refused"] == 0
                assert applied.start <= netlink.start <= netlink.end <= applied.end

            # The newcomer's own rows: below the command when its events reach it live, and linked to it when
            # they are part of the history that it is still catching up on; both happen.
            def own_writes() -> bool:
                mine = [
                    s
                    for s in receiver.find(f"process {STREAM}", instance="d")
                    if s.parent == process.id or (root.trace, process.id) in s.links
                ]
                reached = {span.trace for span in mine}
                wrote = receiver.find("netlink resync", instance="d")
                return any(s.trace in reached or reached & {trace for trace, _ in s.links} for s in wrote)

            until(own_writes, "the newcomer's own rows, joined to its command")
            until(lambda: receiver.find("cni write", instance="d"), "the newcomer's CNI file")

            # The logs lead to the same trace and the same events.
            lines = [
                line
                for text in (place.directory / "up.log").read_text().splitlines()
                if text.startswith("{") and (line := json.loads(text)).get("trace_id") == root.trace
            ]
            told = next(line for line in lines if line["logger"] == "isthmus.commands")
            assert (told["role"], told["sequence"], told["code"]) == ("controller", first + 2, "ok")
            assert told["command_id"] == process.attributes["isthmus.command.id"]
            for node in "abc":
                assert f"trace={root.trace[:8]}  seq={first + 2}" in place.nodes[node].log(), node

            until(
                lambda: {"isthmus.pool.capacity", "isthmus.agent.applied"} <= receiver.metrics,
                "metrics by OTLP",
            )

            # Without any backend: the controller's own store has the same picture.
            def shown() -> set[str]:
                done = place.isthmus("trace", "show", str(first), "--json")
                assert done.returncode == 0, done.stderr
                return set(json.loads(done.stdout)["traces"][0]["services"])

            wanted = {"isthmus-controller/up", *(f"isthmus-agent/{node}" for node in "abcd")}
            until(lambda: wanted <= shown(), "the built-in store's picture")


@inside
def test_history_and_batches_are_linked_and_never_continue_an_old_trace() -> None:
    with receiving() as receiver:
        export_to(receiver.port)
        with running_site("a", "b") as place:
            b = place.nodes["b"]
            b.stop()
            for name in ("one", "two"):
                done = place.isthmus("clb", "reserve", name, "--subnet", "192.168.9.0/26")
                assert done.returncode == 0, done.stderr
            roots = until(
                lambda: len(found := receiver.find("isthmus clb reserve")) == 2 and found, "the CLI's spans"
            )
            assert all((span.parent, span.service) == ("", "isthmus-cli") for span in roots)
            sends, commands = (
                [
                    until(lambda: receiver.find(f"{verb} command.reserve-clb", trace=root.trace), verb)[0]  # noqa: B023
                    for root in roots
                ]
                for verb in ("send", "process")
            )
            assert [span.parent for span in sends] == [root.id for root in roots]
            assert [span.parent for span in commands] == [span.id for span in sends]

            b.start().ready(1)
            wanted = {(command.trace, command.id) for command in commands}
            caught_up = until(
                lambda: [s for s in receiver.find(f"process {STREAM}", instance="b") if wanted <= set(s.links)],
                "the catching-up span",
            )[0]
            assert caught_up.parent == ""
            assert caught_up.trace not in {root.trace for root in roots}
            assert caught_up.attributes["isthmus.replay"] is True


@inside
def test_a_refusal_sets_status_and_code() -> None:
    with receiving() as receiver:
        export_to(receiver.port)
        with running_site() as place:
            done = place.isthmus("clb", "release", "nothing", "--yes")
            assert done.returncode == 1
            process = until(lambda: receiver.find("process command.release-clb"), "the refused command")[0]
            assert process.failed
            assert process.attributes["isthmus.error.code"] == "clb_unknown"
            root = until(lambda: receiver.find("isthmus clb release", trace=process.trace), "the root")[0]
            assert root.failed
