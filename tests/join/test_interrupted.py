"""A join that is broken off anywhere, or meets a bad place: nothing half is left, and the same command goes on.

On a real bus with a real controller and issuer, in one sandbox.
"""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import msgspec
import pytest

from deploy.credentials.jwt import encode
from deploy.join import files
from deploy.join.earlier import SUFFIX
from deploy.join.joining import Joined, JoinRequest, join
from deploy.join.progress import Progress, Step
from events.bus.access import creds
from events.bus.access.nkeys import generate
from events.bus.enrolment import PENDING_KEY, JoinToken
from events.errors import IsthmusError
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS
from tests.security.conftest import CLUSTER, Place, opened

STEPS = ["token", "machine", "credentials", "configuration"]


def asked(token: JoinToken, folder: Path, **more: object) -> JoinRequest:
    return JoinRequest(
        token=token.text(), folder=folder / "etc", state_dir=folder / "state", underlay="eth0", foreground=True,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


async def refused(request: JoinRequest) -> str:
    try:
        await join(request, Progress())
    except IsthmusError as error:
        return error.code
    return ""


def whole(folder: Path, node: str) -> None:
    """Each file that is there is all of itself, and belongs to that node."""
    etc = folder / "etc"
    if (etc / "agent.creds").exists():
        assert creds.load(etc / "agent.creds").name == node
    if (etc / "agent.toml").exists():
        assert tomllib.loads((etc / "agent.toml").read_text())["node"] == node
    assert not (etc / "join.creds").exists()
    assert [path for path in etc.glob(".*") if path.is_file()] == []


def breaking(at: int) -> tuple[list[Step], Callable[[Step], None]]:
    """Ctrl-C when for the ``at``-th time a step begins or ends."""
    seen: list[Step] = []

    def show(step: Step) -> None:
        seen.append(step)
        if len(seen) == at:
            raise KeyboardInterrupt

    return seen, show


@pytest.mark.bus
@inside
def test_a_signal_leaves_the_credentials_of_the_token_nowhere() -> None:
    """While the bus says nothing: the program cleans up, and says by its exit code what ended it.

    Nobody else joins or leaves on that machine meanwhile.
    """
    sh("ip link add eth0 type veth peer name far && ip addr add 10.0.0.1/24 dev eth0")
    sh("ip link set eth0 up && ip link set far up")
    account, user = generate("account"), generate("user")
    jwt = encode(account, user.public, "idc-1", {"type": "user"}, issued=int(time.time()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = ["--folder", str(folder / "etc"), "--state-dir", str(folder / "state"), "--underlay", "eth0"]
        for number in (signal.SIGINT, signal.SIGTERM):
            with socket.create_server(("127.0.0.1", 0)) as bus:  # each its own: one that waits connects again
                bus.settimeout(60)
                server = f"nats://127.0.0.1:{bus.getsockname()[1]}"
                token = JoinToken(cluster=CLUSTER, node="idc-1", servers=(server,), jwt=jwt, seed=user.seed)
                line = [ISTHMUS, "join", token.text(), *places, "--foreground"]
                with subprocess.Popen(line, stderr=PIPE) as process:
                    with bus.accept()[0]:
                        assert (folder / "etc" / "join.creds").exists()
                        other = line if number == signal.SIGINT else [ISTHMUS, "leave", "--yes", *places[:4]]
                        second = subprocess.run(other, capture_output=True, text=True, check=False)
                        assert (second.returncode, "[join_running]" in second.stderr) == (1, True), second
                        assert (folder / "etc" / "join.creds").exists()
                        process.send_signal(number)
                        process.wait(60)
                    assert process.stderr is not None
                    said = process.stderr.read().decode()
            assert process.returncode == 128 + number, said
            assert "Traceback" not in said
            whole(folder, "idc-1")


@inside
async def test_a_join_that_stops_anywhere_goes_on() -> None:
    sh("ip link add eth0 type veth peer name other && ip addr add 10.9.0.1/24 dev eth0")
    sh("ip link set eth0 up && ip link set other up")
    with tempfile.TemporaryDirectory() as name:
        async with opened(Path(name)) as place:
            await _broken_off_at_every_step(place, Path(name))
            await _full_and_read_only(place, Path(name))
            await _wrong_and_far(place, Path(name))
            await _over_an_installation_by_hand(place, Path(name))


async def _joined(token: JoinToken, folder: Path, **more: object) -> tuple[Joined, list[str]]:
    progress = Progress()
    joined = await join(asked(token, folder, **more), progress)
    assert [step.name for step in progress.steps] == STEPS
    return joined, [step.status for step in progress.steps]


async def _broken_off_at_every_step(place: Place, tmp: Path) -> None:
    token, folder = await place.token("n-1"), tmp / "n-1"
    for at in range(1, 2 * len(STEPS) + 1):
        seen, show = breaking(at)
        with pytest.raises(KeyboardInterrupt):
            await join(asked(token, folder), Progress(show=show))
        assert len(seen) >= at
        whole(folder, "n-1")
    before = (folder / "etc" / "agent.creds").read_text()
    _, said = await _joined(token, folder)
    assert said[2:] == ["unchanged", "unchanged"]
    assert (folder / "etc" / "agent.creds").read_text() == before
    assert len([1 for kind, _ in await place.log() if kind == "token.used.v1"]) == 1


async def _full_and_read_only(place: Place, tmp: Path) -> None:
    token, folder = await place.token("n-2"), tmp / "n-2"
    etc = folder / "etc"
    etc.mkdir(parents=True)
    sh(f"mount -t tmpfs -o size=4k none {etc}")
    (etc / "filler").write_bytes(b"x" * 4096)
    assert await refused(asked(token, folder)) == "file_unusable"
    whole(folder, "n-2")
    (etc / "filler").unlink()
    sh(f"mount -o remount,ro {etc}")
    assert await refused(asked(token, folder)) == "file_unusable"
    sh(f"mount -o remount,rw,size=1m {etc}")
    # The disk is full just when the issuer has answered: the token is used, and goes on to be good here.
    write, full = creds.write_secret, []

    def fails_once(path: Path, *rest: object) -> None:
        if path.name == "agent.creds" and not full:
            full.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(creds, "write_secret", fails_once)
        assert await refused(asked(token, folder)) == "file_unusable"
    assert (etc / PENDING_KEY).exists()
    await _joined(token, folder)
    assert not (etc / PENDING_KEY).exists()
    assert await refused(asked(token, tmp / "elsewhere")) == "token_used"
    sh(f"umount {etc}")


async def _wrong_and_far(place: Place, tmp: Path) -> None:
    token, folder = await place.token("n-3"), tmp / "n-3"
    # Addresses of the bus are tried one by one: nobody listens at the first, no way leads to the second.
    far = msgspec.structs.replace(token, servers=("tls://127.0.0.1:1", "tls://192.0.2.1:4222", *token.servers))
    await _joined(far, folder)
    alone = msgspec.structs.replace(await place.token("n-4"), servers=("tls://127.0.0.1:1",))
    assert await refused(asked(alone, tmp / "n-4")) == "bus_unreachable"
    whole(tmp / "n-4", "n-4")
    with pytest.raises(IsthmusError) as taken:
        await join(asked(await place.token("n-5"), folder), Progress())
    assert taken.value.code == "machine_is_a_node"
    assert f"`isthmus leave --yes --folder {folder}/etc --state-dir {folder}/state`" in taken.value.message
    other = msgspec.structs.replace(token, cluster="other")
    assert await refused(asked(other, folder)) == "machine_is_a_node"
    # Settings gone, credentials of another cluster there: they are not taken for the token's.
    (folder / "etc" / "agent.toml").unlink()
    progress = Progress()
    await join(asked(other, folder, dry_run=True), progress)
    assert [step.status for step in progress.steps][2:] == ["planned", "planned"]
    for what in ({"kind": "cloud"}, {"site": "gz"}):
        limited = msgspec.structs.replace(token, kind="external", site="ams")
        assert await refused(asked(limited, folder, **what)) == "token_limits"


async def _over_an_installation_by_hand(place: Place, tmp: Path) -> None:
    """What 0.2.0's guide has one write: its folder of state goes on, and what else a join does not say."""
    token, folder = await place.token("old-1"), tmp / "by-hand"
    etc = folder / "etc"
    etc.mkdir(parents=True)
    lines = (
        'bus = "tls://127.0.0.1:1"', f'cluster = "{CLUSTER}"', 'node = "old-1"', 'kind = "external"',
        "mtu = 1400", f'state-dir = "{folder / "kept"}"', "",
    )  # fmt: skip
    text = "\n".join(lines)
    (etc / "agent.toml").write_text(text)
    wrong = await place.token("n-6")
    assert await refused(asked(wrong, folder)) == "machine_is_a_node"
    request = msgspec.structs.replace(asked(token, folder), state_dir=Path("/var/lib/isthmus/agent"))
    await join(request, Progress())
    found = tomllib.loads((etc / "agent.toml").read_text())
    assert (found["mtu"], found["state-dir"], found["node"]) == (1400, str(folder / "kept"), "old-1")
    assert found["bus"] == ",".join(token.servers)
    assert (etc / f"agent.toml{SUFFIX}").read_text() == text
    assert (etc / "agent.toml").read_text().startswith(files.MARK)
    progress = Progress()
    await join(asked(token, folder), progress)
    assert [step.status for step in progress.steps][2:] == [
        "unchanged",
        "done",
    ]  # its own --state-dir this time
