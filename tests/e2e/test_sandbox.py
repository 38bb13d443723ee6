"""Whatever ends the sandbox, nothing of it is left; and what runs inside cannot touch the host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_for

pytestmark = pytest.mark.netns

# Runs `body` (which may use `say`) as the sandbox's worker; `started` prints the init's PID first.
HARNESS = """
import os, pathlib, signal, subprocess, sys, threading
from deploy.lab.machines import sandbox

def say(text):
    os.write(1, f"{{text}}\\n".encode())  # in one piece: three processes share the pipe

def worker():
{body}
    return 0

sys.exit(sandbox.run(worker, lambda init, user_namespace: say(f"init {{init}} {{user_namespace}}")))
"""


@contextmanager
def start(body: str, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    source = HARNESS.format(body="\n".join("    " + line for line in body.splitlines()))
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def run(body: str, prefix: Sequence[str] = ()) -> tuple[int, list[str]]:
    with start(body, prefix) as process:
        out, _ = process.communicate(timeout=60)
    return process.returncode, [line for line in out.splitlines() if not line.startswith("init ")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes_of(namespace: str) -> list[int]:
    """Every process of the host in that PID namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "ns" / "pid").readlink()) == namespace:
                found.append(int(entry.name))
        except (FileNotFoundError, PermissionError):
            continue
    return found


SLEEPERS = """
for _ in range(3):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
say("up")
threading.Event().wait()
"""


def interfaces() -> set[str]:
    return {entry.name for entry in Path("/sys/class/net").iterdir()}


def read_until(process: subprocess.Popen[str], word: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.strip() == word:
            return lines
    raise AssertionError(f"ended before {word!r}: {lines}")


def sandbox_of(lines: list[str]) -> str:
    return str(Path(f"/proc/{init_of(lines)}/ns/pid").readlink())


def init_of(lines: list[str]) -> int:
    return next(int(line.split()[1]) for line in lines if line.startswith("init "))


def test_the_workers_exit_code_is_the_callers() -> None:
    assert run("return 7")[0] == 7


def test_an_unexpected_error_shows_and_fails() -> None:
    code, lines = run("raise ValueError('as planned')")
    assert code == 70
    assert any("as planned" in line for line in lines)


def test_inside_there_is_only_a_loopback_and_an_empty_run() -> None:
    code, lines = run(
        'say(subprocess.check_output(["ip", "-br", "link"], text=True).split()[0])\n'
        'say(sorted(os.listdir("/run")))\n'
        "say(os.getppid())"
    )
    assert code == 0
    assert lines == ["lo", "['netns']", "1"]


def test_links_and_namespaces_made_inside_are_not_seen_outside() -> None:
    links, netns = interfaces(), Path("/run/netns").exists()
    code, _ = run(
        'subprocess.run(["ip", "netns", "add", "one"], check=True)\n'
        'subprocess.run(["ip", "link", "add", "isthmus-test", "type", "bridge"], check=True)\n'
        'pathlib.Path("/run/isthmus-test").write_text("inside")'
    )
    assert code == 0
    assert interfaces() == links
    assert Path("/run/netns").exists() == netns
    assert not Path("/run/isthmus-test").exists()


def test_an_ordinary_users_sandbox_works_by_a_user_namespace() -> None:
    bounded = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    body = 'subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)\nsay(os.getuid())'
    with start(body, bounded if os.getuid() == 0 else []) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert out.splitlines()[0].endswith("True")
    assert out.splitlines()[-1] == "0"


@pytest.mark.parametrize("whom", ["caller", "worker"])
def test_sigkill_leaves_no_process_behind(whom: str) -> None:
    with start(SLEEPERS) as process:
        lines = read_until(process, "up")
        init, inside = init_of(lines), processes_of(sandbox_of(lines))
        assert len(inside) == 5  # init, worker, three sleepers
        worker = int(Path(f"/proc/{init}/task/{init}/children").read_text())
        os.kill(process.pid if whom == "caller" else worker, signal.SIGKILL)
        process.wait(timeout=60)
        wait_for(lambda: not any(alive(pid) for pid in inside))
        assert process.returncode == (-signal.SIGKILL if whom == "caller" else 128 + signal.SIGKILL)


def test_a_stop_signal_reaches_the_worker_which_ends_in_order() -> None:
    body = """
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
say("up")
while not stop.wait(0.05): pass
say("in order")
return 3
"""
    with start(body) as process:
        read_until(process, "up")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert "in order" in out
    assert process.returncode == 3


def test_a_second_stop_signal_ends_a_worker_that_does_not_listen() -> None:
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "1000"])
say("up")
threading.Event().wait()
"""
    with start(body) as process:
        inside = processes_of(sandbox_of(read_until(process, "up")))
        process.send_signal(signal.SIGTERM)
        # Two signals that are pending together count as one: the first must have been taken.
        wait_for(lambda: not pending(process.pid, signal.SIGTERM))
        assert all(alive(pid) for pid in inside)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        wait_for(lambda: not any(alive(pid) for pid in inside))


def pending(pid: int, number: int) -> bool:
    """Whether the signal was sent to the process and not yet taken."""
    masks = [
        int(line.split()[1], 16)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith(("SigPnd:", "ShdPnd:"))
    ]
    return any(mask >> (number - 1) & 1 for mask in masks)
