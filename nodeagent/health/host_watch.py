"""Keeps the host's forwarding on, and says what draws new pods away from the overlay.

Looks every :data:`PERIOD_S`: one dump of the devices' settings and one directory. What it finds wrong it puts
right; what another program keeps setting back, or what cannot be written, becomes a condition that names it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from nodeagent.conditions import Conditions
from nodeagent.dataplane.fight_guard import FightGuard
from nodeagent.dataplane.host_settings import set_sysctl
from nodeagent.health import diagnosis, settings
from nodeagent.netlink import links
from nodeagent.pods import cni

log = logging.getLogger("isthmus.agent.host")

PERIOD_S = 2.0
IP_FORWARD = "net/ipv4/ip_forward"


class Host(msgspec.Struct, frozen=True):
    """What belongs to the overlay on this host: its devices by name, the own range, the CNI folder."""

    devices: tuple[str, ...]
    own_range: str
    cni_dir: Path


class HostWatch:
    """Run it. ``failing`` says whether pods of this node are, or will be, cut off by what it found."""

    def __init__(
        self,
        conditions: Conditions,
        *,
        host: Callable[[], Host | None],
        cni_kept: Callable[[], bool] = lambda: True,
        rewrite_cni: Callable[[], None] = lambda: None,
    ) -> None:
        """``host``: None while this node has no range.

        ``cni_kept``: whether our CNI file is as it was written; called from a worker thread, it may raise
        OSError. ``rewrite_cni`` writes it again.
        """
        self._conditions, self._host = conditions, host
        self._cni_kept, self._rewrite_cni = cni_kept, rewrite_cni
        self._changed: Callable[[], None] = lambda: None
        self.guard = FightGuard[str](free_repairs=3, window_s=10 * PERIOD_S)
        self.repairs = 0
        self.failing = False

    def notify(self, changed: Callable[[], None]) -> None:
        """Call this when what is known has changed."""
        self._changed = changed

    async def run(self) -> None:
        """Until cancelled. What it has set stays."""
        while True:
            host = self._host()
            before = (self.failing, self.repairs)
            found = ("", "", True, "")
            if host is not None:
                try:
                    found = await asyncio.to_thread(self._look, host)
                except OSError as error:
                    log.debug("the host's settings cannot be read: %s", error)
            forwarding, order, kept, connections = found
            contested = "" if host is None or kept else self._write_again(host.cni_dir)
            self._conditions.set("forwarding", forwarding)
            self._conditions.set("cni order", order)
            self._conditions.set("connections", connections)
            self._conditions.set("cni contested", contested)
            self.failing = bool(forwarding or order or contested)
            if (self.failing, self.repairs) != before:
                self._changed()
            await asyncio.sleep(PERIOD_S)

    def _write_again(self, folder: Path) -> str:
        """The CNI file is not as it was written; a sentence when that happens again and again."""
        if self.guard.allow(cni.FILE_NAME, time.monotonic()):
            self._rewrite_cni()
        if not self.guard.contested(cni.FILE_NAME, time.monotonic()) or self._conditions.has("cni"):
            return ""  # not again and again, or it cannot be written at all
        return (
            f"{folder / cni.FILE_NAME} is removed or changed again and again by another program: "
            "no new pod starts on this network meanwhile"
        )

    def _look(self, host: Host) -> tuple[str, str, bool, str]:
        """In a worker thread: what to say of forwarding, of the CNI folder, whether our file is kept, and
        what to say of the table of connections.

        Raises OSError.
        """
        forwarding, connections = self._forwarding(host), settings.full_of_connections()
        try:
            order, kept = diagnosis.cni_before(host.cni_dir, cni.FILE_NAME), self._cni_kept()
        except FileNotFoundError:
            return forwarding, "", False, connections
        return forwarding, order, kept, connections

    def _forwarding(self, host: Host) -> str:
        found = settings.forwarding()
        if not found.get(settings.ALL, True):
            text = self._set(IP_FORWARD, "pods of this node are cut off")
            if text:
                return text
            found = settings.forwarding()
        off = [index for index, on in found.items() if not on and index != settings.ALL]
        if not off:
            return ""
        texts = []
        if settings.DEFAULT in off:
            texts.append(self._set("net/ipv4/conf/default/forwarding", "new pods will be cut off"))
        ours = {name: index for name in host.devices if (index := _index(name)) in off}
        ours |= links.devices_towards(host.own_range, {index for index in off if index > 0})
        texts += [
            self._set(f"net/ipv4/conf/{name.replace('.', '/')}/forwarding", "its packets are dropped")
            for name in sorted(ours)
        ]
        return "; ".join(text for text in texts if text)

    def _set(self, name: str, harm: str) -> str:
        """Switch it on; a sentence when it cannot be, or will not stay."""
        dotted = name.replace("/", ".")
        files = diagnosis.sysctl_files(dotted, "0")
        who = f" ({', '.join(files)} says so)" if files else ""
        if not self.guard.allow(name, time.monotonic()):
            return f"{dotted} is set to 0 again and again by another program{who}: {harm} meanwhile"
        try:
            set_sysctl(name, "1")
        except OSError as error:
            return (
                f"{dotted} is 0{who} and cannot be written here ({error.strerror}): {harm}. "
                f"On the host: sysctl -w {dotted}=1"
            )
        self.repairs += 1
        log.warning("%s was 0%s and is 1 again", dotted, who)
        if self.guard.contested(name, time.monotonic()):
            return f"{dotted} is set to 0 again and again by another program{who}: {harm} meanwhile"
        return ""


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0
