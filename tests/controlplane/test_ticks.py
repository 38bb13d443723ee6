"""The controller's own decisions while they cannot be stored: said once, in words of an operator."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.commands.committer import Committer
from controlplane.controller.commands.ticker import Ticker
from controlplane.controller.replication.replica import Replica
from controlplane.controller.requests import Request
from events.errors import Unavailable
from tests.controlplane.world import World


class Away:
    """A committer whose log is away while ``code`` says so."""

    code = "bus_unreachable"

    async def submit(self, _request: Request) -> None:
        if self.code:
            raise Unavailable(self.code, "the connection to the bus is down; it is being restored")


async def test_a_decision_that_cannot_be_stored_is_told_once_and_in_plain_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world, away = World(container_cidr="10.0.0.0/24", pods_per_node=32), Away()
    world.join(1)
    ticker = Ticker(
        cast("Committer", away), cast("Replica", SimpleNamespace(state=world.state)),
        Liveness(), actor="controller/x", active=lambda: True,
    )  # fmt: skip

    async def told() -> list[Any]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "isthmus.controller"):
            for _ in range(5):
                await ticker.tick()
        return [record.getMessage() for record in caplog.records]

    (said,) = await told()
    assert said.startswith(
        "telling silent nodes from living ones has to wait: the connection to the bus is down"
    )
    assert "mark-liveness" not in said
    assert await told() == []
    away.code = "log_unavailable"
    assert len(await told()) == 1, "another reason is news"
    away.code = ""
    assert await told() == []
    away.code = "bus_unreachable"
    assert len(await told()) == 1, "so is the same one after it had ended"
