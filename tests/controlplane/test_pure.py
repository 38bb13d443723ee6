"""Deciding and folding are pure: the clock, randomness and I/O are forbidden, and digests agree everywhere."""

from __future__ import annotations

import ast
import builtins
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controlplane.cluster.decide import RULES
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve, fold
from controlplane.cluster.state import ClusterState
from events.protocol.commands import (
    COMMANDS,
)
from events.types import EVENT_TYPES, EventsParked
from tests.controlplane.every_kind import commands, play
from tests.controlplane.fixed_history import GOLDEN, digests
from tests.controlplane.world import World

ROOT = Path(__file__).resolve().parents[2]


def test_the_history_uses_every_command_and_writes_every_event() -> None:
    assert {type(command) for command in commands()} == set(RULES)
    assert set(COMMANDS) <= set(RULES)
    _, log = play()
    # Parking is no decision: nothing but what cannot be followed leads to it (tests/service/test_parking.py).
    assert {type(event) for event in log} == set(EVENT_TYPES) - {EventsParked}


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Clock, randomness and I/O raise when touched, even where the error would be swallowed."""
    touched: list[str] = []

    def trap(name: str) -> Any:
        def touch(*args: object, **kwargs: object) -> Any:
            touched.append(name)
            raise AssertionError(f"{name} was touched")

        return touch

    for module, names in (
        (time, ("time", "time_ns", "monotonic", "monotonic_ns", "sleep")),
        (random, ("random", "randint", "choice", "shuffle", "getrandbits", "uniform")),
        (secrets, ("token_bytes", "token_hex", "randbelow")),
        (uuid, ("uuid1", "uuid4")),
        (os, ("urandom", "open", "stat", "listdir", "getenv", "write", "read")),
        (socket, ("socket", "create_connection", "getaddrinfo")),
        (subprocess, ("Popen",)),
        (builtins, ("open", "input")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, trap(f"{module.__name__}.{name}"))
    yield touched
    monkeypatch.undo()


def test_deciding_and_folding_touch_no_clock_no_randomness_and_no_io(forbidden: list[str]) -> None:
    play()
    assert forbidden == []


CORE = (
    "controlplane.cluster.decide, controlplane.cluster.evolve, controlplane.cluster.invariants, "
    "controlplane.controller.answers"
)

ALLOWED = {
    "__future__", "base64", "binascii", "bisect", "collections", "datetime", "functools", "hashlib", "heapq",
    "itertools", "math", "re",
    "types", "typing", "zlib", "urllib", "msgspec", "netaddr", "controlplane", "events",
}  # fmt: skip
"""Everything that the core may import; none of it has a clock, a dice or a handle but datetime.now."""

SHELL = {"events/ids.py", "events/__init__.py"}
"""Imported on the way, called by the shell alone: ids, and what says which libraries are read late."""


def core_modules() -> list[Path]:
    """The files of decide, evolve and of everything of ours that they import."""
    code = (
        f"import sys, json, {CORE}\n"
        "ours = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('controlplane', 'events')]\n"
        "print(json.dumps([f for f in ours if f]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in json.loads(out.stdout)]


def test_the_core_imports_nothing_impure_and_asks_no_clock() -> None:
    modules = [path for path in core_modules() if "/".join(path.parts[-2:]) not in SHELL]
    assert {"decide.py", "evolve.py", "nodes.py", "time.py", "invariants.py"} <= {path.name for path in modules}
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute):
                assert node.attr not in {"now", "utcnow", "today"}, f"{path}:{node.lineno} asks a clock"
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"open", "print", "input", "hash", "id"}, (
                    f"{path}:{node.lineno}: {node.func.id}"
                )
            for name in names:
                assert name.split(".")[0] in ALLOWED, f"{path}:{node.lineno} imports {name}"


def test_the_core_needs_neither_the_bus_client_nor_the_database() -> None:
    code = (
        f"import sys, {CORE}\n"
        "heavy = {'nats', 'aiosqlite', 'sqlite3', 'asyncio', 'pyroute2', 'opentelemetry', 'rich', 'click'}\n"
        "bad = heavy & set(sys.modules)\n"
        "print(sorted(bad))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- the same digest everywhere ----------------------------------------------------------------------

_DIGEST = "from tests.controlplane.fixed_history import digests; print(digests())"


def _elsewhere(python: str, seed: str, path: list[str]) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(ROOT), *path])}
    out = subprocess.run(
        [python, "-c", _DIGEST],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout.strip()


def test_the_digest_of_a_fixed_history_does_not_change_between_releases() -> None:
    assert digests().split()[-1].startswith(GOLDEN)


@pytest.mark.parametrize("seed", ["0", *(pytest.param(seed, marks=pytest.mark.slow) for seed in ("1", "4711"))])
def test_the_digest_is_the_same_in_another_process_with_another_hash_seed(seed: str) -> None:
    assert _elsewhere(sys.executable, seed, []) == digests()


def _other_pythons() -> list[str]:
    """Interpreters of other supported versions on this machine."""
    found = []
    for minor in range(11, 16):
        if minor == sys.version_info.minor:
            continue
        for python in _candidates(f"python3.{minor}"):
            probe = subprocess.run(
                [python, "-c", "import sys; print(sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if probe.returncode == 0 and probe.stdout.strip() == f"(3, {minor})":
                found.append(python)
                break
    return found


NEEDED = ("msgspec", "netaddr")
"""The packages that the core imports."""


def _has_what_is_needed(python: str) -> bool:
    probe = subprocess.run([python, "-c", f"import {', '.join(NEEDED)}"], capture_output=True, check=False)
    return probe.returncode == 0


def _candidates(name: str) -> list[str]:
    on_path = shutil.which(name)
    versions = sorted(Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}*/bin/python"))
    return [*([on_path] if on_path else []), *map(str, versions)]


@pytest.mark.slow
def test_the_digest_is_the_same_in_every_other_python_that_is_installed(tmp_path: Path) -> None:
    tried = SimpleNamespace(agreed=0, left_out=[])
    for python in _other_pythons():
        packages = tmp_path / Path(python).parent.parent.name
        install = [python, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
        done = subprocess.run(
            [*install, "--target", str(packages), *NEEDED],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode != 0 and not _has_what_is_needed(python):
            tried.left_out.append(python)  # it has no pip, or there is no network
            continue
        assert _elsewhere(python, "7", [str(packages)]) == digests()
        tried.agreed += 1
    left_out = f"without {' or '.join(NEEDED)}, and not installable: {', '.join(tried.left_out) or 'none'}"
    if tried.left_out and not tried.agreed:
        pytest.skip(left_out)
    print(f"{tried.agreed} other Python versions agreed; {left_out}")


def test_forks_folds_and_order_of_arrival_do_not_show_in_the_digest() -> None:
    state, log = play()
    expected = state_digest(state)
    assert state_digest(fold(ClusterState("prod"), enumerate(log, 1))) == expected
    assert state_digest(state.fork()) == expected
    middle = fold(ClusterState("prod"), enumerate(log[:20], 1)).fork()
    fold(middle, enumerate(log[20:], 21))
    assert state_digest(middle) == expected


def test_every_event_shows_in_the_digest() -> None:
    _, log = play()
    state = ClusterState("prod")
    seen = {state_digest(state)}
    for sequence, event in enumerate(log, 1):
        evolve(state, sequence, event)
        digest = state_digest(state)
        assert digest not in seen
        seen.add(digest)


def test_two_clusters_with_the_same_history_differ() -> None:
    digests = set()
    for name in ("prod", "stage"):
        world = World(name, container_cidr="10.0.0.0/24", pods_per_node=16)
        digests.add(state_digest(world.state))
    assert len(digests) == 2
