"""Who had which key when: by the key, and in a node's history."""

from __future__ import annotations

import pytest

from events.errors import Usage
from events.protocol.commands import ChangeKey, DefineCluster, JoinNode, LeaveNode
from replay.history import History, Point
from replay.queries.keys import who_had_key
from replay.queries.lives import life
from tests.controlplane.every_kind import key
from tests.replay.histories import Author, ListLog


def join(number: int, what: str) -> JoinNode:
    address = f"192.0.2.{number}"
    return JoinNode(node=f"n{number}", uid=f"u{number}", kind="external", underlay=address, node_key=key(what))


async def test_by_key_and_by_node() -> None:
    author = Author(1)
    for command in (
        DefineCluster(container_cidr="10.42.0.0/20", pods_per_node=64, services=64),  # event 1
        join(1, "a"),  # 2, 3, 4
        ChangeKey(node="n1", uid="u1", key=key("a"), port=51820),  # 5
        ChangeKey(node="n1", uid="u1", key=key("b"), port=51820),  # 6
        join(2, "a"),  # 7, 8, 9
        LeaveNode(node="n2", uid="u2"),  # 10, 11
        ChangeKey(node="n1", uid="u1", key=key("c"), port=51820, beside=key("b")),  # 12
        ChangeKey(node="n1", uid="u1", key=key("c"), port=51820),  # 13
    ):
        assert author.do(command)
    past = await History.open(ListLog(author.messages))
    found = {}
    for sequence in (2, 3, 5, 6, 8, 11):
        held = await who_had_key(past, key("a"), Point(sequence, None, str(sequence)))
        found[sequence] = [
            (one.node, one.port, one.since and one.since.sequence, one.to and one.to.sequence) for one in held
        ]
    assert found == {
        2: [],
        3: [("n1", 0, 3, None)],
        5: [("n1", 51820, 3, None)],
        6: [("n1", 51820, 3, 6)],
        8: [("n1", 51820, 3, 6), ("n2", 0, 8, None)],
        11: [("n1", 51820, 3, 6), ("n2", 0, 8, 10)],
    }
    (held,) = await who_had_key(past, key("b"), Point(13, None, "13"))
    assert (held.since and held.since.sequence, held.to and held.to.sequence) == (6, 13), (
        "also beside the next one"
    )
    steps = [step.event["key"] for step in await life(past, "node", "n1") if "key" in step.event]
    assert steps == [key("a"), key("a"), key("b"), key("c"), key("c")]
    with pytest.raises(Usage):
        await who_had_key(past, "nonsense", Point(9, None, "9"))
