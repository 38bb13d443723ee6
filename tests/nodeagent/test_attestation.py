"""Attestation: the digest of the kernel's rows, and the controller's judgement of it."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.attestation import Attestor
from events.codec import Recorded
from events.envelope import Envelope
from events.status import AgentStatus
from events.types import Event, NodeLeft
from nodeagent.dataplane.reconcile import row_digest
from nodeagent.membership.peers import Peer
from nodeagent.membership.view import View
from nodeagent.netlink.rows import Kind
from tests.nodeagent.logs import DEFINED, joined, logs

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENVELOPE = Envelope(id="i", type="t", source="s", time=NOW, actor="a", command_id="c")


def status(view: View, digest: str, applied: int) -> AgentStatus:
    return AgentStatus(
        node="n0", uid="u0", applied=applied, sent_at=NOW, kernel_digest=digest, drift=("a row",)
    )


@given(logs(), st.integers(0, 40))
def test_the_controller_expects_at_every_sequence_what_the_agent_publishes(
    log: list[Event], split: int
) -> None:
    state, attestor, view = ClusterState("c"), Attestor(), View("c", "n0", "u0")
    digests: dict[int, str] = {}
    loaded_at = min(max(split, 3), len(log))
    if isinstance(log[loaded_at - 1], NodeLeft):
        loaded_at += 1  # what is loaded before the range drains is not judged until it does
    for sequence, event in enumerate(log, 1):
        view.apply(sequence, event)
        digests[sequence] = view.expected_digest()
        evolve(state, sequence, event)
        if sequence == loaded_at:
            attestor.load(state)
        elif sequence > loaded_at:
            attestor.fold([Recorded(sequence, ENVELOPE, event, NOW)])
    for sequence in range(loaded_at, len(log) + 1):
        assert attestor.judge(state, status(view, digests[sequence], sequence)) is True, sequence
        assert attestor.judge(state, status(view, "0" * 64, sequence)) is False
        assert attestor.differences["u0"].rows == ("a row",)
    for sequence in range(1, loaded_at):
        assert attestor.judge(state, status(view, digests[sequence], sequence)) is None, "too old to judge"
    assert attestor.judge(state, status(view, "0" * 64, len(log) + 1)) is None, "from the future"


@given(st.lists(st.integers(0, 200), unique=True, max_size=12))
def test_the_expected_digest_is_the_sum_over_the_rows(indices: list[int]) -> None:
    view = View("c", "n250", "u250")
    view.apply(1, DEFINED)
    for sequence, event in enumerate(joined(250)[:1] + joined(250)[1:], 2):
        view.apply(sequence, event)
    alone = int(view.expected_digest(), 16)
    total = 0
    for index in indices:
        for event in joined(index):
            view.apply(10 + index * 2, event)
        peer = Peer(
            f"n{index}", "", 1, f"172.16.{index}.0/26", f"66:00:00:00:00:{index:02x}", f"10.0.0.{index + 1}"
        )
        for kind, table in zip(Kind, peer.rows(), strict=True):
            total += sum(row_digest(kind, key, value) for key, value in table.items())
    assert int(view.expected_digest(), 16) == (alone + total) % (1 << 256)
