"""What is said to somebody who mistyped, or asked about what this log cannot know."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.replay.commands import EVENTS, EXECUTABLE, NODE


def said(path: str, *arguments: str, code: int) -> str:
    """What a command says on standard error."""
    done = subprocess.run(
        [EXECUTABLE, "replay", *arguments, "--archive", path, "--tz", "UTC"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "COLUMNS": "220"},
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr


CIDR = next(e["b_cidr"] for e in EVENTS if e["kind"] == "range.allocated")
TYPED = [
    (["sate"], 2, "Did you mean 'state'"),
    (["history", "nod", "x"], 2, "Did you mean 'node'?"),
    (["plot", "rign", "-o", "x.svg"], 2, "Did you mean 'ring'?"),
    (["log", "--type", "node.jonied"], 0, "did you mean the type node.joined"),
    (["history", "node", NODE + "x"], 1, f"did you mean {NODE}"),
    (["explain", "node", NODE + "x"], 1, f"did you mean {NODE}"),
    (["history", "range", CIDR.split("/")[0]], 1, f"did you mean {CIDR}?"),
    (["state", "--at", "2999-01-01"], 0, "still to come: answered as of event"),
    (["state", "--at", "1999-01-01"], 0, "before event 1, the first one here"),
    (["diff", "-2h", "now"], 0, "what came after it is not known here"),
]


@pytest.mark.parametrize(("command", "code", "hint"), TYPED, ids=[" ".join(command) for command, _, _ in TYPED])
def test_a_near_miss_is_told_what_would_have_hit(command, code, hint, archive):
    assert hint in said(archive, *command, code=code)
