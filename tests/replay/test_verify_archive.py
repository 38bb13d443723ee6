"""Verification of archives: any changed byte, and an index that does not say what its events say, is found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from controlplane.controller.publishing.checkpoints import (
    SigningKey,
)
from events.chain import genesis
from events.errors import IsthmusError
from replay.archive.writer import ArchiveWriter
from replay.verification import verify as verifying
from tests.replay.altered_logs import (
    MESSAGES,
    altered,
    errors,
    judge,
    judge_file,
    rechained,
    short_segments,
    write,
)
from tests.replay.histories import CLUSTER

KEY = SigningKey.generate()


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    short_segments(monkeypatch)


# --- archive files ------------------------------------------------------------------------------------


def test_any_changed_byte_of_an_archive_is_found(tmp_path):
    path = write(tmp_path / "log", MESSAGES[:90])
    whole = path.read_bytes()
    draw = random.Random(5)
    for place in sorted({draw.randrange(len(whole)) for _ in range(150)}):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        refusal, sound = "", False
        try:
            sound = judge_file(path).sound
        except IsthmusError as error:
            refusal = error.code
        assert not sound, f"byte {place} of {len(whole)}"
        assert refusal in ("", "archive_foreign", "archive_damaged"), place


@pytest.mark.parametrize("change", ["cut", "added", "hidden"])
def test_cut_and_added_bytes_are_found(tmp_path, change):
    path = write(tmp_path / "log", MESSAGES[:90])
    whole = path.read_bytes()
    middle = whole.index(b'{"kind":"events"', 4000) - 8
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "added": whole + b"x",
            "hidden": whole[:middle] + b"hidden" + whole[middle:],
        }[change]
    )
    assert not judge_file(path).sound


def test_a_segment_rewritten_with_matching_checksums_is_found(tmp_path):
    """The forger makes a whole new file with proper manifest: only the chain and a signature tell."""
    forged = altered(MESSAGES, 30, body=MESSAGES[29].body.replace(b"1", b"2"))
    report = judge_file(write(tmp_path / "log", forged))
    assert ("chain_broken", 30) in errors(report)


def test_a_signed_archive_is_held_to_its_key(tmp_path):
    path = write(tmp_path / "log", MESSAGES, signer=KEY)
    assert judge_file(path, public_keys=(KEY.public_hex,)).sound
    other = SigningKey.generate()
    assert ("checkpoint_mismatch", 0) in errors(judge_file(path, public_keys=(other.public_hex,)))
    again = write(tmp_path / "again", MESSAGES, signer=other).read_bytes()
    swapped = again.replace(other.public_hex.encode(), KEY.public_hex.encode())
    (tmp_path / "again").write_bytes(swapped)
    assert not judge_file(tmp_path / "again", public_keys=(KEY.public_hex,)).sound


def test_an_unfinished_archive_is_not_called_sound(tmp_path):
    writer = ArchiveWriter.create(tmp_path / "log", CLUSTER, genesis(CLUSTER), source="test")
    writer.add(MESSAGES[:30])
    writer.close()
    assert ("log_truncated", 31) in errors(judge_file(tmp_path / "log"))


def test_another_archive_of_the_same_log_locates_a_rewriting(tmp_path):
    from replay.verification.external_digests import heads_of

    write(tmp_path / "old", MESSAGES[:80])
    body = MESSAGES[69].body.replace(b"node-", b"nude-")
    assert body != MESSAGES[69].body
    rewritten = rechained(altered(MESSAGES, 70, body=body), 70)
    report = judge(rewritten, heads=tuple(heads_of(str(tmp_path / "old"))))
    mismatches = [f for f in report.findings if f.code == "checkpoint_mismatch"]
    assert "between events 65 and 80" in mismatches[0].message


# --- the index in an archive ---------------------------------------------------------------------------


def forge_index(monkeypatch: pytest.MonkeyPatch, change: Callable[..., object]) -> None:
    """The second index segment is written as ``change`` says: checksums, manifest and chain are whole."""
    put = ArchiveWriter._put
    written = 0

    def forged(writer, kind, text, first=0, last=0, **more):
        nonlocal written
        written += kind == "index"
        if kind == "index" and written == 2:
            changed = change([json.loads(line) for line in text.splitlines()], first, last)
            if changed is None:
                return None
            entries, first, last = changed
            if isinstance(entries, bytes):
                text = entries
            else:
                more["keys"] = (entries[0][0], entries[-1][0])
                text = b"".join(json.dumps(e, separators=(",", ":")).encode() + b"\n" for e in entries)
        return put(writer, kind, text, first, last, **more)

    monkeypatch.setattr(ArchiveWriter, "_put", forged)


FORGED: dict[str, Callable[..., object]] = {
    "an event is hidden": lambda e, a, b: ([[k, s[:-1] if i == 2 else s] for i, (k, s) in enumerate(e)], a, b),
    "a foreign event": lambda e, a, b: ([[k, [*s, b] if b not in s else s] for k, s in e], a, b),
    "a key is missing": lambda e, a, b: (e[:3] + e[4:], a, b),
    "the last key is missing": lambda e, a, b: (e[:-1], a, b),
    "a key is renamed": lambda e, a, b: ([["address/10.0.0.0", e[0][1]], *e[1:]], a, b),
    "a key stands twice": lambda e, a, b: ([e[0], [e[0][0], [a]], *e[1:]], a, b),
    "keys out of order": lambda e, a, b: ([e[1], e[0], *e[2:]], a, b),
    "sequences out of order": lambda e, a, b: ([[k, s[::-1]] for k, s in e], a, b),
    "events from beyond": lambda e, a, b: ([[k, [*s, b + 1]] for k, s in e], a, b),
    "another spelling": lambda e, a, b: (
        b"".join(json.dumps(entry).encode() + b"\n" for entry in e), a, b
    ),
    "no lines": lambda e, a, b: (b"[1]\n", a, b),
    "a part is not written": lambda e, a, b: None,
    "a shorter span": lambda e, a, b: (e, a, b - 1),
    "a longer span": lambda e, a, b: (e, a, b + 16),
    "a span again": lambda e, a, b: (e, 1, a - 1),
}  # fmt: skip


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_index_with_proper_checksums_is_found_and_located(tmp_path, monkeypatch, how):
    forge_index(monkeypatch, FORGED[how])
    path = write(tmp_path / "log", MESSAGES)
    report = judge_file(path)
    found = [finding for finding in report.findings if finding.level == "error"]
    assert {(finding.check, finding.code) for finding in found} == {("archive", "archive_damaged")}
    assert all("index" in finding.message for finding in found)
    if how != "a span again":
        assert any(49 <= finding.sequence <= 97 for finding in found), "the second run is of events 49 to 96"
    monkeypatch.setattr(verifying, "INLINE_EVENTS", 0)
    assert judge_file(path, jobs=1).findings == report.findings


def test_a_hidden_event_is_named(tmp_path, monkeypatch):
    forge_index(monkeypatch, FORGED["a key is missing"])
    report = judge_file(write(tmp_path / "log", MESSAGES))
    (finding,) = report.findings
    assert "hides event" in finding.message
    assert finding.sequence in range(49, 97)


def test_events_that_speak_of_nothing_need_no_index(tmp_path):
    strange = [*MESSAGES[:50]]
    for at in range(48, 50):
        strange[at] = strange[at]._replace(body=b'{"x":\n1}')
    report = judge_file(write(tmp_path / "log", strange))
    assert not [finding for finding in report.findings if "index" in finding.message]
