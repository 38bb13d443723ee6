"""One lab in which everything that can stand in a packet's way does: the verdict names each by its cause."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deploy.lab.checks.mesh import BREAKS, chosen
from deploy.lab.cli import KINDS
from events.errors import Usage
from tests.e2e.labs import isthmus, proven

WANTED = {
    "cloud-1's own firewall drops UDP port 8472": (
        "node", "direction", "nothing passes from the others to cloud-1", "UDP port 8472 is dropped here",
    ),
    "cloud-2's own firewall forwards nothing": (
        "node", "pods", "node cloud-2 does not forward packets to or from pods", "not forwarded here",
    ),
    "cloud-3 is dead": ("node", "silent", "node cloud-3 is reached by nobody", "no report of cloud-3"),
    "cloud-4's cable carries 1400 bytes": (
        "node", "large", "small ones do: node cloud-4", "bytes do not arrive",
    ),
    "cloud-5 routes cloud-6's range elsewhere": (
        "pair", "", "cloud-5", "leave by eth0 (table 199), not by isthmus",
    ),
    "nothing from cloud-6 arrives at cloud-7": (
        "pair", "direction", "nothing passes from cloud-6 to cloud-7", "answers no datagram",
    ),
    "another program writes cloud-7's FDB row of cloud-8": (
        "pair", "direction", "nothing passes from cloud-7 to cloud-8", "172.16.0.250, the log says 172.16.0.18",
    ),
    "UDP port 8472 is closed between the sites": (
        "sites", "silent", "sites idc and vpc do not reach each other", "(UDP port 8472)",
    ),
}  # fmt: skip
"""What is broken → scope, fault, a part of the sentence, and the cause in the evidence or in a trace."""


@pytest.mark.netns
@pytest.mark.bus
@pytest.mark.slow
def test_the_verdict_names_whatever_is_broken_and_the_end_of_it(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "150"}
    line = ("lab", "--once", "--json", "--break", "all", "--cloud", "8", "--pods", "1")
    done = isthmus(*line, env=env, timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = proven(json.loads(done.stdout))
    named = {name.removeprefix("The verdict names it: "): check for name, check in checks.items()}
    assert named.keys() >= WANTED.keys()
    assert len(WANTED) == len(BREAKS)
    for broken, (scope, fault, said, cause) in WANTED.items():
        found = named[broken]["measured"]
        assert (found["scope"], found["fault"]) == (scope, fault or found["fault"]), found
        assert said in found["sentence"], found
        assert any(cause in text for text in (*found["evidence"], *found["hops"])), found
    assert "Mended: every path is restored, and recorded so" in checks


def test_kinds_are_the_same_everywhere_and_get_the_nodes_that_they_need() -> None:
    assert tuple(BREAKS) == KINDS
    assert chosen(["port"], 3) == ("port",)
    assert chosen(["route", "route", "filter"], 3) == ("filter", "route")
    with pytest.raises(Usage, match="--break all --cloud 8"):
        chosen(["all"], 3)
