"""Every version of every event type that was ever released can still be read, from bytes written then.

The files under ``golden/`` are bodies as they were stored. They are never edited: a new version of a type
gets a new file and an upcaster for the old one, a new field a further file, and the old file stays. Those
under ``released/`` are the schemas of a release: what it can read of what is written today.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events import codec
from events.chain import genesis
from events.codec import Cause, StoredMessage, decode_event, seal
from events.errors import VerificationFailed
from events.types import EVENT_TYPES, ClbHolderWithdrawn, Event, NodeJoined
from events.types.releases import ENDS, FIRST, KNOWN_SINCE, follows, release
from events.types.upcasters import UPCASTERS
from replay.archive import lines
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.queries.states import States
from replay.verification.outcome import Wanted
from replay.verification.verify import verify
from tests.replay.histories import CLUSTER, history
from tests.replay.make_golden import GOLDEN, RELEASED, fields_in, files, shapes

FILES = sorted(GOLDEN.glob("*.json"))
HOW = "python -m tests.replay.make_golden"
UNABLE = GOLDEN / "clb.holder-withdrawn.v1-unable.json"


def type_of(file: Path) -> str:
    """A file is named after its type, and what is particular about it."""
    found = re.match(r"[a-z.-]+\.v\d+", file.stem)
    assert found, file
    return found[0]


def test_every_version_that_can_be_read_has_a_file_and_the_other_way_round() -> None:
    readable = {cls.type_name() for cls in EVENT_TYPES} | set(UPCASTERS)
    assert {type_of(file) for file in FILES} == readable, f"a new type or version: {HOW}"
    for cls in EVENT_TYPES:
        fields = {field.name for field in msgspec.structs.fields(cls)}
        assert fields_in(files(cls.type_name())[-1]) == fields, f"a new field: {HOW}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_stored_body_still_says_what_it_said(file: Path) -> None:
    body = file.read_bytes().rstrip(b"\n")
    event = decode_event(type_of(file), body, 1)
    stored = msgspec.json.decode(body)
    seen = msgspec.json.decode(msgspec.json.encode(event))
    if file != UNABLE:
        assert {name: seen.get(name) for name in stored} == stored
    if file == files(event.type_name())[-1]:
        assert msgspec.json.encode(event) == body, "today's writer writes the same bytes"


def test_a_withdrawal_written_before_0_2_is_read_as_what_a_release_knows() -> None:
    event = decode_event(type_of(UNABLE), UNABLE.read_bytes(), 1)
    assert isinstance(event, ClbHolderWithdrawn)
    assert (event.cause, event.reason) == ("silent", "it said that it cannot hold addresses")
    with pytest.raises(VerificationFailed, match="'bored'"):
        decode_event(type_of(UNABLE), UNABLE.read_bytes().replace(b"unable", b"bored"), 1)


def narrower(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Why a reader of a type as it was ``then`` might refuse or misread what is written ``now``."""
    wrong = [f"{name} is gone" for name in then.keys() - now.keys()]
    for name in then.keys() & now.keys():
        old, new = then[name], now[name]
        wrong += [
            f"{name}.{field}: {was}, now {new['properties'].get(field, 'gone')}"
            for field, was in old["properties"].items()
            if new["properties"].get(field) != was
        ]
        needed = set(new.get("required", ())) ^ set(old.get("required", ()))
        wrong += [f"{name}.{field} is needed" for field in needed]
    return wrong


@pytest.mark.parametrize("release", sorted(RELEASED.glob("*.json")), ids=lambda file: file.stem)
def test_a_release_reads_what_is_written_today(release: Path) -> None:
    """The rule of :mod:`events.types`, held against what was really released."""
    now = json.loads(shapes())
    for type_name, then in json.loads(release.read_bytes()).items():
        if type_name in now:  # else a newer version took its place: nobody writes it any more
            assert narrower(then, now[type_name]) == []


def test_the_table_of_releases_names_exactly_the_types_that_earlier_ones_lack() -> None:
    """Forgetting a new type there would let it stop the controllers of a release that is still running."""
    known = {
        name
        for file in RELEASED.glob("*.json")
        if release(file.stem) <= release(FIRST)  # type: ignore[operator]  # files are named by versions
        for name in json.loads(file.read_bytes())
    }
    lacking = {cls.type_name() for cls in EVENT_TYPES} - known
    assert {cls.type_name() for cls in KNOWN_SINCE} == lacking
    assert set(KNOWN_SINCE) >= ENDS
    for file in RELEASED.glob("*.json"):
        for name in json.loads(file.read_bytes()).keys() & lacking:
            cls = next(cls for cls in KNOWN_SINCE if cls.type_name() == name)
            assert follows(file.stem, KNOWN_SINCE[cls]), name


def test_a_widened_literal_or_a_field_without_a_default_breaks_the_rule() -> None:
    then = json.loads(shapes())["clb.holder-withdrawn.v1"]
    widened = json.loads(json.dumps(then))
    widened["ClbHolderWithdrawn"]["properties"]["cause"]["enum"].append("unable")
    (why,) = narrower(then, widened)
    assert "unable" in why
    needed = json.loads(json.dumps(then))
    needed["ClbHolderWithdrawn"]["required"].append("reason")
    assert narrower(then, needed) == ["ClbHolderWithdrawn.reason is needed"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_body_with_a_field_of_the_future_or_without_a_needed_one_is_decided_not_guessed(file: Path) -> None:
    stored = msgspec.json.decode(file.read_bytes())
    assert decode_event(type_of(file), msgspec.json.encode({**stored, "later": 1}), 1) == decode_event(
        type_of(file), file.read_bytes(), 1
    )
    needed = next(f.name for f in msgspec.structs.fields(_newest(type_of(file))) if f.required)
    del stored[needed]
    with pytest.raises(VerificationFailed) as refused:
        decode_event(type_of(file), msgspec.json.encode(stored), 7)
    assert (refused.value.code, refused.value.details["sequence"]) == ("event_malformed", 7)


def _newest(type_name: str) -> type[Event]:
    family = type_name.rsplit(".", 1)[0]
    return next(cls for cls in EVENT_TYPES if cls.type_name().rsplit(".", 1)[0] == family)


class _OldJoined(msgspec.Struct):
    """How a first version might have looked: one address, and no MAC."""

    node: str
    uid: str
    external: bool
    address: str


def _lift(body: bytes) -> Event:
    old = msgspec.json.decode(body, type=_OldJoined)
    return NodeJoined(
        node=old.node,
        uid=old.uid,
        kind="external" if old.external else "cloud",
        underlay=old.address,
        announced=old.address,
        vtep_mac="66:00:00:00:00:01",
    )


def test_a_log_with_an_old_version_in_it_is_lifted_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upcaster is enough: the fold, the questions and the verification all read through it."""
    first = history(1, 0)
    head = asyncio.run(_head(first))
    sealed, head = seal(
        CLUSTER,
        head,
        [
            (
                Cause(command_id="old", actor="a", time=_moment(first), source="s"),
                [
                    NodeJoined(
                        node="n", uid="u", kind="cloud", underlay="1.1.1.1", announced="1.1.1.1", vtep_mac="x"
                    )
                ],
            )
        ],
    )
    body = b'{"node":"n","uid":"u","external":true,"address":"192.168.1.9"}'
    message = sealed[0]
    headers = {**message.headers, "ce-type": "node.joined.v0"}
    stored = StoredMessage(2, message.subject, headers, body, first[0].recorded_ns + 10**9)
    from events.chain import link

    digest = link(bytes.fromhex(first[0].headers["ce-chain"]), 2, stored.subject, headers, body)
    headers["ce-chain"] = digest.hex()
    monkeypatch.setitem(codec._DECODERS, "node.joined.v0", _lift)
    assert [type(f.body) for f in lines.facts(lines.encode_messages([*first, stored]))][1] is NodeJoined
    writer = ArchiveWriter.create(tmp_path / "old", CLUSTER, genesis(CLUSTER), source="test")
    writer.add([*first, stored])
    writer.finish()

    async def ask() -> None:
        log = ArchiveLog(tmp_path / "old")
        past = await archive_history(log)
        state, _ = await States(past).at(2)
        assert state.nodes["n"].kind == "external"
        assert state.nodes["n"].underlay == "192.168.1.9"
        report = await verify(past, Wanted())
        assert report.findings == []
        log.close()

    asyncio.run(ask())


async def _head(messages: list[StoredMessage]):
    from tests.replay.histories import ListLog

    return await ListLog(messages).head()


def _moment(messages: list[StoredMessage]):
    from replay.when import from_ns

    return from_ns(messages[0].recorded_ns + 10**9)
