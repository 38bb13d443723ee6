"""What the doctor says of ways through NAT on this node."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from nodeagent import privileges
from nodeagent.dataplane import preflight
from nodeagent.dataplane.second_device import second_name, second_vni
from nodeagent.health.findings import Finding
from nodeagent.netlink import links


def findings(device: str, vni: int, port: int, said: str) -> Iterator[Finding]:
    """``said``: what the agent last said of this node being behind NAT; empty when it is not. Raises
    OSError."""
    second, number = second_name(device), second_vni(vni)
    for link in preflight.vxlan_conflicts(links.links(), second, number, port):
        if link.name != device:
            yield Finding(
                "nat",
                "warning",
                f"device {link.name} holds vni {link.vni} on UDP port {port}: ours for NAT cannot be up",
                f"ip link del {shlex.quote(link.name)}, or define the cluster with another VNI",
            )
            return
    if said:
        yield Finding("nat", "ok", f"behind NAT, {said}")
    elif not privileges.effective() >> privileges.CAP_NET_RAW & 1:
        yield Finding(
            "nat",
            "info",
            "CAP_NET_RAW is missing: an agent that is started like this finds no ways through NAT",
            "run as root, or by the shipped systemd unit",
        )
    else:
        yield Finding("nat", "ok", "not behind NAT, as far as is known here")
