"""What the agent answers its CNI plugin: pods are noted, a stray address is refused, STATUS is told.

Codes are those of the CNI specification 1.1.0 (`well-known error codes`): 11 try again later, 50 no pod can be
attached, 51 and those that run may be cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import msgspec

from nodeagent.pods.facts import PodFacts
from nodeagent.pods.plugin.requests import PluginRequest

AGAIN, NO_RANGE, NO_PACKETS = 11, 50, 51
NOT_OURS = 101
"""CHECK: a pod's address is of no range of this node. From 100 on codes are a plugin's own."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """This node now. ``own`` is its range or empty; the texts say why not, and are empty while all is well."""

    cidrs: tuple[str, ...] = ()
    own: str = ""
    no_range: str = ""
    no_packets: str = ""


class PluginAnswers:
    """Call it with a request."""

    def __init__(self, facts: PodFacts, standing: Callable[[], Standing]) -> None:
        self._facts, self._standing = facts, standing

    async def __call__(self, request: PluginRequest) -> tuple[int, bytes]:
        """The exit code and what is printed. Cancelled, a pod may be noted all the same."""
        standing = self._standing()
        match request.command:
            case "ADD":
                stray = _stray(standing, request.addresses)
                if stray:
                    return _failure(request, AGAIN, f"{stray}: the CNI file has just changed; try again")
                await self._begun(request)
            case "CHECK":
                stray = _stray(standing, request.addresses)
                if stray:
                    return _failure(
                        request, NOT_OURS, f"{stray}: it has to start anew: `isthmus agent end-pods --yes`"
                    )
                await self._begun(request)
            case "DEL":
                await self._facts.ended(request.container, request.interface)
            case "GC" if request.valid is not None:
                await self._facts.only(request.valid)
            case "STATUS":
                if standing.no_range:
                    return _failure(request, NO_RANGE, standing.no_range)
                if standing.no_packets:
                    return _failure(request, NO_PACKETS, standing.no_packets)
        return 0, b""

    async def _begun(self, request: PluginRequest) -> None:
        await self._facts.begun(request.pod, request.container, request.interface, request.addresses)


def _stray(standing: Standing, addresses: tuple[str, ...]) -> str:
    """Says which address is of the container network and not of this node's range; empty when none is."""
    networks = [IPv4Network(cidr) for cidr in standing.cidrs]
    for text in addresses:
        address = IPv4Address(text)
        home = standing.own and address in IPv4Network(standing.own)
        if not home and any(address in each for each in networks):
            return f"{text} is not of {standing.own or 'any range'}, the range of this node"
    return ""


def _failure(request: PluginRequest, code: int, text: str) -> tuple[int, bytes]:
    said = {"cniVersion": request.version, "code": code, "msg": f"isthmus: {text}"}
    return code, msgspec.json.encode(said) + b"\n"
