"""The steps by which a bare machine becomes a node. Each may be repeated; none leaves anything half.

Order: everything that can refuse comes before anything is written; the token is used once all checks have
passed; the unit is started last. What has been done already is found and left as it is, so that the same
command goes on after a failure, a Ctrl-C or a reboot.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from deploy.join import containers, earlier, files, host, peers
from deploy.join.progress import Progress, Step
from events.bus.access import creds
from events.bus.connection import BusOptions
from events.bus.enrolment import RENEW_TAG, JoinToken, read_token, redeem
from events.bus.names import fits, numbered
from events.cli.config import read, refuse
from events.errors import IsthmusError, Refused, Unavailable
from nodeagent.cli import run_command
from nodeagent.config import DEFAULT_DEVICE, DEFAULT_STATE_DIR
from nodeagent.doctor import ExaminedNode, examine
from nodeagent.local_files import LocalStatus, read_status, running
from nodeagent.membership.cache import Cache
from nodeagent.membership.values import first_address
from nodeagent.pods import chain

READY_LIMIT_S = 60.0
PEERS_LIMIT_S = 20.0
"""How long peers that are silent are asked again."""
LOOK_S = 0.5
RESTARTS_LIMIT = 3
"""Ends of a just started agent after which its own words are shown instead of waiting on."""
FOLDER = files.FOLDER


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a join. Empty ``kind`` and ``site`` are the token's."""

    token: str
    node: str = ""
    kind: str = ""
    site: str = ""
    underlay: str = "auto"
    nat: str = ""
    """Whether the node is behind NAT: auto, on or off; empty: as before, or auto."""
    folder: Path = FOLDER
    state_dir: Path
    unit_folder: Path = host.SYSTEMD_UNITS
    sysctl_folder: Path = host.SYSCTLS
    foreground: bool = False
    """No unit, no account: the caller runs the agent itself with the file written here."""
    container: bool = False
    """A container instead of a unit and an account."""
    engine: str = ""
    """Which program runs containers [what is found]."""
    image: str = containers.IMAGE
    dry_run: bool = False


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. ``peers`` were asked, ``silent`` of them did not answer (their VTEP addresses)."""

    node: str
    cluster: str
    range: str = ""
    peers: int = 0
    silent: tuple[str, ...] = ()
    config: str


async def join(request: JoinRequest, progress: Progress) -> Joined:
    """All steps. Raises IsthmusError of the step that failed; ``progress`` has every step until then.

    Cancelled, it leaves whole files: the same command goes on from there, ``isthmus leave`` undoes it.
    """
    if request.dry_run:
        return await _join(request, progress)
    with host.only_one(request.folder, make=True):
        return await _join(request, progress)


async def _join(request: JoinRequest, progress: Progress) -> Joined:
    config = request.folder / "agent.toml"
    with progress.step("token") as step:
        token = _token(request)
        _same_node(request, config, token)
        by_hand = earlier.settings_by_hand(config)
        request = _going_on(request, by_hand)
        name = token.node if not numbered(token.names) or _known(request, token) else f"named {token.names}"
        step.done(f"node {name} of cluster {token.cluster}, bus {', '.join(token.servers)}")
    command: Sequence[str] = ()
    with progress.step("machine") as step:
        _same_keeper(request)
        if request.container:
            engine = await _engine(request)
            command = containers.command(engine, request.image, config, request.state_dir)
        elif not request.foreground:
            if not host.systemd_runs():
                raise Refused(
                    "prerequisite_missing",
                    "systemd is not this machine's init, so no unit can run the agent: `isthmus join "
                    "--container` runs it as a container, `isthmus join --foreground` here and now, under "
                    "whatever starts programs on this machine",
                )
            command = host.executable()
            earlier.require_agents_unit(request.unit_folder / files.UNIT)
        await _examine(request, token, step)
    held = request.folder / "agent.creds"
    with progress.step("credentials") as step:
        token, options = await _credentials(request, token, held, step)
    text = files.settings(
        token,
        credentials=options.credentials,
        ca=options.ca,
        kind=request.kind or token.kind or str(by_hand.get("kind", "cloud")),
        site=request.site or token.site or str(by_hand.get("site", "")),
        underlay=request.underlay,
        nat=request.nat or str(by_hand.get("nat", "auto")),
        state_dir=request.state_dir,
        kept=by_hand,
    )
    with progress.step("configuration") as step:
        if not request.dry_run:  # which has made no credentials to name
            _check(text, config)
        _put(request, step, config, text, mode=0o644)
    if request.container:
        await _container(request, progress, command, config)
    elif not request.foreground:
        await _service(request, progress, command, config)
    joined = Joined(node=token.node, cluster=token.cluster, config=str(config))
    return joined if request.foreground or request.dry_run else await at_work(request, joined, progress)


async def at_work(
    request: JoinRequest, joined: Joined, progress: Progress, runs: Callable[[], bool] = lambda: True
) -> Joined:
    """The last steps, once the agent was started: it is ready, and which peers answer.

    ``runs``: whether the process still does that is to become ready; of a unit or a container they are asked
    instead. Raises Unavailable(agent_not_ready). Cancelled, it leaves nothing behind.
    """
    with progress.step("agent") as step:
        status = await _ready(request, joined.node, runs)
        if request.container:
            host.without_ipv6(DEFAULT_DEVICE)
        step.done(f"{status.range}, {status.peers} peers, event {status.applied}", *status.conditions)
    with progress.step("peers") as step:
        asked, missing = await _ask_peers(request, status)
        step.done(f"{len(asked) - len(missing)} of {len(asked)} answer through the tunnel", *missing)
    return msgspec.structs.replace(joined, range=status.range, peers=len(asked), silent=tuple(missing))


def _token(request: JoinRequest) -> JoinToken:
    """The token, or what was made of it at an earlier try: an expired one is good as long as that lives.

    One for several machines has the name that this machine has by it already, or the one that it would ask for.
    """
    token = read_token(request.token, accept_expired=True)
    for what, allowed, asked in (("kind", token.kind, request.kind), ("site", token.site, request.site)):
        if allowed and asked and asked != allowed:
            raise Refused(
                "token_limits",
                f"the join token is for {what} {allowed!r}, and --{what} says {asked!r}: leave it out, or "
                f"ask for another token",
            )
    known = _known(request, token)
    wanted = request.node or known
    if request.node and request.node != known and numbered(token.names):
        raise Refused(
            "token_invalid",
            f"the join token gives names like {token.names!r} with the next free number, so this machine "
            f"cannot be {request.node!r} by it: leave --node out",
            node=request.node,
        )
    return token.for_node(socket.gethostname().lower(), wanted)


def _known(request: JoinRequest, token: JoinToken) -> str:
    """The name that this machine has by that token for several machines already; empty if none."""
    held = _held(request.folder, token)
    return held.name if held is not None and token.names and fits(token.names, held.name) else ""


def _held(folder: Path, token: JoinToken) -> creds.Credentials | None:
    """Good credentials that are here already, of the token's cluster on the token's bus."""
    try:
        known = creds.load(folder / "agent.creds")
    except IsthmusError:
        return None
    renewed_at = known.tag(RENEW_TAG).split(".")
    elsewhere = len(renewed_at) > 1 and renewed_at[1] != token.cluster
    ca = host.current(folder / "ca.pem")
    over = known.expires is not None and known.expires <= datetime.now(UTC)
    if elsewhere or over or (token.ca and ca is not None and ca.strip() != token.ca.strip()):
        return None
    return known


def _same_node(request: JoinRequest, config: Path, token: JoinToken) -> None:
    """Raises Refused(machine_is_a_node) before the token is used, if the settings here are another node's."""
    found = earlier.identity(config)
    if found is not None and (found.node, found.cluster) != (token.node, token.cluster):
        raise Refused(
            "machine_is_a_node",
            f"this machine is node {found.node!r} of cluster {found.cluster!r} ({config}), the token is for "
            f"node {token.node!r} of cluster {token.cluster!r}: "
            f"`{files.leave_command(request.folder, request.state_dir)}` first, the token stays good",
            node=found.node,
            cluster=found.cluster,
        )


def _going_on(request: JoinRequest, by_hand: Mapping[str, Any]) -> JoinRequest:
    """Where settings by hand say where state is kept and which device the tunnel uses, that goes on."""
    if str(request.state_dir) == DEFAULT_STATE_DIR and "state-dir" in by_hand:
        request = msgspec.structs.replace(request, state_dir=Path(str(by_hand["state-dir"])))
    if request.underlay == "auto" and "underlay" in by_hand:
        request = msgspec.structs.replace(request, underlay=str(by_hand["underlay"]))
    return request


def _same_keeper(request: JoinRequest) -> None:
    """Raises Refused(machine_is_a_node) when a unit runs the agent here and a container is asked for, or so."""
    unit = host.current(request.unit_folder / files.UNIT) is not None
    kept = containers.engine_in(host.current(request.folder / containers.FILE))
    if (request.container and unit) or (kept and not request.container):
        by = f"{kept}, as a container" if kept else f"the unit {files.UNIT}"
        raise Refused(
            "machine_is_a_node",
            f"the agent of this machine is run by {by}: say it {'with' if kept else 'without'} --container, or "
            f"`{files.leave_command(request.folder, request.state_dir)}` first",
        )


async def _engine(request: JoinRequest) -> str:
    """The engine, with the image at hand. A dry run on another machine only names what is wanted."""
    if request.dry_run and request.engine:
        return request.engine
    engine = await containers.engine(request.engine)
    if not request.dry_run:
        await containers.have(engine, request.image)
    return engine


async def _examine(request: JoinRequest, token: JoinToken, step: Step) -> None:
    """The doctor's checks of the machine; without the bus, which wants credentials."""
    node = ExaminedNode(
        cluster=token.cluster,
        bus=BusOptions(servers=token.servers),
        state_dir=request.state_dir,
        underlay=request.underlay,
    )
    findings = await examine(node, bus=False)
    problems = [finding for finding in findings if finding.level == "problem"]
    # What a running agent meets is no reason against starting one, and shall not keep a repeated join from it.
    if problems and not request.dry_run and not running(request.state_dir):
        raise Refused(
            "prerequisite_missing",
            "; ".join(f"{finding.text}{f' → {finding.fix}' if finding.fix else ''}" for finding in problems),
            findings=[msgspec.to_builtins(finding) for finding in problems],
        )
    warnings = [f"{finding.text}{f' → {finding.fix}' if finding.fix else ''}"
                for finding in findings if finding.level in {"warning", "problem"}]  # fmt: skip
    step.done(f"{len(findings)} checks, {len(warnings)} to look at", *warnings)


async def _credentials(
    request: JoinRequest, token: JoinToken, held: Path, step: Step
) -> tuple[JoinToken, BusOptions]:
    """Credentials of this node: those that are here already, or the token redeemed; with its name."""
    ca = request.folder / "ca.pem"
    options = BusOptions(
        servers=token.servers,
        credentials=str(held) if token.jwt else "",
        ca=str(ca) if token.ca else "",
    )
    if not token.jwt:
        step.unchanged("this bus asks for none")
        return token, options
    known = _held(request.folder, token)
    if known is not None and known.name == token.node:
        until = f"until {known.expires:%Y-%m-%d}" if known.expires else "without an end"
        step.unchanged(f"{held} is there, good {until}")
        return token, options
    if request.dry_run:
        read_token(request.token)  # one that has ended is good no more
        guessed = (
            f"; the issuer gives the number, {token.node} stands for it here" if numbered(token.names) else ""
        )
        step.planned(f"redeem the token into {held}; the key is made here{guessed}")
        return token, options
    request.folder.mkdir(parents=True, exist_ok=True, mode=0o770)
    given, options = await redeem(
        request.token, request.folder, node=request.node if token.names else token.node
    )
    named = f"node {given.node}: " if token.names else ""
    step.done(f"{named}{held}, the key was made here")
    return given, options


def _check(text: str, path: Path) -> None:
    """Raises Usage(config_invalid) when the agent would not take its settings: before they are written."""
    _, faults = read(text, run_command)
    if faults:
        raise refuse(faults, str(path))


async def _service(request: JoinRequest, progress: Progress, command: Sequence[str], config: Path) -> None:
    with progress.step("account") as step:
        if request.dry_run:
            step.planned("account isthmus, folders /etc/isthmus and /etc/cni/net.d")
        else:
            await host.make_account()
            step.done("account isthmus and its folders")
    with progress.step("service") as step:
        path = request.unit_folder / files.UNIT
        changed = _put(request, step, path, files.unit(command, config))
        if request.dry_run:
            return
        if changed:
            await host.system("systemctl", "daemon-reload")
        if (
            not changed
            and not _began_before(request, config, path)
            and await host.unit_is("active", files.UNIT)
            and await host.unit_is("enabled", files.UNIT)
        ):
            step.unchanged(f"{files.UNIT} runs")
            return
        await host.system("systemctl", "enable", files.UNIT)
        await host.start_afresh(files.UNIT)
        step.done(f"{files.UNIT} started, and at every boot")


async def _container(request: JoinRequest, progress: Progress, command: Sequence[str], config: Path) -> None:
    with progress.step("container") as step:
        kept = request.folder / containers.FILE
        changed = _put(request, step, kept, containers.text(command), mode=0o600)
        if request.dry_run:
            step.planned("start the agent by this command", shlex.join(command))
            return
        if not changed and not _began_before(request, config, kept) and await containers.runs(command[0]):
            step.unchanged(f"container {containers.NAME} runs ({command[0]})")
            return
        host.own(request.folder, request.state_dir)
        host.forward(request.sysctl_folder / host.SYSCTL_FILE)
        with contextlib.suppress(OSError):  # without our plugin pods are not known by name; the doctor says so
            chain.install(chain.DIRECTORIES)
        await containers.start(command, (request.folder, request.state_dir))
        step.done(f"container {containers.NAME} started by {command[0]} from {request.image}")


def _began_before(request: JoinRequest, *written: Path) -> bool:
    """Whether the agent that runs began before those files were written: a join may have been broken off."""
    try:
        began = read_status(request.state_dir).started_at
    except IsthmusError:
        return True  # none has said anything
    return any(path.stat().st_mtime > began for path in written)


def _put(request: JoinRequest, step: Step, path: Path, text: str, *, mode: int = 0o644) -> bool:
    """Write a file, or say what would change; whether it changed."""
    there = host.current(path)
    if request.dry_run:
        step.planned(f"write {path}" if there != text else f"{path} stays", *host.differing(there, text))
        return False
    changed = host.write(path, text, mode=mode, keep_as=earlier.SUFFIX)
    (step.done if changed else step.unchanged)(str(path))
    return changed


async def _ready(request: JoinRequest, node: str, runs: Callable[[], bool]) -> LocalStatus:
    """Wait until the agent has its range and manages its rows. Raises Unavailable(agent_not_ready)."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_LIMIT_S
    last = "it has written no status yet"
    while loop.time() < deadline:
        if not request.foreground:
            await _raise_when_it_keeps_ending(request, node)
        if not runs():
            raise Unavailable("agent_not_ready", f"the agent of {node} ended before it was ready", node=node)
        try:
            status = read_status(request.state_dir)
        except IsthmusError as error:
            last = error.message
        else:
            if status.node == node and status.range and status.state == "ready" and running(request.state_dir):
                return status
            last = "; ".join(status.conditions) or f"its state is {status.state!r}"
        await asyncio.sleep(LOOK_S)
    look = "" if request.foreground else f" and `{_log_command(request)}`; the same command goes on from here"
    raise Unavailable(
        "agent_not_ready",
        f"the agent of {node} was started and is not ready after {READY_LIMIT_S:.0f} s: {last}. Look with "
        f"`{_status_command(request)}`{look}",
        node=node,
    )


def _status_command(request: JoinRequest) -> str:
    folder = () if str(request.state_dir) == DEFAULT_STATE_DIR else ("--state-dir", str(request.state_dir))
    return shlex.join(["isthmus", "agent", "status", *folder])


def _log_command(request: JoinRequest) -> str:
    engine = containers.engine_in(host.current(request.folder / containers.FILE))
    return f"{engine} logs {containers.NAME}" if engine else f"journalctl -u {files.UNIT}"


async def _raise_when_it_keeps_ending(request: JoinRequest, node: str) -> None:
    """Raises Unavailable(agent_not_ready) with the agent's own last words: no waiting helps it."""
    engine = containers.engine_in(host.current(request.folder / containers.FILE))
    again = await (containers.restarts(engine) if engine else host.restarts(files.UNIT))
    if again >= RESTARTS_LIMIT:
        words = await (containers.last_words(engine) if engine else host.last_words(files.UNIT))
        raise Unavailable(
            "agent_not_ready",
            f"the agent of {node} ends again and again. Its last words: {words}. Once that is mended, the same "
            f"command goes on from here",
            node=node,
        )


async def _ask_peers(request: JoinRequest, status: LocalStatus) -> tuple[list[str], list[str]]:
    """The VTEP addresses of all peers in the agent's cache, and those that did not answer.

    A way through NAT, or by a relay, is found some seconds after the node is known: who is silent is asked
    again.
    """
    view = Cache(request.state_dir).load(status.cluster, status.node, status.uid)
    asked = missing = [first_address(peer.cidr) for peer in view.peers]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PEERS_LIMIT_S
    while missing:
        missing = await peers.silent(first_address(status.range), missing)
        if loop.time() >= deadline:
            break
    return asked, missing
