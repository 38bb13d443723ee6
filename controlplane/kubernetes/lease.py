"""Which of several bridges beside the controllers works: a ``coordination.k8s.io/v1 Lease``, as in client-go.

Every write of it carries the version that was read, so that of two who take it at once one is refused. Whoever
waits watches its version by a clock of its own that runs on while the process stands still: one that was not
renewed for its lifetime is nobody's, whatever wall clocks say. The holder's term is shorter than that lifetime
and counts from before the renewal was asked for.

It only keeps two from working at once. A holder that was paused and wakes up is kept from writing by its term,
and by the version of the Node that each of its patches names (:mod:`controlplane.kubernetes.bridge`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from controlplane.controller.leadership.term import Term, running_s
from events.bus.retry import jittered_s
from events.errors import Refused, Unavailable

log = logging.getLogger("isthmus.kubernetes")

LEASE_S, TERM_S, RENEW_S = 10.0, 8.0, 2.0
"""Lifetime for those who wait, for the holder itself, and how often it is renewed or looked at: a takeover
after SIGKILL takes at most the first and the last together."""
LEASE_LONGEST_S = 60.0
"""What another holder may say of its own lifetime."""
NAME = "isthmus-bridge"


class Objects(Protocol):
    """What is needed of the API server (:class:`controlplane.kubernetes.api.KubernetesClient`)."""

    async def read(self, path: str) -> dict[str, Any] | None:
        """Any object; None when there is none. Raises Unavailable, Refused. Cancelled, nothing is left."""
        ...

    async def create(self, path: str, thing: Mapping[str, Any]) -> bool:
        """Create an object; False when it is there. Raises Unavailable, Refused. Cancelled, it may be there."""
        ...

    async def replace(self, path: str, thing: Mapping[str, Any]) -> dict[str, Any] | None:
        """Replace an object of the version that it names; None when that is another one by now.

        Raises Unavailable, Refused. Cancelled, it may be replaced.
        """
        ...


class KubernetesLease:
    """:meth:`run` until cancelled. ``holder`` is this process's own name, which no other has."""

    def __init__(
        self,
        api: Objects,
        namespace: str,
        holder: str,
        *,
        clock: Callable[[], float] = running_s,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._list = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self.holder = holder
        self._clock = clock
        self._now = now
        self._term: Term | None = None
        self._seen = ("", 0.0)
        """The version that another holds, and since when at least."""
        self.other = ""
        """Who holds it otherwise, as last read."""
        self.problem = ""
        """What keeps it from being held, in words; empty while nothing does."""

    @property
    def held(self) -> bool:
        """Whether this process may work now."""
        return self._term is not None and self._term.valid

    async def run(self) -> None:
        """Take it when it is free, and renew it, for ever. Cancelled, it is given up."""
        try:
            while True:
                before = self.held
                try:
                    await self.step()
                    self.problem = ""
                except (Unavailable, Refused) as error:
                    if self.problem != error.message:
                        log.warning("the Lease %s: %s [%s]", NAME, error.message, error.code)
                    self.problem = error.message
                if self.held != before:
                    log.info("bridge %s %s", self.holder, "works" if self.held else "works no longer")
                await asyncio.sleep(jittered_s(RENEW_S, 0.1))
        finally:
            with suppress(Unavailable, Refused, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.release()

    async def step(self) -> None:
        """Look, and take or renew it if that is right. Raises Unavailable, Refused.

        Cancelled, it may be held: it runs out by itself.
        """
        asked_s = self._clock()
        found = await self._api.read(f"{self._list}/{NAME}")
        if found is None:
            if not await self._api.create(self._list, self._lease({}, {})):
                return
            self._begin(asked_s)
            return
        spec = found.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        if holder == self.holder:
            if await self._api.replace(f"{self._list}/{NAME}", self._lease(found, spec)) is not None:
                self._begin(asked_s)
            return
        self._lost()
        self.other = holder
        if holder and not self._unrenewed(found, spec):
            return
        if await self._api.replace(f"{self._list}/{NAME}", self._lease(found, spec)) is not None:
            self._begin(asked_s)

    async def release(self) -> None:
        """Give it up, if it is held. Raises Unavailable, Refused. Cancelled, it runs out by itself."""
        if self._term is None:
            return
        self._lost()
        found = await self._api.read(f"{self._list}/{NAME}")
        if found is not None and (found.get("spec") or {}).get("holderIdentity") == self.holder:
            free = {**found["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._api.replace(f"{self._list}/{NAME}", {**found, "spec": free})

    def _unrenewed(self, found: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
        """Whether it has outlived its holder's word, by our clock from when we first saw this version."""
        version, now_s = str(found["metadata"].get("resourceVersion", "")), self._clock()
        if version != self._seen[0]:
            self._seen = version, now_s
        said = spec.get("leaseDurationSeconds")
        lives_s = min(float(said), LEASE_LONGEST_S) if isinstance(said, int) else LEASE_S
        return now_s - self._seen[1] >= max(lives_s, 1.0)

    def _begin(self, asked_s: float) -> None:
        until_s = asked_s + TERM_S
        if self._term is None or not self._term.valid:
            self._term = Term(until_s, clock=self._clock)
        else:
            self._term.extend(until_s)

    def _lost(self) -> None:
        if self._term is not None:
            self._term.end()
        self._term = None

    def _lease(self, found: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """The object with this process as its holder; its version is the condition."""
        moment = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        renewed = {**spec, "holderIdentity": self.holder, "leaseDurationSeconds": int(LEASE_S),
                   "renewTime": moment}  # fmt: skip
        if spec.get("holderIdentity") != self.holder:
            changes = spec.get("leaseTransitions")
            renewed |= {
                "acquireTime": moment,
                "leaseTransitions": (changes if isinstance(changes, int) else -1) + 1,
            }
        meta = found.get("metadata") or {"name": NAME, "namespace": self._namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": renewed}
