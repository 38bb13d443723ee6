"""The agent's files on its node: the lock, and the status that `isthmus agent status` shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from events.bus.access.temporaries import drop_left, pattern
from events.errors import Refused, Unavailable
from events.input_files import read_regular
from events.status import WayKind

STATUS_FILE = "status.json"
VIEW_LIMIT_BYTES = 1 << 30
"""More than a view of a hundred thousand nodes and its journal."""


class LocalWay(msgspec.Struct, frozen=True):
    """The way to one peer, as :class:`events.status.PeerWay` has it; ``since`` in Unix seconds."""

    peer: str
    way: WayKind
    via: str = ""
    encrypted: bool = False
    since: float = 0.0
    why: str = ""


class LocalStatus(msgspec.Struct, kw_only=True):
    """Everything about one agent. Times are Unix seconds, durations seconds."""

    node: str
    uid: str
    cluster: str
    pid: int
    started_at: float
    written_at: float
    state: str = "starting"
    range: str = ""
    epoch: int = 0
    vtep_mac: str = ""
    vni: int = 0
    port: int = 0
    device: str = ""
    underlay: str = ""
    announced: str = ""
    mtu: int = 0
    peers: int = 0
    sequence: int = 0
    applied: int = 0
    chain: str = ""
    behind: int = 0
    """Events known to be in the log and not yet applied."""
    last_event_at: float = 0.0
    bus_connected: bool = False
    bus_contact_at: float = 0.0
    expected_digest: str = ""
    kernel_digest: str = ""
    counters: dict[str, float] = {}
    conditions: tuple[str, ...] = ()
    fastpath: str = ""
    """Whether flows bypass the stack, and if not why, in words; empty from a release without it."""
    gateway: str = ""
    """This node's part in CLB pairs, in words; empty where it has none."""
    cni_dir: str = ""
    interval_s: float = 5.0
    """How often the agent writes this at least."""
    path: str = ""
    """Whether packets of this node's pods pass: confirmed, not confirmed, failing, no peers."""
    path_confirmed_at: float = 0.0
    """When one last did; 0: not in this life of the agent."""
    held: tuple[str, ...] = ()
    """The CLB addresses that it holds, in words."""
    pod_directory: str = ""
    """Where host-local keeps the pods' addresses."""
    pods: int = -1
    """Pods with an address of the node's range; -1 when not known."""
    nat: str = ""
    """As which address whom of the others sees this node, in words; empty when that is the announced one."""
    ways: str = ""
    encryption: str = ""
    """How many peers are reached which way, in words."""
    peer_ways: tuple[LocalWay, ...] = ()
    """Peers that are reached otherwise than through the tunnel, or were in this life of the agent; the newest
    change first, and not all of thousands."""
    stray_pods: tuple[str, ...] = ()
    """Addresses of pods in ranges that are not this node's (any more)."""
    boot: str = ""
    """The kernel's name of this boot; empty from a release without it."""
    written_running_s: float = 0.0
    """When this was written by the clock that nobody sets, see :func:`running_s`."""


def running_s() -> float:
    """Seconds since the start of this machine, also while it slept: CLOCK_BOOTTIME, which nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's name of this boot; empty where it does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def now_of(status: LocalStatus) -> float:
    """The present by the wall clock that the writer had, Unix seconds: ages are right after somebody sets it.

    Of another boot, or of a release that does not write it: this machine's wall clock now.
    """
    if not status.boot or status.boot != boot_id():
        return time.time()
    return status.written_at + running_s() - status.written_running_s


def write_atomically(path: Path, data: bytes, *, durable: bool = False, mode: int = 0o644) -> None:
    """Replace a file so that a reader sees the old or the new content, never a part. Raises OSError.

    ``durable``: also after a loss of power. Another ``mode`` than the default holds whatever the umask. Written
    by root in a folder of the agent's own account, it is that account's: the agent must be able to read it.
    What a process left of it that was killed is removed.
    """
    drop_left(path.parent, pattern(path.name, r"\d+", ".new"))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed, or a link that somebody laid
        with open(
            temporary, "wb", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, mode & 0o644)
        ) as file:
            folder = path.parent.stat()
            if os.geteuid() == 0 != folder.st_uid:
                os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
            file.write(data)
            if mode != 0o644:
                os.fchmod(file.fileno(), mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # of the file that was asked for, not of the one beside it
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def prepare_directory(directory: Path) -> None:
    """Make the state directory. Raises Refused(not_permitted)."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise Refused(
            "not_permitted",
            f"the state directory {directory} cannot be written ({error.strerror}): run as its owner or "
            f"choose another with --state-dir",
            path=str(directory),
        ) from error


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the lock of the state directory. Raises Refused(agent_running, not_permitted)."""
    path = directory / "lock"
    try:
        opened = path.open("a+")
    except PermissionError as error:
        raise Refused(
            "not_permitted",
            f"{path} belongs to another account ({error.strerror}): give the folder to the one that the agent "
            f"runs as, `chown -R isthmus: {shlex.quote(str(directory))}` under the shipped unit",
            path=str(path),
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(
                "agent_running",
                f"an agent already runs with the state directory {directory}",
                path=str(directory),
            ) from error
        yield


def running(directory: Path) -> bool:
    """Whether an agent holds the lock now. Looks only: a lock made here would be another account's."""
    try:
        handle = os.open(directory / "lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def write_status(directory: Path, status: LocalStatus) -> None:
    """Replace the status file. Raises OSError."""
    write_atomically(directory / STATUS_FILE, msgspec.json.encode(status))


def read_status(directory: Path) -> LocalStatus:
    """What the agent last wrote.

    Raises Unavailable(agent_not_running) when there is nothing, Refused(not_permitted) when it is closed to us.
    """
    try:
        return msgspec.json.decode(read_regular(directory / STATUS_FILE), type=LocalStatus)
    except PermissionError as error:
        raise Refused(
            "not_permitted",
            f"{directory} is closed to this account ({error.strerror}), so whether an agent runs there is not "
            "known: run it as root (sudo), or as the account that the folder belongs to",
            path=str(directory),
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise Unavailable(
            "agent_not_running",
            f"no agent has written a status in {directory}: start it with `isthmus agent`, or say --state-dir",
            path=str(directory),
        ) from error
