"""One identity for a machine, from its own files and from what Kubernetes says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from events.machine import local_machine_uid, machine_uid

ID = "4c4c4544003510428051b4c04f4a4d32"
UUID = "4C4C4544-0035-1042-8051-B4C04F4A4D32"


def test_both_sides_derive_the_same(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text(f"{ID}\n")
    assert local_machine_uid(tmp_path) == machine_uid(ID.upper(), UUID) == ID


def test_without_a_machine_id_the_firmware_names_it(tmp_path: Path) -> None:
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_uuid").write_text(f"{UUID}\n")
    assert local_machine_uid(tmp_path) == machine_uid("", UUID) == UUID.lower()


@pytest.mark.parametrize(
    "value",
    ["", "  \n", "uninitialized", "0" * 32, "f" * 32, "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "a\x00b",
     "x" * 200, "03000200-0400-0500-0006-000700080009", "Not Specified", "To be filled by O.E.M."],
)  # fmt: skip
def test_what_names_nobody_is_no_identity(value: str, tmp_path: Path) -> None:
    assert machine_uid(value, value) == ""
    assert machine_uid(value, UUID) == UUID.lower()
    assert local_machine_uid(tmp_path) == ""


def test_unreadable_is_not_absent(tmp_path: Path) -> None:
    (tmp_path / "etc/machine-id").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        local_machine_uid(tmp_path)
