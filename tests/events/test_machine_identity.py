"""The agent and an import derive the same uid for one machine, and none for a placeholder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.machine_identity import machine_uid, read_machine_uid

ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"
UUID = "4C4C4544-0042-3110-8054-B4C04F564C31"


def test_what_kubernetes_shows_and_what_the_machine_has_are_one_uid(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text(f"{ID}\n")
    assert read_machine_uid(tmp_path) == machine_uid(ID, UUID) == ID
    (tmp_path / "etc/machine-id").write_text("uninitialized\n")  # systemd's word for "not yet"
    (tmp_path / "var/lib/dbus").mkdir(parents=True)
    (tmp_path / "var/lib/dbus/machine-id").write_text(ID)
    assert read_machine_uid(tmp_path) == ID


def test_the_firmware_names_a_machine_without_a_machine_id(tmp_path: Path) -> None:
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_uuid").write_text(f"{UUID}\n")
    assert read_machine_uid(tmp_path) == machine_uid("", UUID) == UUID.lower().replace("-", "")


@pytest.mark.parametrize("nothing", ["", "0" * 32, "uninitialized", ID[:-1], "\0" * 32, None, 7, {"a": 1}])
def test_what_names_no_machine_gives_no_uid(nothing: object, tmp_path: Path) -> None:
    assert machine_uid(nothing) == ""
    assert read_machine_uid(tmp_path) == ""
    (tmp_path / "etc/machine-id").mkdir(parents=True)  # a mount of a file that is not there
    assert read_machine_uid(tmp_path) == ""


@given(st.text(max_size=80), st.text(max_size=80))
def test_a_uid_is_always_printable_and_bounded(machine_id: str, system_uuid: str) -> None:
    uid = machine_uid(machine_id, system_uuid)
    assert uid == "" or (len(uid) == 32 and uid.isalnum() and uid.isascii() and uid == machine_uid(uid))
