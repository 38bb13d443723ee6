"""Labs as a user runs them, and what they could leave on the host."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ISTHMUS = str(Path(sys.executable).with_name("isthmus"))
AS_USER = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
"""Without CAP_SYS_ADMIN root is an ordinary user to the kernel's namespaces: the lab needs a user namespace."""

DEADLINE_S = 180
CHURN = Path(__file__).parent.parent / "data" / "node-churn" / "4-node_us-east-2a_v100_1.json"


def isthmus(
    *arguments: str, env: dict[str, str], timeout_s: float = DEADLINE_S
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ISTHMUS, *arguments], env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@contextmanager
def lab(*arguments: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A lab in the background, in a session of its own; killed at the end if it still runs."""
    process = subprocess.Popen(
        [ISTHMUS, "lab", *arguments], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str, *, seconds: float = DEADLINE_S) -> str:
    assert process.stdout is not None
    seen = ""
    deadline = time.monotonic() + seconds
    while text not in seen:
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{text!r} did not come in time:\n{seen}"
        chunk = os.read(process.stdout.fileno(), 65536).decode()
        assert chunk, f"ended before {text!r}:\n{seen}"
        seen += chunk
    return seen


def footprint() -> set[str]:
    """What a lab could leave on the host: links, named namespaces, CNI's files, nftables tables."""
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    return {
        *(f"link {entry.name}" for entry in Path("/sys/class/net").iterdir()),
        *(f"netns {entry.name}" for entry in Path("/run/netns").glob("*")),
        *(f"cni {entry}" for entry in (*Path("/var/lib/cni").rglob("*"), *Path("/etc/cni").rglob("*"))),
        *tables.splitlines(),
    }


def processes_in(directory: Path) -> list[int]:
    """Processes whose command line names the directory: the lab's controller and agents."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(directory).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def remains(tmp_path: Path) -> list[str]:
    return [str(path) for path in tmp_path.rglob("*") if not path.name.startswith("isthmus-lab-")]


def proven(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert document["ok"], json.dumps(document, indent=2)
    return {check["name"]: check for check in document["checks"]}
