"""What signs checkpoints keeps no controller from starting: it is set aside, begun anew, and said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from controlplane.cluster.state import ClusterState
from controlplane.controller.publishing.checkpointer import KEY_NAME, Checkpointer
from controlplane.controller.publishing.checkpoints import (
    FILE_NAME,
    SigningKey,
    check_signature,
    read_checkpoints,
)
from controlplane.controller.replication.replica import Replica
from events import input_files
from events.chain import genesis


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "NULs": lambda path: path.write_bytes(bytes(100)),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "another kind of key": lambda path: path.write_text(path.with_name(f"{path.name}.pub").read_text()),
    "a FIFO": _fifo,
    "a folder": _folder,
    "a link to itself": _loop,
}


class Folded:
    """A replica's state and head."""

    state, head = ClusterState("prod"), genesis("prod")


def checkpointer(directory: Path) -> Checkpointer:
    return Checkpointer(directory, cast("Replica", Folded()), active=lambda: True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "WRITER_S", 0.02)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_key_is_set_aside_and_another_one_signs(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    before = await checkpointer(tmp_path).sign()
    damage(tmp_path / KEY_NAME)
    again = checkpointer(tmp_path)
    (found,) = again.conditions()
    signed = await again.sign()
    assert found.code == "record_incomplete"
    assert signed.key in found.message
    assert signed.key != before.key
    check_signature(signed, signed.cluster, signed.key)
    aside = tmp_path / f"{KEY_NAME}.damaged"
    assert aside.is_symlink() or aside.exists()
    assert checkpointer(tmp_path).conditions() == []
    assert SigningKey.load(tmp_path / KEY_NAME).public_hex == signed.key
    damage(tmp_path / KEY_NAME)  # once more: the first one set aside stays
    assert "damaged-2" in checkpointer(tmp_path).conditions()[0].message


@pytest.mark.parametrize("damage", [DAMAGES["NULs"], DAMAGES["a FIFO"], DAMAGES["a folder"]])
async def test_damaged_checkpoints_are_set_aside(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    await checkpointer(tmp_path).sign()
    damage(tmp_path / FILE_NAME)
    if (tmp_path / FILE_NAME).is_file():
        (tmp_path / FILE_NAME).write_bytes(bytes(100) + b"\n")
    again = checkpointer(tmp_path)
    assert [condition.code for condition in again.conditions()] == ["record_incomplete"]
    signed = await again.sign()
    assert read_checkpoints(tmp_path / FILE_NAME) == [signed]


async def test_where_no_key_can_be_written_one_in_memory_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("controlplane.controller.publishing.checkpoints.write_secret", full)
    (found,) = checkpointer(tmp_path).conditions()
    assert "in memory" in found.message
    assert not (tmp_path / KEY_NAME).exists(), "no half of a key is left for the next start"
