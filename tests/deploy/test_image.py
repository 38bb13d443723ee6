"""The image, built twice and run: the same bytes, nobody's root, and its roles work.

Takes minutes and half a gigabyte, so only where it is asked for: ISTHMUS_IMAGE=1, as root, with Debian's
packages buildah and mmdebstrap. What can be checked without an engine is in test_container.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from tests.waiting import wait_for as until

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).parents[2]
COMPRESSED_MAX_MB = 110
ISTHMUS = Path(sys.executable).with_name("isthmus")


def missing() -> str:
    if os.environ.get("ISTHMUS_IMAGE") != "1":
        return "builds an image for some minutes: only with ISTHMUS_IMAGE=1"
    tools = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    return f"Debian's packages {' and '.join(tools)} are not installed" if tools else ""


class Image:
    """An image in a storage of its own, and one container of it (chroot isolation: works in a container)."""

    def __init__(self, storage: Path, said: str) -> None:
        self.said = said
        self._buildah = ["buildah", "--root", str(storage / "root"), "--runroot", str(storage / "run"),
                         "--storage-driver", "vfs"]  # fmt: skip
        self.tag = said.splitlines()[-2].split()[0]
        self.container = self.buildah("from", "--pull-never", f"localhost/{self.tag}").strip()

    def buildah(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._buildah, *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command(self, *words: str, user: str = "") -> list[str]:
        who = ["--user", user] if user else []
        return [*self._buildah, "run", "--isolation", "chroot", *who, self.container, "--", *words]

    def run(self, *words: str, user: str = "") -> str:
        done = subprocess.run(
            self.command(*words, user=user), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if reason := missing():
        pytest.skip(reason)
    storage = tmp_path_factory.mktemp("storage")
    built = subprocess.run(
        [str(ROOT / "deploy" / "container" / "build.sh"), "--base", "debian", "--twice"],
        env={**os.environ, "STORAGE": str(storage)}, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    found = Image(storage, built.stdout)
    yield found
    found.buildah("rm", found.container)
    found.buildah("rmi", "--all", "--force")


def test_two_builds_are_the_same_bytes(image: Image) -> None:
    assert "built twice, the same bytes" in image.said
    assert re.search(r"^isthmus:\S+ sha256:[0-9a-f]{64}$", image.said, re.MULTILINE)


def test_it_is_small(image: Image) -> None:
    compressed = re.search(r"^(\d+) MB compressed", image.said, re.MULTILINE)
    assert compressed
    assert int(compressed[1]) <= COMPRESSED_MAX_MB


def test_it_runs_as_nobody_who_can_write_to_it(image: Image) -> None:
    assert image.run("id", "-u").strip() == "65532"
    writable = image.run(
        "sh", "-c", "find / -xdev ! -type l -writable ! -path '/proc/*' ! -path '/dev/*' 2>/dev/null || true"
    )
    assert set(writable.split()) <= {"/tmp", "/var/tmp", "/run/lock"}
    setuid = image.run("sh", "-c", "find / -xdev -perm /6000 -type f 2>/dev/null || true")
    assert setuid.split() == []


def test_nothing_of_the_builder_is_in_it(image: Image) -> None:
    assert image.run("sh", "-c", "cat /etc/pip.conf /etc/ca.pem 2>/dev/null; ls /src 2>/dev/null; true") == ""
    assert not image.run("sh", "-c", "command -v pip pip3 gcc git curl || true").strip()


def test_each_role_starts(image: Image) -> None:
    for role in ("agent", "controller", "replay", "credentials", "events"):
        assert "Usage: isthmus" in image.run("isthmus", role, "--help")
    for tool in ("nft --version", "ip -V", "bridge -V"):
        assert image.run(*tool.split(), user="0")


@contextlib.asynccontextmanager
async def controller(image: Image, bus: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *image.command("isthmus", "controller", "--bus", bus, "--cluster", "image", "--data", "/tmp/data"),
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)


@pytest.mark.bus
async def test_its_controller_serves_a_cluster(image: Image, tmp_path: Path) -> None:
    def isthmus(*words: str) -> str:
        done = subprocess.run([str(ISTHMUS), *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async with EmbeddedServer(ServerOptions(store_dir=tmp_path)) as server:
        at = ("--bus", server.url, "--cluster", "image")
        async with controller(image, server.url):
            define = ("cluster", "define", *at, "--cidr", "10.9.0.0/16")
            await asyncio.to_thread(until, lambda: isthmus(*define), "the controller in the image decides", 60)
            shown = json.loads(await asyncio.to_thread(isthmus, "cluster", "show", *at, "--json"))
    assert "10.9.0.0/16" in json.dumps(shown)
