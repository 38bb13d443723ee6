"""Whether this node can hold addresses, which its agent says to the controller and to people."""

from __future__ import annotations

import time
from collections.abc import Callable

from nodeagent.config import AgentConfig
from nodeagent.dataplane.underlay import Underlay

FAILURES = 2
"""Failures in a row after which this node says that it cannot be a gateway, so that another one is chosen."""

UNABLE_REST_S = 60.0
"""How long it says so after the last failure: gateways that all fail must not pass an address around."""


class GatewayReadiness:
    """What speaks against it. ``carrier`` is whether the underlay link's cable is in, as it was last seen."""

    def __init__(self, config: AgentConfig, link: Callable[[], Underlay | None]) -> None:
        self._config = config
        self._link = link
        self._failures = 0
        self._failed_at = float("-inf")
        self.carrier = True

    def failed(self) -> None:
        """Something that a gateway has to do was refused by the kernel."""
        self._failures += 1
        self._failed_at = time.monotonic()

    def succeeded(self) -> None:
        """Everything was done; old failures are forgotten when their rest is over."""
        if not self._rests():
            self._failures = 0

    def not_ready_reason(self) -> str:
        """Why addresses given to this node would not be held; empty when they would."""
        if not self._config.gateway:
            return "the agent runs without --gateway"
        underlay = self._link()
        if underlay is None or not underlay.present or not self.carrier:
            return "the underlay link is down"
        if self._rests():
            return f"it failed {self._failures} times, and says so for {UNABLE_REST_S:.0f} s"
        return ""

    def status_line(self, *, marked: bool) -> str:
        """This node's part in one line, for its status; empty where gateways do not matter."""
        if not self._config.gateway:
            return "marked, but the agent runs without --gateway" if marked else ""
        reason = self.not_ready_reason()
        if reason:
            return f"UNABLE: {reason}"
        return "ready" if marked else f"not marked yet: isthmus clb gateway add {self._config.node}"

    def _rests(self) -> bool:
        return self._failures >= FAILURES and time.monotonic() - self._failed_at < UNABLE_REST_S
