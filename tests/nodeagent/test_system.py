"""What systemd is told: once, by the socket that it names, and nothing where it names none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nodeagent.system import NOTIFY_SOCKET, tell_ready


@pytest.mark.parametrize("abstract", [False, True])
def test_readiness_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool) -> None:
    name = f"@isthmus-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv(NOTIFY_SOCKET, name)
        tell_ready()
        assert manager.recv(100) == b"READY=1"
        tell_ready()  # the environment of what the agent starts does not have it any more
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "/nowhere/notify"])
def test_where_nobody_listens_nothing_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTIFY_SOCKET, name)
    tell_ready()
