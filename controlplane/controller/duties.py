"""What leading a cluster means, and what the committer remembers commands by."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from controlplane.controller.commands.committer import Committer
from controlplane.controller.commands.endpoint import Endpoint
from controlplane.controller.leadership.term import Term
from controlplane.readmodel.projector import Projector
from controlplane.readmodel.store import SequenceSpan
from events.errors import Unavailable


class Duties:
    """Leading means: the endpoint is open, and the committer decides what comes in."""

    def __init__(self, endpoint: Endpoint, committer: Committer) -> None:
        self._endpoint = endpoint
        self._committer = committer
        self._term: Term | None = None

    async def prepare(self) -> None:
        await self._endpoint.open()

    async def begin(self, term: Term) -> None:
        await self._committer.begin(term)
        self._term = term

    async def end(self) -> None:
        term, self._term = self._term, None
        if term is not None and term.valid:
            await self._endpoint.close()
            self._committer.end_term()
        else:
            self._committer.end_term()
            await self._endpoint.close(decide=False, timeout_s=0.5)


class ReadModelCommands:
    """The commands table of whichever generation is current; nothing while the projection is stopped."""

    def __init__(self, projector: Projector) -> None:
        self._projector = projector

    async def spans(self, command_ids: Sequence[str]) -> dict[str, SequenceSpan]:
        try:
            store = await self._projector.open()
            return await store.spans(command_ids)
        except (sqlite3.Error, ValueError) as error:  # ValueError: closed meanwhile, for a switch
            raise Unavailable(
                "log_unavailable",
                f"the read model cannot tell whether these commands happened before: {error}",
            ) from error
