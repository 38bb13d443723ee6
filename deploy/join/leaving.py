"""The steps by which a node becomes a bare machine again: tell the cluster, take everything of ours away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from deploy.join import containers, files, host
from deploy.join.joining import FOLDER
from deploy.join.progress import Progress
from events.bus.connection import BusOptions, connect
from events.bus.enrolment import PENDING_KEY
from events.cli.config import load, read
from events.cli.options import default_actor
from events.errors import IsthmusError, Refused
from nodeagent import identity
from nodeagent.clean import clean
from nodeagent.cli import run_command
from nodeagent.config import DEFAULT_DEVICE, DEFAULT_STATE_DIR
from nodeagent.local_files import LocalStatus, running
from nodeagent.pods.addresses import Pods
from nodeagent.pods.leaving import is_elsewhere, last_word, pods_here
from nodeagent.pods.leaving import leave as leave_cluster

CREDENTIAL_FILES = ("agent.creds", "ca.pem", "join.creds", PENDING_KEY)


class LeaveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a leave. ``untold``: go on although the cluster cannot be told."""

    folder: Path = FOLDER
    state_dir: Path
    unit_folder: Path = host.SYSTEMD_UNITS
    sysctl_folder: Path = host.SYSCTLS
    reason: str = ""
    untold: bool = False


def settings(request: LeaveRequest) -> tuple[dict[str, object], LeaveRequest]:
    """What the join wrote down for the agent, empty when it is gone, and the request with its folder of state.

    Raises IsthmusError for settings that no agent would take; with ``untold`` what can be read of them counts.
    """
    config = request.folder / "agent.toml"
    there = host.current(config)
    if there is None:
        return {}, request
    if request.untold:
        values, _ = read(there, run_command)
    else:
        try:
            values = load(config, run_command)
        except IsthmusError as error:
            raise _all_the_same(error, request) from error
    if str(request.state_dir) == DEFAULT_STATE_DIR and values.get("state_dir"):
        request = msgspec.structs.replace(request, state_dir=Path(str(values["state_dir"])))
    return values, request


def _all_the_same(error: IsthmusError, request: LeaveRequest, more: str = "") -> IsthmusError:
    """The same error with the way to leave without a word to the cluster."""
    command = files.leave_command(request.folder, request.state_dir, "--untold")
    said = f"{error.message.rstrip()}. To leave all the same: `{command}`{more}"
    return type(error)(error.code, said, **error.details)


def running_pods(request: LeaveRequest) -> tuple[LocalStatus, Pods] | None:
    """The pods that run on this node, with its agent's last word; None when no agent has run here.

    Raises IsthmusError, OSError.
    """
    values, request = settings(request)
    try:
        status = _last_word(values, request)
    except Refused:
        if not request.untold:
            raise
        status = None
    if status is None:
        return None
    return status, pods_here(request.state_dir, status, _data_dir(values, status, request))


def _last_word(values: dict[str, object], request: LeaveRequest) -> LocalStatus | None:
    """Raises Refused(identity_unreadable, not_permitted)."""
    named = {name: str(values.get(name, "")) for name in ("node", "cluster")}
    return last_word(request.state_dir, **named, device=_device(values))


def _device(values: dict[str, object]) -> str:
    return str(values.get("device") or DEFAULT_DEVICE)


def _data_dir(values: dict[str, object], status: LocalStatus, request: LeaveRequest) -> Path:
    return Path(str(values.get("cni_data_dir") or status.pod_directory or request.state_dir / "pod-addresses"))


async def leave(request: LeaveRequest, progress: Progress) -> str:
    """All steps; the node's name. What is gone already is passed over, so that it can be repeated.

    Raises IsthmusError of the step that failed. Cancelled, the same command goes on from there.
    """
    host.require_root()
    with host.only_one(request.folder, make=False):
        return await _leave(request, progress)


async def _leave(request: LeaveRequest, progress: Progress) -> str:
    config = request.folder / "agent.toml"
    values, request = settings(request)
    node = str(values.get("node", ""))
    unit, kept = request.unit_folder / files.UNIT, request.folder / containers.FILE
    sysctl = request.sysctl_folder / host.SYSCTL_FILE
    with progress.step("service") as step:
        if host.systemd_runs() and host.current(unit) is not None:
            await host.system("systemctl", "disable", "--now", files.UNIT)
            step.done(f"{files.UNIT} stopped, and not started at boot")
        elif engine := containers.engine_in(host.current(kept)):
            ran = containers.installed(engine) and await containers.remove(engine)
            (step.done if ran else step.unchanged)(
                f"container {containers.NAME} {'stopped and removed' if ran else 'is not there'} ({engine})"
            )
        else:
            step.unchanged("no unit or container of a join is here")
        if running(request.state_dir):  # before the cluster is told: it would go on with rows of no member
            raise Refused(
                "agent_running",
                f"an agent runs with the state directory {request.state_dir}, and no unit or container of a "
                f"join runs it: stop it where it was started",
                path=str(request.state_dir),
            )
    fenced = False
    with progress.step("cluster") as step:
        try:
            status = _last_word(values, request)
            if status is None:
                step.unchanged("no agent has run here: the cluster knows nothing to forget")
            else:
                node = node or status.node
                if await _tell(values, status, request):
                    step.done(f"node {node} has left; {status.range or 'no range'} drains")
                else:
                    step.unchanged(f"node {node} is no member any more")
        except IsthmusError as error:
            fenced, live = error.code == "node_fenced", error.details.get("live_uid")
            if fenced:
                step.unchanged(f"node {node} was fenced")
            elif error.code == "node_unknown":
                step.unchanged(f"node {node} is another installation now (uid {live}); that one stays")
            elif error.code == "identity_twice" and request.untold:
                step.done(f"not told: node {node} goes on where the cluster has it")
            elif request.untold:
                remove = f"run `isthmus node remove {node or 'NODE'}` at the operator's desk"
                step.done(f"not told ({error.code}): {remove}")
            else:
                keeps = (
                    f"; the cluster keeps the range until somebody runs `isthmus node remove {node or 'NODE'}`"
                )
                raise _all_the_same(error, request, "" if error.code == "identity_twice" else keeps) from error
    with progress.step("kernel") as step:
        device = _device(values)
        cni = Path(str(values.get("cni_dir") or "/etc/cni/net.d"))
        removed = await clean(request.state_dir, cni, device)
        if fenced and identity.known_of(request.state_dir) is None:  # the agent had not heard of it
            identity.renew(request.state_dir)  # the machine's own uid can never join again
        (step.done if removed else step.unchanged)("; ".join(removed) or "nothing of ours was here")
    with progress.step("files") as step:
        gone = [str(path) for path in (unit, kept, sysctl, config) if host.remove(path)]
        for name in CREDENTIAL_FILES:
            path = request.folder / name
            if path.exists():
                path.unlink()
                gone.append(str(path))
            for half in request.folder.glob(f".{name}.*"):  # of a join that was killed as it wrote
                half.unlink()
        if host.systemd_runs() and str(unit) in gone:
            await host.system("systemctl", "daemon-reload")
        (step.done if gone else step.unchanged)(", ".join(gone) or "none were here")
    return node


async def _tell(values: dict[str, object], status: LocalStatus, request: LeaveRequest) -> bool:
    """Whether it was a member until now. Raises IsthmusError, OSError. Cancelled, it may have left."""
    data_dir = _data_dir(values, status, request)
    pods = await asyncio.to_thread(pods_here, request.state_dir, status, data_dir)
    cni_dir = Path(str(values.get("cni_dir") or "/etc/cni/net.d"))
    options = BusOptions(
        servers=tuple(str(values.get("bus") or "nats://127.0.0.1:4222").split(",")),
        credentials=str(values.get("creds") or ""),
        ca=str(values.get("ca") or ""),
    )
    client = await connect(options, name=f"isthmus-leave/{status.node}")
    try:
        return await leave_cluster(
            client,
            status,
            pods,
            reason=request.reason,
            cni_dir=cni_dir,
            actor=default_actor(),
            elsewhere=await asyncio.to_thread(is_elsewhere, request.state_dir, status),
        )
    finally:
        await client.close()
