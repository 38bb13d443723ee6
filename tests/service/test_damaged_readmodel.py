"""A damaged read model stops nothing: it is made anew from the log."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.changes import Changes
from controlplane.cluster.digest import state_digest
from controlplane.controller.replication.command_dedup import CommandDedup
from controlplane.controller.replication.restore import last_sequence_seen, restore
from controlplane.readmodel.asof import load_state
from controlplane.readmodel.schema import VERSION
from controlplane.readmodel.store import current_generation, generation_file, lock_directory
from events.errors import Refused, Unavailable, VerificationFailed
from replay.history import History
from replay.queries.bisect import bisect
from replay.queries.states import ReadModel, States
from tests.service.histories import lived_in, projecting
from tests.service.rig import CLUSTER, rig
from tests.waiting import until


def _cut(path: Path) -> None:
    os.truncate(path, 5000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(50_000))


def _zeros(path: Path) -> None:
    """Every page but the first: a disk that lost what it had promised."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(size - 4096))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pointer(path: Path) -> None:
    (path.parent / "current").write_bytes(b"\xff\x00")


def _elsewhere(path: Path) -> None:
    (path.parent / "current").write_text("999")


def _no_pointer(path: Path) -> None:
    _folder(path.parent / "current")


def _fifo(path: Path) -> None:
    (path.parent / "current").unlink()
    os.mkfifo(path.parent / "current")


def _of_another_release(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'version'", (str(VERSION - 1),))
    connection.execute("ALTER TABLE node RENAME COLUMN row TO vtep_mac")
    connection.commit()
    connection.close()


DAMAGES = [
    *(_cut, _empty, _noise, _zeros, _folder, _pointer, _elsewhere, _no_pointer, _fifo),
    _of_another_release,
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_controller_starts_from_the_log_and_makes_it_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with rig() as it:
        async with projecting(it, tmp_path) as projector:
            await lived_in(it, 120, 7)
            await projector.reached(it.replica.head.sequence)
        damage(generation_file(tmp_path, current_generation(tmp_path)))
        await last_sequence_seen(tmp_path, CLUSTER)
        restored = await restore(it.log, tmp_path, changes=Changes(), dedup=CommandDedup())
        task = asyncio.create_task(restored.follow())
        await restored.reached(it.replica.head.sequence, timeout_s=20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert state_digest(restored.state) == state_digest(it.replica.state)
        async with projecting(it, tmp_path) as projector:
            await projector.reached(it.replica.head.sequence, timeout_s=20)
            store = await projector.open()
            assert state_digest(await store.run(load_state)) == state_digest(it.replica.state)


def test_a_folder_in_the_locks_place_is_set_aside_and_one_process_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "lock" / "something").mkdir(parents=True)
    held = lock_directory(tmp_path)
    assert (tmp_path / "lock").is_file()
    assert [path.name for path in tmp_path.glob("lock.damaged-*/*")] == ["something"]
    with pytest.raises(Refused, match="another controller"):
        lock_directory(tmp_path)
    os.close(held)
    os.close(lock_directory(tmp_path))


async def test_damage_that_shows_while_it_runs_is_mended_without_a_restart(tmp_path: Path) -> None:
    async with rig() as it, projecting(it, tmp_path) as projector:
        await lived_in(it, 120, 7)
        await projector.reached(it.replica.head.sequence)
        broken = await projector.open()

        def spoil(connection) -> None:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("DELETE FROM sqlite_master WHERE name = 'event'")
            connection.execute("PRAGMA schema_version = 7")

        await broken.run(spoil)
        with pytest.raises(Unavailable, match="made anew"):
            await projector.query(lambda c: c.execute("SELECT count(*) FROM event").fetchone())
        await lived_in(it, 40, 8)
        await until(lambda: projector.store is not None and projector.store.path != broken.path)
        await projector.reached(it.replica.head.sequence, timeout_s=20)
        found = await projector.query(load_state)
        assert state_digest(found) == state_digest(it.replica.state)


def _reopened(place: Path) -> ReadModel | None:
    """The model, unless it says that it is damaged."""
    try:
        return ReadModel.open(place, CLUSTER)
    except VerificationFailed as error:
        return None if error.code == "read_model_damaged" else ReadModel.open("", CLUSTER)


@pytest.mark.parametrize("damage", [_cut, _empty, _noise, _zeros])
async def test_a_replay_folds_the_log_instead(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    async with rig() as it:
        async with projecting(it, tmp_path) as projector:
            await lived_in(it, 120, 7)
            await projector.reached(it.replica.head.sequence)
        past = await History.open(it.log)
        told: list[str] = []
        sound = States(past, ReadModel.open(tmp_path, CLUSTER))
        model = ReadModel.open(tmp_path, CLUSTER)
        states = States(past, model, on_damage=told.append)
        expected = state_digest((await sound.at(past.end))[0])
        held = await bisect(sound, "nodes <= 3")
        path = model.path
        model.close()
        damage(path)
        states.read_model = _reopened(tmp_path)
        if states.read_model is not None:
            found = await bisect(states, "nodes <= 3")
            assert found.failed == held.failed
        assert state_digest((await states.at(past.end))[0]) == expected
        assert (states.read_model is None) or not told
