"""Snapshots of the membership on the bus: so that an agent need not read the whole log to start.

A controller publishes, agents read by direct get, nobody needs a consumer. A snapshot is stored
compressed and in chunks (ten thousand members exceed a message) below
``isthmus.<cluster>.snapshot.<slot>.``; what makes it valid is the manifest, written last on
``isthmus.<cluster>.snapshot.latest``. Two slots take turns, so that the last snapshot stays whole
until its successor is, and old ones vanish by being overwritten (also in a site's mirror, where a
deletion would not arrive).

A reader trusts a snapshot only when its bytes hash to what the manifest states **and** the log
itself, at the snapshot's sequence, carries the snapshot's chain digest: one of another or of a
restored log is refused.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from events import subjects
from events.bus.retry import pauses
from events.chain import CHAIN_HEADER, Head, genesis
from events.errors import Unavailable, VerificationFailed
from events.jetstream.api import DEFAULT_PREFIX, error_in, prefix_of
from events.jetstream.direct import DirectReader
from events.jetstream.stream import ensure_stream
from events.protocol.clb import Traffic
from events.protocol.encryption import NO_ENCRYPTION, Encryption
from events.types import ClusterDefined

FORMAT = 1
CHUNK_BYTES = 128 * 1024
SLOTS = 2
_TRIES = 3
"""Reading begins anew when two newer snapshots were written meanwhile; not more often than this."""
SIZE_MAX_BYTES = 256 * 1024 * 1024
"""Largest snapshot unpacked; a hundred times what ten thousand members take."""


class SnapshotMember(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A live node, as :class:`events.types.NodeJoined` (and later moves) describe it."""

    node: str
    uid: str
    kind: str
    underlay: str
    announced: str
    vtep_mac: str
    site: str = ""
    key: str = ""
    """Its public key; empty from controllers before 0.3, and of nodes with earlier agents."""
    port: int = 0
    """UDP port by which WireGuard reaches it; 0: it has none."""
    behind_nat: bool = False
    beside: str = ""
    """The key before ``key`` that is still valid, and the slot of ``key``, as its event has them."""
    slot: int = 0


class SnapshotRange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An allocated range; ``epoch`` is the sequence of its allocation."""

    cidr: str
    epoch: int
    node: str
    uid: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The membership behind ``sequence``, whose chain digest is ``chain`` (64 hexadecimal digits).

    ``cidrs`` are all container CIDRs in the order of the pool, ``networks`` the routed networks that were
    declared (empty from controllers before 0.3); ``fenced`` are the uids that are out for good;
    ``state_digest`` is the controller's digest of the whole state at that sequence.
    """

    cluster: str
    sequence: int
    chain: str
    made_at: datetime
    definition: ClusterDefined | None = None
    cidrs: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    members: tuple[SnapshotMember, ...] = ()
    ranges: tuple[SnapshotRange, ...] = ()
    fenced: tuple[str, ...] = ()
    deleted: bool = False
    state_digest: str = ""
    traffic: Traffic = Traffic()
    encryption: Encryption = NO_ENCRYPTION
    format: int = FORMAT

    @property
    def head(self) -> Head:
        """Where reading the log continues."""
        return Head(self.sequence, bytes.fromhex(self.chain))


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a stored snapshot consists of and where. ``sha256`` is of the compressed bytes."""

    slot: int
    sequence: int
    chain: str
    chunks: int
    size: int
    sha256: str
    format: int = FORMAT


_encode = msgspec.json.Encoder().encode
_snapshot = msgspec.json.Decoder(Snapshot)
_manifest = msgspec.json.Decoder(Manifest)


def pack(snapshot: Snapshot, slot: int = 0) -> tuple[Manifest, list[bytes]]:
    """The manifest and the chunks of a snapshot, for storing in a slot."""
    packed = zlib.compress(_encode(snapshot), 3)
    chunks = [packed[start : start + CHUNK_BYTES] for start in range(0, len(packed), CHUNK_BYTES)]
    return (
        Manifest(
            slot=slot,
            sequence=snapshot.sequence,
            chain=snapshot.chain,
            chunks=len(chunks),
            size=len(packed),
            sha256=sha256(packed).hexdigest(),
        ),
        chunks,
    )


def unpack(manifest: Manifest, chunks: Sequence[bytes]) -> Snapshot:
    """The snapshot that the chunks hold. Raises VerificationFailed(snapshot_invalid)."""
    packed = b"".join(chunks)
    if len(packed) != manifest.size or sha256(packed).hexdigest() != manifest.sha256:
        raise VerificationFailed(
            "snapshot_invalid",
            f"the snapshot of sequence {manifest.sequence} has {len(packed)} bytes that do not hash to what "
            f"its manifest states ({manifest.size} bytes, {manifest.sha256[:16]}…)",
            sequence=manifest.sequence,
        )
    try:
        unpacker = zlib.decompressobj()
        body = unpacker.decompress(packed, SIZE_MAX_BYTES)
        snapshot = _snapshot.decode(body)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise VerificationFailed(
            "snapshot_invalid",
            f"the snapshot of sequence {manifest.sequence} is unreadable: {error}",
            sequence=manifest.sequence,
        ) from error
    if (snapshot.sequence, snapshot.chain) != (manifest.sequence, manifest.chain):
        raise VerificationFailed(
            "snapshot_invalid",
            f"the manifest states sequence {manifest.sequence}, the snapshot {snapshot.sequence}",
            sequence=manifest.sequence,
        )
    return snapshot


def snapshot_stream_settings(cluster: str) -> dict[str, Any]:
    """The bucket's stream: the last message per subject, so that it stays as small as two snapshots."""
    return {
        "name": subjects.snapshot_stream(cluster),
        "subjects": [subjects.snapshot_wildcard(cluster)],
        "description": f"Isthmus: snapshots of the membership of cluster {cluster}. Rebuilt at will.",
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
    }


class SnapshotBucket:
    """Publishing (controllers) and reading (agents) of one cluster's snapshots.

    Cancelled, its coroutines leave nothing behind, or say what.
    """

    def __init__(self, client: Client, cluster: str, *, prefix: str = DEFAULT_PREFIX) -> None:
        self._client = client
        self._cluster = subjects.check_label(cluster, "cluster")
        self._prefix = prefix_of(client, prefix)
        self._stream = subjects.snapshot_stream(cluster)
        self._direct = DirectReader(client, self._stream, prefix=prefix)
        self._log = DirectReader(client, subjects.stream(cluster), prefix=prefix)

    async def ensure(self, *, replicas: int | None = None) -> None:
        """Make the bucket's stream when missing. Raises Refused(log_settings_differ), Unavailable.

        Cancelled, the stream may have been made.
        """
        await ensure_stream(
            self._client, snapshot_stream_settings(self._cluster), replicas=replicas, prefix=self._prefix
        )

    async def publish(self, snapshot: Snapshot, *, timeout_s: float = 10.0) -> Manifest:
        """Store a snapshot and make it the latest. One that is not newer than the latest is not stored.

        Raises Unavailable; the last snapshot then stays the latest. Cancelled, the last snapshot stays the
        latest, or this one is it: never half of one.
        """
        previous = await self.manifest()
        if previous is not None and previous.sequence >= snapshot.sequence:
            return previous
        slot = (previous.slot + 1) % SLOTS if previous is not None else 0
        manifest, chunks = await asyncio.to_thread(pack, snapshot, slot)
        deadline = asyncio.get_running_loop().time() + timeout_s
        for index, chunk in enumerate(chunks):
            await self._store(subjects.snapshot_chunk(self._cluster, slot, index), chunk, deadline)
        await self._store(subjects.snapshot_latest(self._cluster), _encode(manifest), deadline)
        return manifest

    async def manifest(self) -> Manifest | None:
        """The latest manifest; None when there is no snapshot. Raises Unavailable, VerificationFailed."""
        message = await self._direct.last(subjects.snapshot_latest(self._cluster))
        if message is None:
            return None
        try:
            return _manifest.decode(message.body)
        except msgspec.MsgspecError as error:
            raise VerificationFailed(
                "snapshot_invalid", f"the manifest of the latest snapshot is unreadable: {error}"
            ) from error

    async def latest(self) -> Snapshot | None:
        """The latest snapshot, verified against the log; None when there is none.

        Raises Unavailable, and VerificationFailed(snapshot_invalid) when it contradicts itself or the log: read
        the whole log then.
        """
        invalid: VerificationFailed | None = None
        before: Manifest | None = None
        for _ in range(_TRIES):
            manifest = await self.manifest()
            if manifest is None:
                return None
            if manifest == before and invalid is not None:
                raise invalid  # it was not replaced while we read it
            before = manifest
            chunks = [await self._chunk(manifest, index) for index in range(manifest.chunks)]
            try:
                snapshot = await asyncio.to_thread(unpack, manifest, chunks)
            except VerificationFailed as error:
                invalid = error
                continue
            await self._check_against_log(snapshot)
            return snapshot
        raise invalid or Unavailable(
            "log_unavailable", f"bucket {self._stream}: no snapshot could be read whole"
        )

    async def _chunk(self, manifest: Manifest, index: int) -> bytes:
        message = await self._direct.last(
            subjects.snapshot_chunk(self._cluster, manifest.slot, index), timeout_s=10
        )
        return message.body if message is not None else b""

    async def _check_against_log(self, snapshot: Snapshot) -> None:
        if snapshot.cluster != self._cluster:
            raise VerificationFailed(
                "snapshot_invalid",
                f"the snapshot is of cluster {snapshot.cluster!r}, not of {self._cluster!r}",
            )
        if snapshot.sequence == 0:
            found = genesis(self._cluster).hex
        else:
            answer = await self._log.after(snapshot.sequence - 1, count=1)
            if not answer.messages:
                raise Unavailable(
                    "log_unavailable",
                    f"the log here does not reach the snapshot's sequence {snapshot.sequence} (yet)",
                )
            found = answer.messages[0].headers.get(CHAIN_HEADER, "")
        if found != snapshot.chain:
            raise VerificationFailed(
                "snapshot_invalid",
                f"the snapshot of sequence {snapshot.sequence} is of another log: its chain digest is "
                f"{snapshot.chain[:16]}…, the log's is {found[:16] or 'missing'}…",
                sequence=snapshot.sequence,
            )

    async def _store(self, subject: str, body: bytes, deadline: float) -> None:
        """Storing is idempotent: a subject keeps its last message only."""
        last: Unavailable | None = None
        async for left_s in pauses(deadline):
            try:
                reply = await self._client.request(subject, body, timeout=min(3.0, left_s))
            except (NatsError, TimeoutError) as error:
                last = Unavailable("log_unavailable", f"bucket {self._stream} took no chunk: {error!r}")
                continue
            answer: Mapping[str, Any] = msgspec.json.decode(reply.data)
            refusal = error_in(answer)
            if refusal is None:
                return
            last = Unavailable("log_unavailable", f"bucket {self._stream}: {refusal}")
            if not refusal.passing:
                break
        raise last or Unavailable("log_unavailable", f"bucket {self._stream} took no chunk in time")
