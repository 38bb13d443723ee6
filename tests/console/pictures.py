"""Takes the pictures of the README and the guide anew: ``make pictures``.

What they show is real: the lab (a bus, a controller, an agent for each node, each in namespaces of its
own), nodes that leave and join again while it runs, kernel rows that somebody deletes, and one agent that
is held still, so that there is somebody to wait for. Needs what the lab and the console's tests need.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import kill
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.console.browser import chromium

ISTHMUS = str(Path(sys.executable).parent / "isthmus")
LAB = "pictures"
CLOUD, EXTERNAL, ROUNDS = 14, 8, 2
PICTURES = Path(__file__).parents[2] / "deploy" / "docs"
SIZE_MAX = 200_000
"""Bytes of one picture."""


class RealLab:
    """The running lab: commands on its machines, questions to its console, agents that come and go."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._agents: list[subprocess.Popen[bytes]] = []

    def on(self, place: str, *command: str) -> str:
        """Run a command on a machine of the lab. Raises CalledProcessError."""
        line = [ISTHMUS, "lab", "exec", "--name", LAB, place, *command]
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=60) as response:
            return json.load(response)

    def wait(self, what: str, condition: Any, within_s: float = 60.0) -> None:
        """Raises TimeoutError."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {within_s:g} s for {what}")
            time.sleep(0.05)

    def nodes(self) -> dict[str, Any]:
        return {node["name"]: node for node in self.ask("nodes?limit=1000")["nodes"]}

    def current(self) -> bool:
        """Whether every member's agent has applied everything."""
        head = self.ask("overview")["position"]["sequence"]
        return all(node.get("applied", 0) >= head for node in self.nodes().values())

    def pid(self, node: str) -> int:
        """The agent's process, seen from here."""
        found = subprocess.run(
            ["pgrep", "-f", rf"^\S+ \S+isthmus agent --node {node} .*/{LAB}/"],
            check=True,
            capture_output=True,
            text=True,
        )
        return int(found.stdout.split()[0])

    def _gone(self, pid: int) -> bool:
        for agent in self._agents:
            agent.poll()  # one of ours that has ended stays in the list of processes until it is asked
        return not Path(f"/proc/{pid}").exists()

    def come_again(self, node: str) -> None:
        """The node leaves for good and comes again, with the same agent as before: it gets the next range."""
        pid = self.pid(node)
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
        state = line[line.index("--state-dir") + 1]
        kill(pid, signal.SIGTERM)
        self.wait(f"the agent of {node} to stop", lambda: self._gone(pid))
        self.on(node, "isthmus", "agent", "leave", "--yes", "--state-dir", state, "--reason", "replaced")
        again = [ISTHMUS, "lab", "exec", "--name", LAB, node, *line]
        quiet = subprocess.DEVNULL
        self._agents.append(subprocess.Popen(again, stdin=quiet, stdout=quiet, stderr=quiet))
        self.wait(f"{node} to be back", lambda: self.nodes().get(node, {}).get("state") == "ready")

    def disturb(self, node: str) -> None:
        """Somebody deletes a route of ours; the agent puts it back."""
        route = next(line for line in self.on(node, "ip", "route").splitlines() if "dev isthmus" in line)
        self.on(node, "ip", "route", "del", *route.removesuffix(" onlink").split())

    def end(self) -> None:
        for agent in self._agents:
            agent.send_signal(signal.SIGCONT)  # nsenter stops with the agent that was held still
            agent.terminate()
        for agent in self._agents:
            with suppress(subprocess.TimeoutExpired):
                agent.wait(timeout=60)


@contextmanager
def real_lab() -> Iterator[RealLab]:
    """The lab, proven and kept up until the block is left."""
    line = [ISTHMUS, "lab", "--name", LAB, "--keep", "--http", "0", "--pods", "1"]
    lab = subprocess.Popen(
        [*line, "--cloud", str(CLOUD), "--external", str(EXTERNAL)],
        stdout=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        assert lab.stdout is not None
        url = ""
        for said in lab.stdout:
            found = re.search(r"The lab stays up\. The console: (\S+)", said)
            if found:
                url = found[1]
                break
        if not url:
            raise SystemExit("the lab did not come up; see: isthmus lab --keep")
        running = RealLab(url)
        try:
            yield running
        finally:
            running.end()
    finally:
        lab.terminate()
        lab.wait(timeout=120)


def take(page: Page, name: str) -> None:
    """One picture. Raises ValueError when it is too large for a README."""
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement?.blur()")
    page.wait_for_timeout(400)
    size = len(page.screenshot(path=PICTURES / name))
    print(f"{name}: {size:,} bytes")
    if size > SIZE_MAX:
        raise ValueError(f"{name} has {size:,} bytes, more than {SIZE_MAX:,}")


@contextmanager
def opened(browser: Browser, url: str, path: str, *, theme: str, height: int = 900) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": height}, color_scheme=theme)
    try:
        page = context.new_page()
        page.goto(f"{url}{path}")
        expect(page.locator("main h1").first).to_be_attached()
        page.wait_for_timeout(1200)
        yield page
    finally:
        context.close()


def pictures(lab: RealLab, browser: Browser) -> None:
    names = sorted(lab.nodes())
    lab.on("controller", "isthmus", "clb", "reserve", "edge", "--subnet", "172.16.0.0/24")
    for turn in range(ROUNDS):
        for node in names[turn % 2 :: 2]:
            lab.come_again(node)
    lab.disturb(names[2])
    lab.wait("every agent to be current", lab.current)
    before = lab.ask("overview")["position"]["sequence"]
    lab.come_again(names[0])
    lab.wait("every agent to be current", lab.current)
    joined = next(e for e in lab.ask("events?limit=20")["events"] if e["type"] == "node.joined.v1")
    lab.wait("the agents' spans", lambda: len(lab.ask(f"traces/{joined['trace_id']}")["rows"]) > 20)
    with opened(browser, lab.url, f"/#/traces/{joined['trace_id']}", theme="light", height=840) as page:
        expect(page.locator(".wf summary").nth(20)).to_be_attached()
        take(page, "console-trace.png")

    # One agent is held still while a node leaves: everybody can see for whom its range waits.
    held = lab.pid(names[-1])
    kill(held, signal.SIGSTOP)
    try:
        lab.on(
            "controller", "isthmus", "node", "remove", "--yes", names[3], "--reason", "returned to the vendor"
        )
        lab.wait("one to be behind", lambda: lab.ask("overview")["agents_behind"] == 1)
        for theme in ("dark", "light"):
            with opened(browser, lab.url, "/", theme=theme) as page:
                take(page, f"console-overlay-{theme}.png")
    finally:
        kill(held, signal.SIGCONT)
    with opened(browser, lab.url, f"/#/?at={before - 20}", theme="light", height=620) as page:
        expect(page.locator("#past")).to_contain_text("You are looking at")
        take(page, "console-past.png")


def main() -> None:
    with real_lab() as lab, chromium() as browser:
        pictures(lab, browser)


if __name__ == "__main__":
    main()
