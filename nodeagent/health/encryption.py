"""What the doctor says of encryption on this node: whether it can, and whether its ports are free."""

from __future__ import annotations

from collections.abc import Iterator

from events.protocol.encryption import WIREGUARD_PORT, WIREGUARD_PORTS
from nodeagent.health.findings import Finding, Level
from nodeagent.membership.view import View
from nodeagent.wireguard import ports
from nodeagent.wireguard.start import choose

CURE = "modprobe wireguard, or apt-get install wireguard-go"


def findings(device: str, view: View | None) -> Iterator[Finding]:
    """``device``: the tunnel's; ``view``: what the agent last knew, None where none has run. Raises OSError."""
    encrypts = view is not None and not view.encryption.off
    kind, why_not = choose("auto")
    if kind is None:
        if encrypts:
            said = f"the cluster encrypts, and this node cannot: {why_not}; nothing is sent in the clear"
            yield Finding("wireguard", "problem", f"{said} instead", CURE)
        else:
            yield Finding("wireguard", "info", f"cannot encrypt: {why_not}", CURE)
        return
    member = view.members.get(view.node) if view is not None else None
    first = member.port if member is not None and member.port else WIREGUARD_PORT
    needed = f"UDP ports {first} to {first + WIREGUARD_PORTS - 1}"
    strangers = ports.strangers(first, device)
    if not strangers:
        yield Finding("wireguard", "ok", f"can encrypt ({kind.kind}), {needed} are free for it")
        return
    level: Level = "problem" if encrypts else "warning"
    to_what = "" if encrypts else " when the cluster encrypts"
    said = f"{ports.in_words(strangers)}: WireGuard needs {needed}{to_what}"
    yield Finding("wireguard", level, said, ports.way_out())
