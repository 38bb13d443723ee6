"""Which pod has which address: what is told, what is found, and what is kept over a restart."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from events.protocol.pods import PodFact, PodName
from nodeagent.pods import facts as pod_facts
from nodeagent.pods.facts import Lease, PodFacts, leases, remembered_pod

WEB = PodName(namespace="shop", name="web-1", uid="u-1")
NOBODY = PodName()


def book(place: Path, *, enabled: bool = True) -> PodFacts:
    found = PodFacts(
        place, enabled=enabled, epoch_of=lambda address: 7 if address.startswith("172.16.0.") else 0
    )
    found.load()
    return found


def later(seconds: float = 1) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def held(container: str = "c-1", age_s: float = 100) -> Lease:
    return Lease(container, "eth0", later(-age_s))


def nameless(_: Lease) -> PodName:
    return NOBODY


def shown(facts: tuple[PodFact, ...]) -> list[tuple[str, str, str, bool]]:
    return [(fact.container, fact.pod.name, fact.sure, fact.until is not None) for fact in facts]


async def test_what_was_told_outlives_a_restart_until_a_controller_has_it(tmp_path: Path) -> None:
    facts = book(tmp_path)
    await facts.begun(WEB, "c-1", "eth0", ["172.16.0.2", "10.0.0.1"])
    await facts.begun(WEB, "c-1", "eth0", ["172.16.0.2"])  # a repetition is no news
    again = book(tmp_path)
    assert again.changed.is_set()
    assert shown(again.present) == shown(again.unsent) == [("c-1", "web-1", "told", False)]
    await again.taken(again.unsent)
    await again.ended("c-2", "eth0")
    await again.ended("c-1", "eth0")
    assert shown(book(tmp_path).unsent) == [("c-1", "web-1", "told", True)]
    assert book(tmp_path).present == ()


async def test_an_end_that_was_missed_is_found(tmp_path: Path) -> None:
    facts = book(tmp_path)
    await facts.begun(WEB, "c-1", "eth0", ["172.16.0.2"])
    seen = {"172.16.0.2"}
    await facts.compare({"172.16.0.2": held()}, seen, later(), nameless)
    await facts.compare({"172.16.0.2": held()}, (), later(30), nameless)
    assert len(facts.present) == 1, "its link may just be coming"
    await facts.compare({}, seen, later(-1), nameless)
    assert len(facts.present) == 1, "the look began before the pod did"
    await facts.compare({}, seen, later(), nameless)
    assert facts.present == ()
    (over,) = facts.unsent
    assert (over.until_sure, over.pod) == ("found", WEB)


async def test_a_lease_without_a_pod_ends_after_a_while_and_another_owner_ends_it_at_once(
    tmp_path: Path,
) -> None:
    facts = book(tmp_path)
    await facts.begun(WEB, "c-1", "eth0", ["172.16.0.2"])
    await facts.compare({"172.16.0.2": held()}, (), later(100), nameless)
    assert facts.present == (), "the machine was started anew"
    await facts.begun(WEB, "c-1", "eth0", ["172.16.0.2"])
    await facts.compare({"172.16.0.2": held("c-2")}, {"172.16.0.2"}, later(2), nameless)
    assert shown(facts.present) == [("c-2", "", "found", False)]


async def test_a_pod_that_was_missed_is_found_named_and_told_later(tmp_path: Path) -> None:
    facts = book(tmp_path)
    seen = {"172.16.0.2", "10.0.0.1", "2001:db8::1"}
    found = {"172.16.0.2": held(), "172.16.0.3": held("c-2"), "10.0.0.1": held("c-3")}
    await facts.compare({"172.16.0.2": held(age_s=1)}, seen, datetime.now(UTC), nameless)
    assert facts.present == (), "the plugin will tell in a moment"
    await facts.compare(found, seen, later(), nameless)
    assert shown(facts.present) == [("c-1", "", "found", False)]
    await facts.begun(WEB, "c-1", "eth0", ["172.16.0.2"])
    assert shown(facts.present) == [("c-1", "web-1", "found", False)]
    await facts.begun(NOBODY, "c-1", "eth0", ["172.16.0.2"])
    assert facts.present[0].pod == WEB, "a name is not lost again"


async def test_facts_are_bounded_and_what_gives_way_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_facts, "FACTS_MAX", 3)
    monkeypatch.setattr(pod_facts, "UNSENT_MAX", 4)
    facts = book(tmp_path)
    for number in range(2, 8):
        await facts.begun(WEB, f"c-{number}", "eth0", [f"172.16.0.{number}"])
    assert len(facts.present) == 3
    for number in range(2, 8):
        await facts.ended(f"c-{number}", "eth0")
        await facts.begun(WEB, f"d-{number}", "eth0", [f"172.16.0.{number}"])
    assert len(facts.unsent) == 4
    assert book(tmp_path).dropped == facts.dropped > 0


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"open":[{"address":3}]}', b"\xff", b"[" * 100_000])
async def test_a_file_that_makes_no_sense_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / pod_facts.FILE).write_bytes(content)
    facts = book(tmp_path)
    assert facts.present == ()
    await facts.begun(WEB, "c-1", "eth0", ["172.16.0.2"])
    assert len(book(tmp_path).present) == 1


async def test_switched_off_nothing_is_kept(tmp_path: Path) -> None:
    await book(tmp_path).begun(WEB, "c-1", "eth0", ["172.16.0.2"])
    off = book(tmp_path, enabled=False)
    await off.begun(WEB, "c-1", "eth0", ["172.16.0.2"])
    await off.compare({"172.16.0.2": held()}, {"172.16.0.2"}, later(), nameless)
    assert not os.listdir(tmp_path)  # noqa: PTH208


def test_leases_are_read_as_host_local_writes_them_and_nothing_else(tmp_path: Path) -> None:
    for name, content in {
        "172.16.0.2": b"c-1\r\neth0", "172.16.0.3": b"c-2", "172.16.0.4": b"../x\r\neth0",
        "172.16.0.5": b"\xff",
        "172.16.0.6": b"x" * 5000, "2001:db8::1": b"c-3\r\neth0", "1abc": b"c-4\r\neth0", "lock": b"",
        "last_reserved_ip.0": b"172.16.0.6",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "172.16.0.7")
    assert {address: lease.container for address, lease in leases(tmp_path).items()} == {
        "172.16.0.2": "c-1",
        "172.16.0.3": "c-2",
    }
    assert leases(tmp_path / "none") == {}


def test_names_come_from_what_the_runtime_keeps(tmp_path: Path) -> None:
    arguments = [
        ["IgnoreUnknown", "1"],
        ["K8S_POD_NAMESPACE", "shop"],
        ["K8S_POD_NAME", "web-1"],
        ["K8S_POD_UID", "u-1"],
    ]
    path = tmp_path / "isthmus-c-1-eth0"
    path.write_text(json.dumps({"kind": "cniCacheV1", "containerId": "c-1", "cniArgs": arguments}))
    assert remembered_pod(tmp_path, "isthmus", held()) == WEB
    for content in (
        '{"cniArgs": 3}',
        '{"cniArgs": [3]}',
        '{"cniArgs": null}',
        "[]",
        "3",
        "{",
        '{"cniArgs":[[1,2]]}',
    ):
        path.write_text(content)
        assert remembered_pod(tmp_path, "isthmus", held()) == NOBODY
    path.unlink()
    assert remembered_pod(tmp_path, "isthmus", held()) == NOBODY
