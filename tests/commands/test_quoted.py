"""A command that a message quotes can be pasted, whatever the file, the folder or the device is called."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.cli import main
from deploy.credentials.store import Store
from deploy.join import host
from events.errors import IsthmusError
from nodeagent.health.diagnosis import cni_before
from nodeagent.identity import identify

ODD = ("a b", "it's", "$(reboot)", "a;b", 'say "hi"', "*", "é")


def _said(refused: Callable[[], object]) -> str:
    with pytest.raises(IsthmusError) as caught:
        refused()
    return caught.value.message


def _words(message: str, command: str) -> list[str]:
    """The words of the command that begins so, as a shell would take them."""
    rest = command + message.partition(command)[2]
    return shlex.split(rest.partition("`")[0])


@pytest.mark.parametrize("name", ODD)
def test_names_of_files_are_quoted_for_the_shell(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name
    place.mkdir()
    (place / "uid").write_bytes(b"\0")
    damaged = _words(_said(lambda: identify(place)), "isthmus agent new-identity")
    assert damaged[-2:] == ["--state-dir", str(place)]
    assert str(place) in _words(_said(Store(place).load), "isthmus credentials init")
    unit = place / "unit"
    unit.write_text("somebody's")
    assert _words(_said(lambda: host.write(unit, "ours")), "mv") == ["mv", str(unit), f"{unit}.before"]
    (place / "10-isthmus.conflist").touch()
    other = place / f"00-{name}.conf"
    other.touch()
    assert _words(cni_before(place, "10-isthmus.conflist"), "mv") == ["mv", str(other), "/root/"]
    manifest = place / "all.yaml"
    assert main._run(["deploy", "kubernetes", "--all-in-one", "--to", str(manifest)]) == 0
    assert _words(capsys.readouterr().out.strip(), "kubectl apply")[-1] == str(manifest)
