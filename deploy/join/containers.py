"""The agent as a container: which engine this machine has, the command that starts it, and taking it away.

What it may do is what the DaemonSet's agent may: root of a few of the host's folders, three capabilities, the
host's network. The command is kept beside the settings, so that a person can read it and `isthmus leave` knows
whose container it is.

Cancelled, a program of the engine's is ended and what it did by then stays; all of it may be repeated.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from deploy.join import host
from deploy.join.files import MARK
from events.codes.extras import our_version
from events.errors import Refused
from nodeagent.pods.chain import DIRECTORIES
from nodeagent.system import find

NAME = "isthmus-agent"
FILE = "agent.container"
ENGINES = ("podman", "docker", "nerdctl")
"""In the order in which they are looked for; their command lines are the same."""
IMAGE = f"isthmus:{our_version()}"
STOP_S = 10
WRITTEN = ("/etc/cni/net.d", "/run/isthmus")
"""Folders of the host's that the agent writes besides its own two."""
READ = ("/var/lib/cni", "/dev/net", "/etc/machine-id")


async def engine(wanted: str) -> str:
    """The program that runs containers here: the one that is wanted, or the first that answers.

    Raises Refused(prerequisite_missing), saying what was found and why that is not enough.
    """
    reasons = []
    for name in (wanted,) if wanted else ENGINES:
        if not installed(name):
            continue
        try:
            await host.system(name, "info")
        except Refused as error:
            reasons.append(f"{name} is installed, but {error.message}")
        else:
            return name
    if not wanted and installed("ctr"):
        reasons.append(
            "containerd's own ctr cannot run an image as root of the host's folders: install nerdctl"
        )
    raise Refused(
        "prerequisite_missing",
        f"this machine has no {wanted or ', '.join(ENGINES)} that runs containers"
        + (f": {'; '.join(reasons)}" if reasons else "")
        + ". Install one, or use `isthmus join` without --container (systemd) or with --foreground",
    )


def installed(name: str) -> bool:
    """Whether that program is here, on this process's PATH or where the system's programs are."""
    return (shutil.which(name) or find(name)) is not None


async def have(engine: str, image: str) -> bool:
    """See that the image is here; whether it had to be pulled. Raises Refused(prerequisite_missing)."""
    with contextlib.suppress(Refused):
        await host.system(engine, "image", "inspect", image)
        return False
    try:
        await host.system(engine, "pull", image, timeout_s=host.PULL_LIMIT_S)
    except Refused as error:
        raise Refused(
            "prerequisite_missing",
            f"the image {image} is not on this machine and cannot be pulled ({error.message}). Load it "
            f"(`{engine} load -i FILE`), or name it where {engine} finds it: --image REGISTRY/{IMAGE}",
            image=image,
        ) from error
    return True


def command(engine: str, image: str, config: Path, state_dir: Path) -> tuple[str, ...]:
    """The whole command that starts the agent."""
    folders = [(str(folder), "") for folder in (config.parent, state_dir, *WRITTEN)]
    read = [(folder, ":ro") for folder in READ if folder == "/var/lib/cni" or Path(folder).exists()]
    # Where the standard CNI plugins are, ours is put beside them before this, as the unit does.
    read += [(folder, ":ro") for folder in DIRECTORIES if Path(folder).is_dir()]
    return (
        *(engine, "run", "--detach", "--name", NAME, "--restart", "always", "--network", "host"),
        *("--user", "0", "--read-only", "--cap-drop", "ALL"),
        *("--cap-add", "NET_ADMIN", "--cap-add", "BPF", "--cap-add", "NET_RAW"),
        *("--security-opt", "no-new-privileges", "--log-opt", "max-size=10m"),
        *(word for folder, mode in (*folders, *read) for word in ("--volume", f"{folder}:{folder}{mode}")),
        *(image, "agent", "run", "--config", str(config)),
    )


def text(words: Sequence[str]) -> str:
    """What is kept beside the settings: the command, as a shell takes it."""
    return f"{MARK}\n{shlex.join(words)}\n"


def engine_in(kept: str | None) -> str:
    """The engine of the command that is kept; empty when none of ours is."""
    if kept is None or not kept.startswith(MARK):
        return ""
    words = shlex.split(kept, comments=True)
    return words[0] if words and words[0] in ENGINES else ""


async def start(words: Sequence[str], folders: Sequence[Path]) -> None:
    """Start it anew, with the folders that it needs, the first of which has :data:`FILE`.

    Raises Refused(command_failed), OSError.
    """
    for folder in (*folders, *map(Path, WRITTEN), Path("/var/lib/cni")):
        folder.mkdir(parents=True, exist_ok=True)
    await remove(words[0])
    try:
        await host.system(*words)
    except Refused as error:
        said = error.message.partition("` ")[2] or error.message  # without the command, which is long
        raise Refused(
            "command_failed", f"`{words[0]} run …` {said}. The whole command is in {folders[0] / FILE}"
        ) from error


async def runs(engine: str) -> bool:
    """Whether it runs now."""
    return await _inspected(engine, "{{.State.Running}}") == "true"


async def restarts(engine: str) -> int:
    """How often the engine has started it again."""
    said = await _inspected(engine, "{{.RestartCount}}")
    return int(said) if said.isdigit() else 0


async def _inspected(engine: str, form: str) -> str:
    try:
        return await host.system(engine, "container", "inspect", "--format", form, NAME)
    except Refused:
        return ""  # there is none


async def last_words(engine: str) -> str:
    """The last lines that it wrote, in one."""
    try:
        said = await host.system(engine, "logs", "--tail", "20", NAME)
    except Refused as error:
        return error.message
    return host.in_one(said)


async def remove(engine: str) -> bool:
    """Stop and remove it; whether there was one. Raises Refused(command_failed)."""
    if not await _inspected(engine, "{{.Id}}"):
        with contextlib.suppress(Refused):  # a `run` that was killed may have left its name taken, and no more
            await host.system(engine, "rm", "--force", NAME)
        return False
    await host.system(engine, "stop", "--time", str(STOP_S), NAME)
    await host.system(engine, "rm", "--force", NAME)
    return True
