"""The whole CNI chain by the real plugins with ours at its end, the agent there, away and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nodeagent.pods import chain
from tests.nodeagent.pods import PLUGINS
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node, site
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow


def folder_of_plugins(place: Path) -> Path:
    """The host's own standard plugins, and ours installed beside them by the command's own function."""
    place.mkdir()
    for name in ("ptp", "host-local", "portmap", "bandwidth", "loopback"):
        (place / name).symlink_to(Path(PLUGINS, name))
    assert chain.install([str(place)]) == [str(place / "isthmus")]
    assert chain.install([str(place)]) == [], "it is there already"
    return place


class Runtime:
    """What a container runtime does with the agent's file: a small libcni."""

    def __init__(self, node: Node, plugins: Path) -> None:
        self.node, self.plugins = node, plugins
        self.results: dict[str, dict[str, Any]] = {}

    @property
    def file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.node.directory / "cni" / "10-isthmus.conflist").read_text())
        return found

    def add(self, name: str, /, **pod: str) -> str:
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
        file, result = self.file, None
        for plugin in file["plugins"]:
            result = self._call("ADD", file, plugin, name, result, pod)
        self.results[name] = result
        return str(result["ips"][0]["address"]).partition("/")[0]

    def check(self, name: str, /, **pod: str) -> None:
        file = self.file
        assert not file.get("disableCheck")
        for plugin in file["plugins"]:
            self._call("CHECK", file, plugin, name, self.results[name], pod)

    def delete(self, name: str) -> None:
        file = self.file
        for plugin in reversed(file["plugins"]):
            self._call("DEL", file, plugin, name, self.results[name], {})
        sh(f"ip netns del {name}")

    def own(self, command: str, **config: Any) -> tuple[int, dict[str, Any]]:
        """Our plugin alone: STATUS and GC, as a runtime with 1.1.0 asks."""
        (plugin,) = (each for each in self.file["plugins"] if each["type"] == "isthmus")
        done = self._run(
            "isthmus", {**plugin, "cniVersion": "1.1.0", "name": "isthmus", **config}, command, "c-x", {}
        )
        return done.returncode, json.loads(done.stdout or "{}")

    def _call(
        self, command: str, file: dict[str, Any], plugin: dict[str, Any], name: str,
        result: dict[str, Any] | None, pod: dict[str, str],
    ) -> dict[str, Any]:  # fmt: skip
        config = {**plugin, "cniVersion": file["cniVersion"], "name": file["name"]}
        if result is not None:
            config["prevResult"] = result
        if "bandwidth" in plugin.get("capabilities", ()) and command == "ADD":
            config["runtimeConfig"] = {"bandwidth": {"ingressRate": 10**9, "ingressBurst": 10**6}}
        done = self._run(plugin["type"], config, command, name, pod)
        assert done.returncode == 0, f"{command} {plugin['type']}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout) if command == "ADD" else {}

    def _run(
        self, program: str, config: object, command: str, name: str, pod: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        arguments = ";".join(
            ["IgnoreUnknown=1", *(f"K8S_POD_{key.upper()}={value}" for key, value in pod.items())]
        )
        return subprocess.run(
            ["ip", "netns", "exec", self.node.name, str(self.plugins / program)],
            input=json.dumps(config), capture_output=True, text=True, check=False, timeout=30,
            env={**os.environ, "CNI_COMMAND": command, "CNI_CONTAINERID": name, "CNI_IFNAME": "eth0",
                 "CNI_NETNS": f"/run/netns/{name}", "CNI_PATH": str(self.plugins), "CNI_ARGS": arguments},
        )  # fmt: skip


def book(node: Node) -> dict[str, dict[str, Any]]:
    """The pods that the agent knows to be there, by container."""
    path = node.directory / "state" / "pods.json"
    return {fact["container"]: fact for fact in json.loads(path.read_text())["open"]} if path.exists() else {}


def unsent(node: Node) -> list[dict[str, Any]]:
    """What no controller has taken yet."""
    found: list[dict[str, Any]] = json.loads((node.directory / "state" / "pods.json").read_text())["unsent"]
    return found


@inside
def test_pods_come_and_go_with_the_agent_there_and_away() -> None:
    with site("a", start=False) as place:
        (a,) = place.nodes.values()
        runtime = Runtime(a, folder_of_plugins(place.directory / "bin"))
        options = ("--cni-bin-dir", str(runtime.plugins), "--heartbeat", "0.5")
        a.start(*options, "--cni-bandwidth").ready()
        file = runtime.file
        assert [each["type"] for each in file["plugins"]] == ["ptp", "portmap", "bandwidth", "isthmus"]
        old = "1.1.0" not in chain.versions(Path(PLUGINS, "ptp"))
        assert file.get("cniVersions") == (None if old else ["1.0.0", "1.1.0"]), "only what every plugin knows"
        assert file["disableCheck"] is True, "bandwidth crashes in CHECK"

        # The agent is there: told at once, checked, told of the end.
        first = runtime.add("c-one", namespace="shop", name="web-1", uid="u-1")
        known = book(a)["c-one"]
        assert (known["address"], known["pod"]) == (first, {"namespace": "shop", "name": "web-1", "uid": "u-1"})
        assert "sure" not in known, "told is the default"
        assert "tbf" in a.run("tc qdisc show")
        assert runtime.own("STATUS") == (0, {})
        second = runtime.add("c-two", namespace="shop", name="\x1b[2Jweb")
        assert book(a)["c-two"]["address"] == second
        assert not book(a)["c-two"].get("pod"), "what is no name is none"
        runtime.delete("c-two")
        assert "c-two" not in book(a)

        # The controllers have it, and whoever asks for the address learns of the pod.
        def who(address: str, moment: str = "now") -> dict[str, Any]:
            found = place.isthmus("replay", "who", "--ip", address, "--at", moment, "--json")
            pod: dict[str, Any] = json.loads(found.stdout)["pod"]
            return pod if pod["state"] == "known" else {}

        pod = until(lambda: who(first), "the pod is named")
        then = datetime.now(UTC).isoformat()
        assert (pod["namespace"], pod["name"], pod["uid"], pod["node"]) == ("shop", "web-1", "u-1", "a")
        assert (pod["began"], pod["until"]) == ("told", None)
        text = place.isthmus("replay", "who", "--ip", first).stdout
        assert "shop/web-1" in text
        assert "told by the container runtime" in text
        before = json.loads(place.isthmus("replay", "who", "--ip", second, "--json").stdout)["pod"]
        assert before["state"] == "none", "it has ended"
        until(lambda: not unsent(a), "all of it is taken")

        # Killed: nothing is forgotten, and pods come and go without it.
        a.stop(signal.SIGKILL)
        began = time.monotonic()
        third = runtime.add("c-three", namespace="shop", name="web-3", uid="u-3")
        assert time.monotonic() - began < 30, "it does not wait for what is not there"
        a.run(
            f"touch -d '1 minute ago' {a.directory}/state/pod-addresses/isthmus/{third}"
        )  # it is no longer young
        runtime.delete("c-one")
        assert runtime.own("STATUS") == (0, {}), "pods can be attached, and packets pass"
        a.start(*options).ready()
        until(lambda: "c-one" not in book(a), "the end that was missed is found")
        pod = until(
            lambda: who(first, then) if who(first, then).get("until") else {}, "the controllers have that end"
        )
        assert pod["ended"] == "found"
        until(lambda: "c-three" in book(a), "the pod that was missed is found", 60)
        assert book(a)["c-three"]["sure"] == "found"
        assert not book(a)["c-three"].get("pod"), "nobody told its name"
        assert [each["type"] for each in runtime.file["plugins"]] == ["ptp", "portmap", "isthmus"]
        runtime.check("c-three", namespace="shop", name="web-3", uid="u-3")
        assert book(a)["c-three"]["pod"]["name"] == "web-3", "now somebody has"

        # Stopped (it hangs): the runtime waits no longer than the deadline.
        assert a.agent is not None
        a.agent.send_signal(signal.SIGSTOP)
        runtime.add("c-four", namespace="shop", name="web-4")
        a.agent.send_signal(signal.SIGCONT)
        # GC: what the runtime does not know has ended.
        attachments = [{"containerID": "c-three", "ifname": "eth0"}]
        until(lambda: "c-four" in book(a), "what came while it hung is served late, or found", 60)
        assert runtime.own("GC", **{"cni.dev/valid-attachments": attachments}) == (0, {})
        assert set(book(a)) == {"c-three"}

        # An address that is not of this node's range is refused, since another node may give it to its pods.
        stray = {"cniVersion": "1.1.0", "ips": [{"address": "172.16.77.2/26"}]}
        assert runtime.own("ADD", prevResult=stray)[1]["code"] == 11
        a.stop()
        # Taken away: the file is as it always was, and the socket is gone with the agent.
        assert not (a.directory / "state" / "cni.sock").exists()
        shutil.move(runtime.plugins / "isthmus", place.directory / "isthmus")
        a.start(*options, "--no-pod-facts").ready()
        until(lambda: [each["type"] for each in runtime.file["plugins"]] == ["ptp", "portmap"], "without ours")
        assert not {"cniVersions", "disableCheck"} & set(runtime.file)
        until(lambda: not (a.directory / "state" / "pods.json").exists(), "switched off, nothing is kept")
