"""Defining a cluster whose log is empty: for controllers that come up where nobody is at the keyboard."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from controlplane.controller.controller import Controller
from controlplane.controller.requests import Request
from events.errors import IsthmusError, Usage
from events.ids import new_id
from events.protocol.commands import DefineCluster

log = logging.getLogger("isthmus.controller")

LOOK_S = 0.25
AGAIN_S = 5.0


def read_definition(path: Path) -> DefineCluster:
    """The command of a file. Raises Usage(config_invalid)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DefineCluster)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Usage("config_invalid", f"{path} is no definition of a cluster: {error}") from error


@asynccontextmanager
async def defining(controller: Controller, wanted: DefineCluster | None) -> AsyncIterator[None]:
    """Have the cluster defined as ``wanted`` while the block runs, if its log is empty. None: nothing is done.

    A log that is defined otherwise stays as it is, with a word. A cancellation inside of the block ends it.
    """
    if wanted is None:
        yield
        return
    running = asyncio.create_task(_define(controller, wanted), name="define")
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def _define(controller: Controller, wanted: DefineCluster) -> None:
    while True:
        found = controller.replica.state.definition
        if found is not None:
            if found.container_cidr != wanted.container_cidr:
                log.warning(
                    "the cluster is defined with %s, not %s: a container CIDR never changes in place "
                    "(`isthmus cluster append` adds one)",
                    found.container_cidr, wanted.container_cidr,
                )  # fmt: skip
            return
        if not controller.leadership.in_office or controller.replica.halted is not None:
            await asyncio.sleep(LOOK_S)
            continue
        try:
            await controller.committer.submit(
                Request(
                    command=wanted,
                    command_id=f"define-{new_id()}",
                    actor=f"controller/{controller.name}",
                    received_s=time.monotonic(),
                )
            )
        except IsthmusError as error:
            log.warning("the cluster is not defined yet: %s [%s]", error.message, error.code)
            await asyncio.sleep(AGAIN_S)
