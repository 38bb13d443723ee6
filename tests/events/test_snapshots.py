"""Snapshots: large ones fit, the latest wins, and nothing that contradicts itself or the log is believed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from nats.aio.client import Client

from events import subjects
from events.chain import Head, genesis
from events.errors import VerificationFailed
from events.jetstream.log import JetStreamLog
from events.jetstream.snapshots import SnapshotBucket, pack, unpack
from tests.contract.samples import CLUSTER, fill
from tests.events.sample_snapshot import snapshot


@pytest.mark.bus
class TestBucket:
    @pytest.fixture
    async def bucket(self, client: Client, log: JetStreamLog) -> SnapshotBucket:
        bucket = SnapshotBucket(client, CLUSTER)
        await bucket.ensure()
        return bucket

    async def test_an_empty_bucket_has_no_latest(self, bucket: SnapshotBucket) -> None:
        assert await bucket.latest() is None

    async def test_what_was_published_is_read_back_verified(
        self, bucket: SnapshotBucket, log: JetStreamLog
    ) -> None:
        made = snapshot(await fill(log, 7))
        await bucket.publish(made)
        assert await bucket.latest() == made

    async def test_a_snapshot_of_the_empty_log_is_one_too(self, bucket: SnapshotBucket) -> None:
        made = snapshot(genesis(CLUSTER), 0)
        await bucket.publish(made)
        assert await bucket.latest() == made

    async def test_fifty_thousand_members_take_many_messages_and_come_back_whole(
        self, bucket: SnapshotBucket, log: JetStreamLog
    ) -> None:
        made = snapshot(await fill(log, 1), 50_000)
        manifest = await bucket.publish(made, timeout_s=30)
        assert manifest.chunks > 3
        assert await bucket.latest() == made

    async def test_a_newer_one_replaces_an_older_and_never_the_reverse(
        self, bucket: SnapshotBucket, log: JetStreamLog, client: Client
    ) -> None:
        old = snapshot(await fill(log, 1), 10)
        made = [snapshot(await fill(log, 1), 10 + n) for n in range(4)]
        for each in made:
            await bucket.publish(each)
        await bucket.publish(old)
        assert await bucket.latest() == made[-1]
        info = await client.jetstream().stream_info(subjects.snapshot_stream(CLUSTER))
        assert info.state.messages == 3, "the manifest and one chunk in each of the two slots"

    async def test_readers_get_a_whole_one_while_it_is_being_replaced(
        self, bucket: SnapshotBucket, log: JetStreamLog
    ) -> None:
        await bucket.publish(snapshot(await fill(log, 1), 2000))
        replaced = asyncio.Event()

        async def read() -> list[int]:
            seen = []
            while not replaced.is_set():
                latest = await bucket.latest()
                assert latest is not None
                seen.append(latest.sequence)
            return seen

        reading = [asyncio.create_task(read()) for _ in range(3)]
        for _ in range(10):
            await bucket.publish(snapshot(await fill(log, 1), 2000))
        replaced.set()
        for seen in await asyncio.gather(*reading):
            assert seen == sorted(seen)

    async def test_one_of_another_log_is_refused(self, bucket: SnapshotBucket, log: JetStreamLog) -> None:
        head = await fill(log, 4)
        await bucket.publish(snapshot(Head(head.sequence, bytes(32))))
        with pytest.raises(VerificationFailed, match="another log") as refusal:
            await bucket.latest()
        assert refusal.value.code == "snapshot_invalid"

    async def test_a_changed_chunk_is_refused(
        self, bucket: SnapshotBucket, log: JetStreamLog, client: Client
    ) -> None:
        head = await fill(log, 4)
        await bucket.publish(snapshot(head))
        await client.jetstream().publish(subjects.snapshot_chunk(CLUSTER, 0, 0), b"something else")
        with pytest.raises(VerificationFailed) as refusal:
            await bucket.latest()
        assert refusal.value.code == "snapshot_invalid"


def test_what_is_unpacked_is_what_was_packed() -> None:
    made = snapshot(genesis(CLUSTER), 100)
    assert unpack(*pack(made)) == made


@pytest.mark.parametrize("change", ["short", "flipped", "sequence"])
def test_a_damaged_snapshot_is_refused(change: str) -> None:
    manifest, chunks = pack(snapshot(genesis(CLUSTER), 100))
    if change == "short":
        chunks[-1] = chunks[-1][:-1]
    elif change == "flipped":
        chunks[0] = bytes([chunks[0][0] ^ 1]) + chunks[0][1:]
    else:
        manifest = msgspec.structs.replace(manifest, sequence=9)
    with pytest.raises(VerificationFailed) as refusal:
        unpack(manifest, chunks)
    assert refusal.value.code == "snapshot_invalid"
