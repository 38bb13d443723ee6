"""Which pod has which address here, from when to when: told by the CNI plugin, and found on the host.

Kept in one file, so that a restart forgets neither a pod nor what is still to be reported. What the plugin
could not tell, because the agent was away, is found at the next look: a lease of host-local with a pod behind
it begins a fact, and a fact without its lease, or without a pod for a while, ends. Names of pods that nobody
told come from what the runtime keeps for its own plugins (libcni's cache).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from events.errors import BadRequest
from events.input_files import read_regular
from events.protocol.pods import CONTAINER, INTERFACE, PodFact, PodName
from nodeagent.local_files import write_atomically

log = logging.getLogger("isthmus.agent.pods")

FILE = "pods.json"
FACTS_MAX = 4096
"""Pods that are known at a time; further ones are not told of."""
UNSENT_MAX = 4096
"""Facts that wait for the bus; the oldest give way, and are counted."""
BEING_ATTACHED_S = 10.0
"""How young a lease may be without the plugin having told of its pod."""
WITHOUT_POD_S = 60.0
"""How long a fact stands whose address no pod is seen to have (as :data:`nodeagent.pods.addresses.YOUNG_S`)."""
LEASE_LIMIT_BYTES, CACHE_LIMIT_BYTES = 1024, 1 << 20
RESULTS = Path("/var/lib/cni/results")
"""Where libcni remembers what it attached."""


class Lease(msgspec.Struct, frozen=True):
    """Who holds an address by host-local's file, and since when."""

    container: str
    interface: str
    since: datetime


class Kept(msgspec.Struct, kw_only=True):
    """The file. ``open`` are pods that are there, ``unsent`` facts that no controller has taken yet."""

    open: list[PodFact] = []
    unsent: list[PodFact] = []
    dropped: int = 0


def leases(directory: Path) -> dict[str, Lease]:
    """In a worker thread: host-local's leases by address, of one network's folder. Raises OSError."""
    found: dict[str, Lease] = {}
    try:
        entries = list(directory.iterdir())
    except FileNotFoundError:
        return found
    for path in entries:
        if path.name[:1].isdigit():  # the rest is host-local's lock and marks
            try:
                IPv4Address(path.name)
                text = read_regular(path, limit=LEASE_LIMIT_BYTES).decode("ascii", "replace")
                since = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            except (OSError, ValueError, OverflowError):
                continue  # it has just ended, or is none
            container, _, interface = text.replace("\r", "").partition("\n")
            if CONTAINER.fullmatch(container) and INTERFACE.fullmatch(interface.strip() or "eth0"):
                found[path.name] = Lease(container, interface.strip() or "eth0", since)
    return found


def remembered_pod(results: Path, network: str, lease: Lease) -> PodName:
    """In a worker thread: the pod of a lease as libcni's cache names it; without a name when it does not."""
    try:
        path = results / f"{network}-{lease.container}-{lease.interface}"
        known = msgspec.json.decode(read_regular(path, limit=CACHE_LIMIT_BYTES))
        pairs = {str(key): value for key, value in known.get("cniArgs") or ()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return PodName()
    return PodName.of({name: pairs.get(f"K8S_POD_{name.upper()}") for name in ("namespace", "name", "uid")})


class PodFacts:
    """The book. ``epoch_of`` gives the epoch of the range that an address is of, 0 for one that is not ours."""

    def __init__(self, state_dir: Path, *, enabled: bool, epoch_of: Callable[[str], int]) -> None:
        self._path, self.enabled, self._epoch_of = state_dir / FILE, enabled, epoch_of
        self._open: dict[tuple[str, str, str], PodFact] = {}
        self._unsent: list[PodFact] = []
        self.dropped = 0
        """Facts that gave way before a controller took them."""
        self._writing = asyncio.Lock()
        self.changed = asyncio.Event()
        """Set when there is something to report."""

    def load(self) -> None:
        """Take up what an earlier life knew; nothing of a file that makes no sense. Switched off: forget it."""
        try:
            if not self.enabled:
                self._path.unlink(missing_ok=True)
                return
            kept = msgspec.json.decode(read_regular(self._path), type=Kept)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest) as error:
            log.warning("what was known of pods cannot be read, and is found anew: %s", error)
            return
        self._open = {fact.key: fact for fact in kept.open[:FACTS_MAX]}
        self._unsent, self.dropped = kept.unsent[-UNSENT_MAX:], kept.dropped
        if self._unsent:
            self.changed.set()

    @property
    def present(self) -> tuple[PodFact, ...]:
        """The pods that are there, as far as known."""
        return tuple(self._open.values())

    @property
    def unsent(self) -> tuple[PodFact, ...]:
        """What no controller has taken yet, oldest first."""
        return tuple(self._unsent)

    async def begun(self, pod: PodName, container: str, interface: str, addresses: Collection[str]) -> None:
        """The runtime says that a pod has these addresses. Cancelled, it may be known and not yet on disk."""
        now = datetime.now(UTC)
        changed = False
        for address in addresses:
            epoch = self._epoch_of(address)
            known = self._open.get((container, interface, address))
            if not self.enabled or not epoch:
                continue
            if known is None:
                fact = PodFact(
                    address=address, container=container, interface=interface, epoch=epoch, since=now, pod=pod
                )
            elif pod in {PodName(), known.pod}:
                continue
            else:  # it was found before its name was told
                fact = msgspec.structs.replace(known, pod=pod)
            changed |= self._begin(fact, now)
        if changed:
            await self._save()

    async def ended(self, container: str, interface: str) -> None:
        """The runtime says that an attachment is over. Cancelled, as :meth:`begun`."""
        now = datetime.now(UTC)
        over = [
            fact for fact in self._open.values() if (fact.container, fact.interface) == (container, interface)
        ]
        for fact in over:
            self._end(fact, now, told=True)
        if over:
            await self._save()

    async def only(self, valid: Collection[tuple[str, str]]) -> None:
        """The runtime says which attachments there are: others have ended. Cancelled, as :meth:`begun`."""
        over = [fact for fact in self._open.values() if (fact.container, fact.interface) not in valid]
        for fact in over:
            self._end(fact, datetime.now(UTC), told=False)
        if over:
            await self._save()

    async def compare(
        self,
        found: Mapping[str, Lease],
        seen: Collection[str],
        looked_at: datetime,
        name: Callable[[Lease], PodName],
    ) -> None:
        """A look at the host found these leases, and pods with the addresses ``seen``. Cancelled, as above."""
        if not self.enabled:
            return
        changed = False
        for fact in self.present:
            lease = found.get(fact.address)
            gone = lease is None or (lease.container, lease.interface) != (fact.container, fact.interface)
            old = looked_at - fact.since > timedelta(seconds=WITHOUT_POD_S)
            if fact.since < looked_at and (gone or (fact.address not in seen and old)):
                self._end(fact, looked_at, told=False)
                changed = True
        for address, lease in found.items():
            young = looked_at - lease.since < timedelta(seconds=BEING_ATTACHED_S)
            epoch = self._epoch_of(address)
            if (
                address not in seen
                or young
                or not epoch
                or (lease.container, lease.interface, address) in self._open
            ):
                continue
            fact = PodFact(
                address=address,
                container=lease.container,
                interface=lease.interface,
                epoch=epoch,
                since=min(lease.since, looked_at),
                pod=await asyncio.to_thread(name, lease),
                sure="found",
            )
            changed |= self._begin(fact, looked_at)
        if changed:
            await self._save()

    async def taken(self, facts: Collection[PodFact]) -> None:
        """A controller has these, or will never take them: they are done. Cancelled, as above."""
        done = set(facts)
        self._unsent = [fact for fact in self._unsent if fact not in done]
        await self._save()

    def _begin(self, fact: PodFact, now: datetime) -> bool:
        for other in [each for each in self._open.values() if each.address == fact.address]:
            if other.key != fact.key:  # one address, one pod: the earlier one's end was missed
                self._end(other, now, told=False)
        if len(self._open) >= FACTS_MAX and fact.key not in self._open:
            return False
        self._open[fact.key] = fact
        self._report(fact)
        return True

    def _end(self, fact: PodFact, now: datetime, *, told: bool) -> None:
        del self._open[fact.key]
        until = max(now, fact.since)
        self._report(msgspec.structs.replace(fact, until=until, until_sure="told" if told else "found"))

    def _report(self, fact: PodFact) -> None:
        if fact.until is not None:  # its end says all that its beginning would have
            self._unsent = [each for each in self._unsent if (each.key, each.since) != (fact.key, fact.since)]
        self._unsent.append(fact)
        if len(self._unsent) > UNSENT_MAX:
            del self._unsent[0]
            self.dropped += 1
        self.changed.set()

    async def _save(self) -> None:
        async with self._writing:
            kept = Kept(open=list(self._open.values()), unsent=self._unsent, dropped=self.dropped)
            content = msgspec.json.encode(kept)
            try:
                await asyncio.to_thread(write_atomically, self._path, content)
            except OSError as error:
                log.warning("what is known of pods cannot be kept: %s: %s", self._path, error.strerror)
