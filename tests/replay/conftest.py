"""Fixtures of the replay tests."""

from __future__ import annotations

import pytest

from events.chain import genesis
from replay.archive.writer import ArchiveWriter
from tests.replay.commands import MESSAGES
from tests.replay.histories import CLUSTER


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "log.isthmus"
    writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="test")
    writer.add(MESSAGES)
    writer.finish()
    return str(path)
