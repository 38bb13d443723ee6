"""When an old key ends, how old a key is, and what a half-made change leaves: without devices and clocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import Refused
from nodeagent.local_files import write_atomically
from nodeagent.membership.key_age import SAVE_S, KeyAge
from nodeagent.membership.node_key import (
    AGE_FILE,
    KEY_FILE,
    NEXT_FILE,
    OLD_FILE,
    Told,
    ask_for_another,
    own_key,
)
from nodeagent.wireguard.pairs import PAIRS, device_names
from nodeagent.wireguard.rotation import LONGEST_S, QUIET_S, SILENT_S, Rotation

DAY_S = 86_400.0


def test_the_old_key_goes_when_all_have_the_new_one_and_nothing_comes_by_it() -> None:
    rotation = Rotation()
    rotation.look(missing=1, received=10, now=0.0)
    rotation.look(missing=0, received=20, now=3.0)
    rotation.look(missing=0, received=30, now=3.0 + QUIET_S)
    assert not rotation.over, "somebody still sends by it"
    rotation.look(missing=0, received=30, now=3.0 + 2 * QUIET_S)
    assert rotation.over


def test_a_peer_that_is_away_is_waited_for_and_not_for_ever() -> None:
    rotation = Rotation()
    rotation.look(missing=1, received=10, now=0.0)
    rotation.look(missing=1, received=10, now=SILENT_S - 1)
    assert not rotation.over
    rotation.look(missing=1, received=10, now=SILENT_S)
    assert rotation.over
    rotation.reset()
    for now in range(0, int(LONGEST_S), 60):
        rotation.look(missing=1, received=now, now=float(now))
        assert not rotation.over, "its packets come by the old key: its agent is away, its kernel is not"
    rotation.look(missing=1, received=-1, now=LONGEST_S)
    assert rotation.over, "who has the old key cannot keep it valid"


def test_age_is_what_an_agent_ran_with_the_key_whatever_the_clock_does(tmp_path: Path) -> None:
    age = KeyAge(tmp_path)
    assert age.of("k", 1_000_000.0) == 0, "an agent that starts on a machine that runs for long"
    assert age.of("k", 1_000_000.0 + DAY_S) == DAY_S
    again = KeyAge(tmp_path)
    assert again.of("k", 5.0) == DAY_S, "the machine started anew"
    assert again.of("k", 5.0 + SAVE_S / 2) == DAY_S + SAVE_S / 2
    assert again.of("k", 0.0) == DAY_S + SAVE_S / 2, "a clock that goes back takes nothing away"
    assert again.of("other", 700.0) == 0, "another key"
    for text in ("", "{", '{"key":"other"}', '{"key":"other","seconds":-1}'):
        (tmp_path / AGE_FILE).write_text(text)
        assert KeyAge(tmp_path).of("other", 9.0) == 0


def test_a_change_goes_on_from_wherever_it_was_killed(tmp_path: Path) -> None:
    first = own_key(tmp_path)
    public = first.public
    following = ask_for_another(tmp_path)
    assert ask_for_another(tmp_path) == following
    first.look()
    assert first.told(7, both=True, over=False) == Told(following, 7, public)
    assert first.told(7, both=False, over=False) == Told(following, 7), (
        "nothing is encrypted: one key is enough"
    )
    assert not first.follow(public, ""), "the log has it not yet"
    # Killed when the old key was kept, and the next one is not in its place yet.
    write_atomically(tmp_path / OLD_FILE, (tmp_path / KEY_FILE).read_bytes())
    killed = own_key(tmp_path)
    assert (killed.public, killed.old) == (public, None)
    assert killed.follow(following, public)
    assert (tmp_path / OLD_FILE).stat().st_mode & 0o777 == 0o600
    assert set(killed.by_slot(following, public, 1)) == {0, 1}
    assert next(iter(killed.by_slot(following, public, 1))) == 1, "the newest first"
    assert set(killed.by_slot(public, "", 0)) == {0}, "a log that is behind"
    assert killed.by_slot("another", "", 0) == {}
    # And when both are valid.
    again = own_key(tmp_path)
    assert again.old is not None
    assert (again.public, again.old.public) == (following, public)
    assert again.told(7, both=True, over=False) == Told(following, 7, public)
    assert ask_for_another(tmp_path) == following, "one change at a time"
    assert again.told(7, both=True, over=True) == Told(following, 7)
    assert not again.follow(following, public)
    assert again.follow(following, "")
    assert not (tmp_path / OLD_FILE).exists()
    assert own_key(tmp_path).public == following


@pytest.mark.parametrize("name", [NEXT_FILE, OLD_FILE])
def test_a_file_that_holds_no_key_stops_nothing_and_is_named(tmp_path: Path, name: str) -> None:
    public = own_key(tmp_path).public
    (tmp_path / name).write_text("hal")
    key = own_key(tmp_path)
    assert key.public == public
    assert str(tmp_path / name) in key.problem
    assert key.told(7, both=True, over=False) == Told(public, 7)
    with pytest.raises(Refused, match="rm "):
        ask_for_another(tmp_path)
    (tmp_path / name).unlink()
    key.look()
    assert key.problem == ""


@given(st.text("abcdefgh", min_size=1, max_size=15), st.integers(1, 65532))
def test_both_ends_find_the_same_devices_by_names_that_fit(tunnel: str, first: int) -> None:
    assert len(set(device_names(tunnel))) == len(PAIRS)
    assert all(len(name) <= 15 for name in device_names(tunnel))
    assert {pair.port(first) for pair in PAIRS} == set(range(first, first + 4))
    assert all(pair.turned.turned == pair for pair in PAIRS)
