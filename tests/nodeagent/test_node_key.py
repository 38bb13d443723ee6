"""The node's own key: kept as a secret, the same after a restart, and good for proving who one is."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from events.errors import Refused
from events.types import NodeKeyChanged
from nodeagent.clean import new_identity
from nodeagent.membership.cache import Cache
from nodeagent.membership.node_key import KEY_FILE, new_key, own_key
from tests.nodeagent.logs import DEFINED, folded, joined


def test_the_private_key_is_for_this_account_alone_and_stays(tmp_path: Path) -> None:
    made = own_key(tmp_path)
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert own_key(tmp_path).public == made.public
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("nonsense")
    with pytest.raises(Refused, match="holds no key"):
        own_key(tmp_path)
    new_identity(tmp_path)
    assert own_key(tmp_path).public != made.public, "a cloned machine gets a key of its own"


def test_two_nodes_share_a_secret_that_no_third_one_has(tmp_path: Path) -> None:
    one, other, third = (new_key(tmp_path) for _ in range(3))
    shared = one.shared_secret(other.public)
    assert shared == other.shared_secret(one.public)
    assert len(shared) == 32
    assert shared not in {third.shared_secret(one.public), third.shared_secret(other.public)}
    for weak in (b64encode(bytes(32)).decode(), "", "nonsense"):
        with pytest.raises(ValueError, match=r".+"):
            one.shared_secret(weak)


def test_a_view_knows_its_members_keys_also_after_a_restart(tmp_path: Path) -> None:
    log = [DEFINED, *joined(0), *joined(1)]
    log += [
        NodeKeyChanged(node=f"n{number}", uid=uid, key=uid, port=7) for number, uid in ((0, "u0"), (1, "old"))
    ]
    view = folded(log)
    cache = Cache(tmp_path)
    cache.snapshot(view)
    for found in (view, cache.load("c", "n0", "u0")):
        assert [(one.key, one.port) for one in found.members.values()] == [("u0", 7), ("", 0)]
