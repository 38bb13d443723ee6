"""The C program at the end of the CNI chain: what is shipped is its source's, and bad input breaks nothing."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from events.errors import BadRequest
from nodeagent.pods import chain, plugin
from nodeagent.pods.facts import PodFacts
from nodeagent.pods.plugin.answers import PluginAnswers, Standing
from nodeagent.pods.plugin.requests import PodName, addresses_of, parse, pod_of
from nodeagent.pods.plugin.server import PluginSocket
from tests.waiting import until as until_async

FOLDER = Path(plugin.__file__).parent
COMPILER = "14"
"""The major version of clang and lld that the shipped programs are made by: Debian 12's."""
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "172.16.0.2/26", "gateway": "172.16.0.1"}], "dns": {}}
CONFIG = {"cniVersion": "1.0.0", "name": "isthmus", "type": "isthmus", "prevResult": RESULT}
CALL = {
    "CNI_CONTAINERID": "abc",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/x",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1",
}


def _version(program: str) -> str:
    found = shutil.which(program)
    text = (
        subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout if found else ""
    )
    match = re.search(r"(?:version|LLD) (\d+)", text)
    return match[1] if match else ""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped program of this machine, runnable."""
    path = tmp_path_factory.mktemp("bin") / "isthmus"
    path.write_bytes(chain.shipped())
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same source with the address and undefined-behaviour sanitizers, and a short wait for the agent."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc for the sanitizers")
    path = tmp_path_factory.mktemp("checked") / "isthmus"
    flags = "-DISTHMUS_HOSTED -D_GNU_SOURCE -DAGENT_MS=150 -O1 -g -Wall -Wextra -Werror -std=c11"
    sanitizers = "-fsanitize=address,undefined -fno-sanitize-recover=all"
    command = ["gcc", *flags.split(), *sanitizers.split(), str(FOLDER / "isthmus.c"), "-o", str(path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return path


def call(path: Path, command: str, given: object, **more: str) -> subprocess.CompletedProcess[bytes]:
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    env = {**CALL, "CNI_COMMAND": command, **more}
    return subprocess.run([path], input=body, capture_output=True, env=env, timeout=30, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not (_version("clang") and _version("ld.lld")), reason="needs clang and lld")
def test_the_programs_are_built_from_their_source(tmp_path: Path) -> None:
    subprocess.run(["bash", str(FOLDER / "build.sh"), str(tmp_path)], check=True, capture_output=True)
    if {_version("clang"), _version("ld.lld")} != {COMPILER}:
        pytest.skip(f"only clang and lld {COMPILER} build the same bytes")
    for processor in ("x86_64", "aarch64"):
        same = (tmp_path / f"isthmus-{processor}").read_bytes() == (
            FOLDER / f"isthmus-{processor}"
        ).read_bytes()
        assert same, "run nodeagent/pods/plugin/build.sh and commit what it makes"


def test_it_needs_nothing_of_its_host() -> None:
    for name in ("isthmus-x86_64", "isthmus-aarch64"):
        content = (FOLDER / name).read_bytes()
        assert content[:4] == b"\x7fELF"
        assert len(content) < 64 * 1024
        for word in (b"ld-linux", b"libc.so", b"GLIBC"):
            assert word not in content, name


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("qemu-aarch64-static") is None,
    reason="needs qemu-user-static",
)
def test_the_other_processors_program_answers_too() -> None:
    done = subprocess.run(
        ["qemu-aarch64-static", FOLDER / "isthmus-aarch64"],
        input=json.dumps(CONFIG).encode(), capture_output=True, env={**CALL, "CNI_COMMAND": "ADD"}, check=False,
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)) == (0, RESULT)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_without_an_agent_everything_goes_on(program: Path, tmp_path: Path, command: str) -> None:
    for where in (tmp_path / "none.sock", tmp_path / ("x" * 200), tmp_path):
        done = call(program, command, {**CONFIG, "socket": str(where)})
        assert (done.returncode, done.stderr) == (0, b"")
        assert (json.loads(done.stdout) == RESULT) if command == "ADD" else (done.stdout == b"")


def test_it_says_which_versions_it_knows(program: Path) -> None:
    assert chain.versions(program) == ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.mark.parametrize(
    ("command", "given", "code"),
    [
        ("ADD", b"", 6),
        ("ADD", b"[]", 6),
        ("ADD", b"not JSON", 6),
        ("ADD", json.dumps(CONFIG).encode()[:-1], 6),
        ("ADD", json.dumps(CONFIG).encode() + b"}", 6),
        ("ADD", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", 6),
        ("ADD", b'{"a":"' + b"x" * (1 << 20) + b'"}', 6),
        ("ADD", b'{"cniVersion":"1.0.0"}', 7),
        ("ADD", b'{"prevResult":null}', 7),
        ("ADD", b'{"x":{"prevResult":{}}}', 7),
        ("STATUS", b'{"a":"\x01"}', 6),
        ("", b"{}", 4),
        ("add", b"{}", 4),
        ("VERSIONS", b"{}", 4),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_specifications_codes(
    program: Path, checked: Path, command: str, given: bytes, code: int
) -> None:
    for path in (program, checked):
        done = call(path, command, given)
        assert (done.returncode, done.stderr) == (1, b"")
        said = json.loads(done.stdout)
        assert (said["code"], said["cniVersion"]) == (code, "1.0.0")
        assert said["msg"].startswith("isthmus: ")


class Agent:
    """A socket that keeps what it is sent and answers as told; None: never."""

    def __init__(self, path: Path, reply: bytes | None) -> None:
        self.heard: list[bytes] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._reply, self._held = reply, list[socket.socket]()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            if self._reply is None:
                self._held.append(connection)
                continue
            parts: list[bytes] = []
            while part := connection.recv(65536):
                parts.append(part)
            self.heard.append(b"".join(parts))
            connection.sendall(self._reply)
            connection.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._held:
            connection.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


def test_the_agent_hears_all_of_it_and_its_answer_is_printed(program: Path, checked: Path, place: Path) -> None:
    agent = Agent(place, b'50\n{"code":50}')
    config = {**CONFIG, "socket": str(place), "padding": "x" * 300_000}
    for path in (program, checked):
        done = call(path, "ADD", config, CNI_PATH="/secret", HOME="/root", CNI_ARGS="x" * 9000)
        assert (done.returncode, done.stdout) == (1, b'{"code":50}')
        head, _, body = agent.heard.pop().partition(b"\0\0")
        assert head.split(b"\0") == [
            b"isthmus-cni/1", b"CNI_COMMAND=ADD", b"CNI_CONTAINERID=abc", b"CNI_NETNS=/run/netns/x",
            b"CNI_IFNAME=eth0",
        ]  # fmt: skip
        assert json.loads(body) == config
    agent.close()


@pytest.mark.parametrize(
    "reply", [None, b"", b"0", b"0\n", b"x\n", b"99999\n{}", b"-1\n", b"0\n" + b"x" * 100_000]
)
def test_an_agent_that_hangs_or_raves_fails_no_pod(checked: Path, place: Path, reply: bytes | None) -> None:
    agent = Agent(place, reply)
    done = call(checked, "ADD", {**CONFIG, "socket": str(place)})
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, RESULT, b"")
    agent.close()


def test_mutated_input_finds_no_memory_error(checked: Path) -> None:
    """A cheap fuzz; a failure names its seed."""
    seed = int(os.environ.get("ISTHMUS_SEED", "16"))
    source = random.Random(seed)
    whole = json.dumps(
        {**CONFIG, "socket": "/nowhere", "a": [1, -2.5e3, True, None, {"b": ["\\u00e9\n", {}]}]}
    ).encode()
    for number in range(120):
        text = bytearray(whole)
        for _ in range(source.randint(1, 6)):
            at = source.randrange(len(text))
            match source.randint(0, 3):
                case 0:
                    text[at] = source.randrange(256)
                case 1:
                    del text[at : at + source.randint(1, 40)]
                case 2:
                    text[at:at] = source.choice(
                        [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\0", b'{"a":']
                    )
                case _:
                    text[at:at] = text[source.randrange(len(text)) :][: source.randint(1, 60)]
            text = text or bytearray(b"x")
        done = call(checked, source.choice(["ADD", "STATUS"]), bytes(text))
        where = (seed, number, bytes(text))
        assert done.returncode in {0, 1}, where
        assert b"runtime error" not in done.stderr, where
        assert b"Sanitizer" not in done.stderr, where
        if done.returncode:
            assert json.loads(done.stdout)["code"] in {6, 7}, where
        elif done.stdout:
            assert json.loads(json.dumps(done.stdout.decode("utf-8", "replace"))), where


# --- what the agent makes of it ---


def frame(command: str = "ADD", config: object = CONFIG, **variables: str) -> bytes:
    given = {"CNI_COMMAND": command, **CALL, **variables}
    head = b"\0".join([b"isthmus-cni/1", *(f"{key}={value}".encode() for key, value in given.items())])
    body = config if isinstance(config, bytes) else json.dumps(config).encode()
    return head + b"\0\0" + body


def test_a_pod_is_known_by_its_names_and_addresses() -> None:
    request = parse(frame())
    assert request.pod == PodName(namespace="shop", name="web-1", uid="u-1")
    assert (request.addresses, request.container, request.interface) == (("172.16.0.2",), "abc", "eth0")
    assert request.valid is None
    listed = parse(frame("GC", {"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}))
    assert listed.valid == {("a", "eth0")}
    assert parse(frame("GC", {"cni.dev/valid-attachments": [{"containerID": "a"}]})).valid is None


@pytest.mark.parametrize(
    "arguments",
    [
        "", ";;;=;", "K8S_POD_NAME", "K8S_POD_NAME=web", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=\x1b[31mred",
        "K8S_POD_NAMESPACE=A;K8S_POD_NAME=b", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=" + "b" * 300,
        "K8S_POD_NAMESPACE=a b;K8S_POD_NAME=c", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\n",
    ],
)  # fmt: skip
def test_odd_names_are_no_names_and_fail_nothing(arguments: str) -> None:
    assert pod_of(arguments) == PodName()
    assert parse(frame(CNI_ARGS=arguments)).addresses == ("172.16.0.2",)


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"\0\0{}", frame("X"), frame(config=b"[]"), frame(config=b"{"), frame(config=b'{"a":\xff}'),
        frame(CNI_CONTAINERID="../../x"), frame(CNI_CONTAINERID=""), frame(CNI_IFNAME="a/b"),
        frame(config=b'{"a":' + b"[" * 100_000), b"isthmus-cni/2" + frame()[13:],
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(bad: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(bad)


@pytest.mark.parametrize(
    "result", [None, [], {"ips": 3}, {"ips": [3, {}, {"address": "fd00::2/64"}, {"address": "x"}]}]
)
def test_a_result_without_an_ipv4_address_has_none(result: object) -> None:
    assert addresses_of(result) == ()


# --- program and agent together ---


@pytest.mark.parametrize(
    ("standing", "command", "code", "words"),
    [
        (Standing(own="172.16.0.0/26"), "STATUS", 0, ""),
        (Standing(no_range="this node has no range yet"), "STATUS", 50, "no range yet"),
        (Standing(own="172.16.0.0/26", no_packets="packets do not pass"), "STATUS", 51, "do not pass"),
        (Standing(no_range="none", no_packets="packets do not pass"), "STATUS", 50, "none"),
        (Standing(own="172.16.0.0/26", no_packets="x"), "ADD", 0, ""),
        (Standing(cidrs=("172.16.0.0/16",), own="172.16.0.64/26"), "ADD", 11, "not of 172.16.0.64/26"),
        (Standing(cidrs=("172.16.0.0/16",)), "ADD", 11, "any range"),
        (Standing(cidrs=("10.0.0.0/8",)), "ADD", 0, ""),
        (Standing(cidrs=("172.16.0.0/16",), own="172.16.0.64/26"), "CHECK", 101, "start anew"),
        (Standing(cidrs=("172.16.0.0/16",)), "DEL", 0, ""),
    ],
)  # fmt: skip
async def test_the_agents_word_is_the_programs_exit(
    program: Path, tmp_path: Path, standing: Standing, command: str, code: int, words: str
) -> None:
    facts = PodFacts(tmp_path, enabled=True, epoch_of=lambda address: 7)
    served = PluginSocket(tmp_path / "cni.sock", PluginAnswers(facts, lambda: standing))
    running = asyncio.create_task(served.run())
    try:
        await until_async((tmp_path / "cni.sock").exists, "the socket is there")
        assert (tmp_path / "cni.sock").stat().st_mode & 0o777 == 0o600
        config = {**CONFIG, "socket": str(tmp_path / "cni.sock")}
        done = await asyncio.to_thread(call, program, command, config)
        assert served.answered == 1
        assert done.returncode == (1 if code else 0)
        if code:
            said = json.loads(done.stdout)
            assert (said["code"], said["cniVersion"]) == (code, "1.0.0")
            assert words in said["msg"]
        assert [fact.address for fact in facts.present] == (
            ["172.16.0.2"] if (command, code) == ("ADD", 0) else []
        )
        for garbage in (b"", b"\0" * 5000, b"isthmus-cni/1\0CNI_COMMAND=ADD\0\0{", os.urandom(3000)):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "cni.sock"))
            writer.write(garbage)
            writer.write_eof()
            assert await reader.read() == b"", "no answer: the plugin goes on"
            writer.close()
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert not (tmp_path / "cni.sock").exists()
