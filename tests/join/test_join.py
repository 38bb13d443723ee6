"""``isthmus join`` and ``leave``: the whole way in real namespaces, and each way in which it stops short."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from controlplane.cli.main import root
from deploy.credentials.jwt import encode
from deploy.join import containers, files, host, joining, peers
from deploy.join.cli import leave
from deploy.join.joining import JoinRequest
from deploy.join.progress import Progress
from events.bus.access.nkeys import generate
from events.bus.enrolment import JoinToken, read_token
from events.cli.config import read
from events.errors import IsthmusError, Refused, Unavailable, Usage
from nodeagent import identity
from nodeagent.cli import run_command
from nodeagent.config import DEFAULT_NETWORK
from nodeagent.local_files import LocalStatus, write_status
from nodeagent.pods.leaving import last_word
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import BUS, ISTHMUS, Node, Site, site, until

ROOT = Path(__file__).parents[2]
NODE = JoinToken(cluster="default", node="c", servers=(BUS,), kind="external", site="ams")


def isthmus(namespace: str, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, ISTHMUS, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env=env,
    )


@pytest.mark.netns
@pytest.mark.bus
@inside
def test_one_command_makes_a_node_and_another_undoes_it() -> None:
    """In the foreground, since no systemd runs in a namespace (that is in test_systemd_join.py)."""
    with site("a", "b") as place:
        (c,) = place.add("c")
        folder, state = c.directory / "etc", c.directory / "state"
        words = ["--folder", str(folder), "--state-dir", str(state), "--underlay", "eth0"]

        dry = isthmus("c", "join", NODE.text(), *words, "--foreground", "--dry-run")
        assert (dry.returncode, folder.exists()) == (0, False), dry.stderr
        assert 'site = "ams"' in dry.stdout
        assert NODE.text() not in dry.stdout

        with (c.directory / "agent.log").open("ab") as log:
            c.agent = subprocess.Popen(
                ["ip", "netns", "exec", "c", ISTHMUS, "join", NODE.text(), *words, "--foreground"],
                stdout=log, stderr=log, env={**os.environ, "ISTHMUS_METRICS": "off"},
            )  # fmt: skip
        c.ready(2)
        log = c.directory / "agent.log"
        until(lambda: "; 2 of 2 peers answer\n" in log.read_text(), "the join says what became of it")
        assert f"node c has {c.status()['range']}" in log.read_text()
        assert json.loads(place.isthmus("node", "show", "c", "--json").stdout)["site"] == "ams"

        again = isthmus("c", "join", NODE.text(), *words, "--foreground", "--dry-run")
        assert f"{folder}/agent.toml stays" in again.stdout

        other = JoinToken(cluster="default", node="d", servers=(BUS,))
        refused = isthmus("c", "join", other.text(), *words, "--foreground")
        assert (refused.returncode, "[machine_is_a_node]" in refused.stderr) == (1, True), refused.stderr

        leave = ["leave", "--yes", "--folder", str(folder), "--state-dir", str(state), "--json"]
        runs = json.loads(isthmus("c", *leave).stdout)["error"]
        assert (runs["code"], len(runs["details"]["steps"])) == ("agent_running", 1)  # the cluster is not told
        c.stop()
        status = (state / "status.json").read_bytes()
        (state / "status.json").write_bytes(status[: len(status) // 2])  # the disk was full
        point = "nodeagent.pods.leaving:subjects.status:before"
        c.run(f"{sys.executable} -m tests.nodeagent.killed_at {point} {shlex.join(leave)} || [ $? = 137 ]")
        until(lambda: place.nodes["a"].status()["peers"] == 1, "a forgets c")
        left = isthmus("c", *leave)
        assert left.returncode == 0, left.stderr
        assert [step["status"] for step in json.loads(left.stdout)["steps"]] == [
            "unchanged",
            "unchanged",
            "done",
            "done",
        ]
        free = "0 draining, 0 quarantined"  # its range waits for nobody's word
        until(lambda: free in place.isthmus("status").stdout, "the range is free")
        assert sorted(path.name for path in folder.iterdir()) == []
        assert "isthmus" not in c.run("ip -br link")
        repeated = isthmus("c", "leave", "--yes", "--folder", str(folder), "--state-dir", str(state), "--json")
        assert {step["status"] for step in json.loads(repeated.stdout)["steps"]} == {"unchanged"}
        _as_a_container(place, c, words)


ENGINE = """#!/bin/sh
# Keeps one agent as an engine keeps a container: from the command line that it is given, on this machine.
cd {here}
echo "$@" >> said
case $1 in
  info|pull) ;;
  image) test -e image ;;
  run) test ! -e taken || exit 125
    while [ "$1" != agent ]; do shift; done; setsid {isthmus} "$@" > log 2>&1 < /dev/null & echo $! > pid ;;
  container)
    test -e pid || exit 1
    case $4 in *Run*) kill -0 "$(cat pid)" && echo true ;; *Count*) echo 0 ;; *) cat pid ;; esac ;;
  stop) if test -p hold; then touch held; read _ < hold; fi
    kill "$(cat pid)"; while grep -q ') [^Z]' "/proc/$(cat pid)/stat"; do sleep 0.05; done ;;
  rm) rm -f taken; rm pid ;;
  logs) cat log ;;
  *) exit 9 ;;
esac
"""


SYSTEMCTL = """#!/bin/sh
cd {here}
echo "$@" >> said
if test -p hold; then touch held; read _ < hold; fi
"""


def _as_a_container(place: Site, c: Node, words: list[str]) -> None:
    """The same machine, with an engine instead of systemd: joined, repeated, refused otherwise, left."""
    for folder in (
        "/etc/sysctl.d",
        "/var/lib",
        "/etc/cni",
    ):  # what a container needs of a machine is made there
        sh(f"mount -t tmpfs none {folder}")
    here = c.directory / "engine"
    here.mkdir()
    (here / "podman").write_text(ENGINE.format(here=here, isthmus=ISTHMUS))
    (here / "podman").chmod(0o755)
    found = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "ISTHMUS_METRICS": "off"}
    join = ["join", NODE.text(), *words, "--container", "--image", "registry.example/isthmus:1"]
    dry = isthmus("c", *join, "--dry-run", env=found)
    assert "podman run --detach" in dry.stdout, dry.stderr
    assert not (c.directory / "etc" / "agent.container").exists()
    (here / "taken").touch()  # the name, by a `run` that was killed before there was a container
    joined = isthmus("c", *join, env=found)
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert joined.stdout.splitlines()[-1].endswith("; 2 of 2 peers answer")
    assert "ip_forward = 1" in Path("/etc/sysctl.d/90-isthmus.conf").read_text()
    assert "pull registry.example/isthmus:1" in (here / "said").read_text()
    assert isthmus("c", *join, env=found).stdout.count("= container") == 1
    other = isthmus("c", "join", NODE.text(), *words, "--foreground", env=found)
    assert "[machine_is_a_node]" in other.stderr
    kept = c.directory / "etc" / "agent.container"
    _broken_off(["ip", "netns", "exec", "c", ISTHMUS, "leave", "--yes", *words[:4]], here, kept, found)
    assert place.isthmus("node", "fence", "c", "--yes").returncode == 0
    uid = c.status()["uid"]
    left = isthmus("c", "leave", "--yes", *words[:4], env=found)
    assert "stopped and removed (podman)" in left.stdout, left.stdout + left.stderr
    assert "node c was fenced" in left.stdout
    known = identity.known_of(c.directory / "state")
    assert known is not None
    assert known.uid != uid, "that one can never join again"
    assert (list((c.directory / "etc").iterdir()), (here / "pid").exists()) == ([], False)
    until(lambda: place.nodes["a"].status()["peers"] == 1, "a forgets c again")


def _broken_off(line: list[str], here: Path, kept: Path, env: dict[str, str]) -> None:
    """While systemd or the engine stops the agent: that program ends, too, and goes on alone behind SIGKILL."""
    hold, held = here / "hold", here / "held"
    os.mkfifo(hold)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        ) as ended:
            until(held.exists, "the agent is to be stopped")
            held.unlink()
            ended.send_signal(number)
            out, err = ended.communicate(timeout=60)
        assert ended.returncode in {128 + number, -number}, err
        assert "Traceback" not in err
        assert "cluster" not in out, "it is told nothing"
        assert kept.exists()
        if number != signal.SIGKILL:
            with pytest.raises(OSError, match="No such device or address"):  # nobody reads there any more
                os.open(hold, os.O_WRONLY | os.O_NONBLOCK)
    hold.write_text("\n")
    hold.unlink()


@pytest.mark.netns
@pytest.mark.bus
@inside
def test_every_peer_is_asked_through_the_tunnel_and_who_is_silent_is_named() -> None:
    code = (
        "import asyncio, sys; from deploy.join.peers import silent; "
        "print(*asyncio.run(silent(sys.argv[1], sys.argv[2:])))"
    )
    with site("a", "b", "c") as place:
        a, b, c = place.nodes.values()
        for node in (a, b, c):
            node.ready(2)
        c.run("ip link set isthmus down")
        c.stop()
        asked = [b.vtep, c.vtep, b.vtep]
        found = subprocess.run(
            ["ip", "netns", "exec", "a", sys.executable, "-c", code, a.vtep, *asked],
            capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert found.stdout.split() == [c.vtep]


def test_an_echo_request_sums_up_and_only_our_own_answer_counts() -> None:
    packet = peers.echo(0x1234, 1)
    words = [int.from_bytes(packet[place : place + 2], "big") for place in range(0, len(packet), 2)]
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF  # RFC 1071: the sum with its checksum is all ones
    head = bytes([0x45]) + bytes(19)
    reply = b"\0" + packet[1:]
    assert peers.answered(head + reply, 0x1234)
    assert not peers.answered(head + reply, 0x4321)
    assert not peers.answered(head + packet, 0x1234)  # a request is no answer
    for cut in range(len(head + reply)):
        assert not peers.answered((head + reply)[:cut], 0x1234)


def test_settings_say_everything_and_are_what_the_agent_takes(tmp_path: Path) -> None:
    for name in ("agent.creds", "ca.pem"):
        (tmp_path / name).write_text("there")
        (tmp_path / name).chmod(0o600)
    strange = 'a "site" \\ with äöü'
    text = files.settings(
        NODE, credentials=str(tmp_path / "agent.creds"), ca=str(tmp_path / "ca.pem"), kind="external",
        site=strange, underlay="eth1", state_dir=Path("/var/lib/isthmus/agent"),
    )  # fmt: skip
    values, faults = read(text, run_command)
    assert faults == []
    assert (values["site"], values["node"], values["kind"]) == (strange, "c", "external")


def test_the_unit_starts_this_installation_with_this_file() -> None:
    text = files.unit(("/srv/my tools/isthmus",), Path("/etc/isthmus/agent.toml"))
    assert text.startswith(files.MARK)
    starts = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert starts == ['ExecStart="/srv/my tools/isthmus" agent run --config /etc/isthmus/agent.toml']
    assert "capset" in next(line for line in text.splitlines() if line.startswith("SystemCallFilter=bpf"))


def test_the_container_may_do_what_the_daemon_set_lets_its_agent_do() -> None:
    words = containers.command(
        "podman", "isthmus:1", Path("/etc/isthmus/agent.toml"), Path("/var/lib/isthmus/agent")
    )
    manifest = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "agent.yaml").read_text())["spec"]["template"][
        "spec"
    ]
    security = manifest["containers"][0]["securityContext"]
    given = [words[number + 1] for number, word in enumerate(words) if word == "--cap-add"]
    assert given == security["capabilities"]["add"]
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert words[words.index("--user") + 1] == str(security["runAsUser"])
    assert {"--read-only", "no-new-privileges"} <= set(words)
    mounted = {words[number + 1].split(":")[0] for number, word in enumerate(words) if word == "--volume"}
    folders = {volume["hostPath"]["path"] for volume in manifest["volumes"]} - {
        "/opt/cni/bin",
        "/var/lib/isthmus",
    }
    assert folders - {"/dev/net", "/etc/machine-id"} <= mounted
    assert containers.engine_in(containers.text(words)) == "podman"
    assert containers.engine_in("docker run x") == ""


def test_a_file_of_somebody_else_is_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("bus = 'mine'\n")
    with pytest.raises(Refused) as refused:
        host.write(path, f"{files.MARK}\nbus = 'ours'\n")
    assert refused.value.code == "file_exists"
    assert not host.remove(path)
    assert path.read_text() == "bus = 'mine'\n"
    path.unlink()
    assert host.write(path, f"{files.MARK}\n")
    assert not host.write(path, f"{files.MARK}\n")
    assert host.remove(path)


def test_a_failed_and_an_interrupted_step_are_told_as_such() -> None:
    progress = Progress()
    with pytest.raises(Refused), progress.step("token"):
        raise Refused("token_invalid", "it is damaged")
    with pytest.raises(KeyboardInterrupt), progress.step("agent"):
        raise KeyboardInterrupt
    assert [(step.name, step.status, step.message) for step in progress.steps] == [
        ("token", "failed", "it is damaged"),
        ("agent", "failed", "interrupted"),
    ]
    assert all(step.end is not None and step.end >= step.start for step in progress.steps)


@pytest.mark.parametrize(
    "words", ["", "x", "isthmus1.", "isthmus1.e30", "isthmus1." + "A" * 20_000, NODE.text()[:-9], "\udcff"]
)
def test_what_is_no_token_is_refused_by_name(words: str) -> None:
    with pytest.raises(IsthmusError) as refused:
        read_token(words)
    assert refused.value.code == "token_invalid"


async def test_a_dry_run_says_that_the_token_has_ended(tmp_path: Path) -> None:
    account, user, hour = generate("account"), generate("user"), time.time() - 3600
    jwt = encode(account, user.public, "c", {"type": "user"}, issued=int(hour), expires=int(hour) + 60)
    ended = msgspec.structs.replace(NODE, jwt=jwt, seed=user.seed)
    request = JoinRequest(
        token=ended.text(), folder=tmp_path, state_dir=tmp_path, foreground=True, dry_run=True
    )
    with pytest.raises(Refused, match="expired at") as refused:
        await joining.join(request, Progress())
    assert refused.value.code == "token_invalid"


def test_a_program_reads_one_document_also_when_a_step_fails(tmp_path: Path) -> None:
    folders = ["--folder", str(tmp_path), "--state-dir", str(tmp_path)]
    for words in (["join", "isthmus1.e30", "--dry-run"], ["join", NODE.text(), "--kind", "cloud", "--dry-run"]):
        ended = subprocess.run(
            [ISTHMUS, *words, "--json", *folders], capture_output=True, text=True, check=False, timeout=90
        )
        found = json.loads(ended.stdout)["error"]
        assert (ended.returncode, ended.stderr) == (1, "")
        assert [(step["name"], step["status"]) for step in found["details"]["steps"]] == [("token", "failed")]
        assert found["details"]["steps"][0]["message"] == found["message"]


@pytest.mark.parametrize("more", [["--open"], ["--store", "absent"], ["--store", "absent", "--uses", "2"]])
def test_a_token_never_leads_to_what_is_no_bus(more: list[str]) -> None:
    nodes = [] if "--uses" in more else ["idc-1"]
    ended = CliRunner().invoke(root, ["token", "create", *nodes, *more, "--bus", "http://10.0.0.5:4222"])
    assert isinstance(ended.exception, Usage), ended.output
    assert "the scheme is one of nats" in ended.exception.message


def test_tokens_for_many_nodes_are_made_at_once(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = tmp_path / "nodes.txt"
    listed.write_text("\ufeff# rack 3\nidc-1\n\nidc-2\nidc-1\n")
    create = [
        "token",
        "create",
        "--open",
        "--bus",
        "nats://10.0.0.5:4222",
        "--cluster",
        "prod",
        "--site",
        "ams",
    ]
    made = runner.invoke(root, [*create, "--file", str(listed), "--to", str(tmp_path / "tokens")])
    assert made.exit_code == 0, made.output
    found = {path.name: read_token(path.read_text()) for path in (tmp_path / "tokens").iterdir()}
    assert sorted(found) == ["idc-1.token", "idc-2.token"]
    assert {(token.kind, token.site, token.servers) for token in found.values()} == {
        ("external", "ams", ("nats://10.0.0.5:4222",))
    }
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "tokens").iterdir()} == {0o600}
    counted = json.loads(runner.invoke(root, [*create, "rack", "--count", "3", "--json"]).stdout)
    assert [each["node"] for each in counted] == ["rack-1", "rack-2", "rack-3"]
    (tmp_path / "twice.txt").write_text("a gz cloud\na ams\n")  # which of the two?
    (tmp_path / "long.txt").write_text(f"a {'x' * 64}\n")  # what no controller would take
    for wrong in (
        ["a", "b"],
        ["a", "b", "--count", "2"],
        [],
        ["--file", str(tmp_path / "twice.txt")],
        ["--file", str(tmp_path / "long.txt")],
        ["a", "--site", "a\nb"],
        ["a", "--minutes", "5"],
    ):
        assert isinstance(runner.invoke(root, [*create, *wrong]).exception, IsthmusError), wrong
    assert "0<x<=10080" in runner.invoke(root, ["token", "create", "--help"]).output


def test_what_became_of_tokens_is_told_without_the_bus_where_one_says_so(tmp_path: Path) -> None:
    store = tmp_path / "the authority"
    assert CliRunner().invoke(root, ["credentials", "init", "--store", str(store)]).exit_code == 0
    far = ["--store", str(store), "--bus", "nats://127.0.0.1:1"]
    assert CliRunner().invoke(root, ["token", "create", "n1", "--to", str(tmp_path), *far]).exit_code == 0
    listed = ["token", "list", *far]
    away = CliRunner().invoke(root, listed).exception
    assert isinstance(away, Unavailable)
    assert away.message.endswith("without the log: --offline")
    (one,) = json.loads(CliRunner().invoke(root, [*listed, "--offline", "--json"]).stdout)
    assert (one["for"], one["used"], one["state"]) == ("n1", None, "good")
    revoked = CliRunner().invoke(root, ["token", "revoke", one["id"], "--store", str(store), "--yes"])
    assert f"`isthmus credentials push --store '{store}' URL`" in revoked.output


def test_a_node_with_pods_does_not_leave_unasked(tmp_path: Path) -> None:
    """The refusal names the pods and the way out, as it works here; nothing is given up."""
    leases = tmp_path / "pod-addresses" / DEFAULT_NETWORK
    leases.mkdir(parents=True)
    for address in ("172.16.1.2", "172.16.1.3"):
        (leases / address).touch()
    status = LocalStatus(
        node="n1", uid="u", cluster="c", pid=1, started_at=0, written_at=0, range="172.16.1.0/26"
    )
    write_status(tmp_path, status)
    folder = tmp_path / "etc"
    done = CliRunner().invoke(leave, ["--state-dir", str(tmp_path), "--folder", str(folder)])
    assert isinstance(done.exception, Refused)
    assert done.exception.code == "pods_running"
    assert "2 pods still run on n1" in done.exception.message
    assert "(172.16.1.2, 172.16.1.3)" in done.exception.message
    assert done.exception.message.endswith(f"isthmus leave --yes --folder {folder} --state-dir {tmp_path}")
    for lease in leases.iterdir():
        lease.unlink()
    done = CliRunner().invoke(leave, ["--state-dir", str(tmp_path), "--folder", str(folder)])
    assert "--yes" in str(done.exception), "without a terminal nobody is asked"
    assert (tmp_path / "status.json").exists()


@inside
def test_a_machine_leaves_whatever_is_wrong_with_its_files() -> None:
    """The refusal quotes a way out that works, and a folder of state that the settings name is found by it."""
    sh("mount -t tmpfs none /var/lib")
    with tempfile.TemporaryDirectory() as name:
        folder, state = Path(name) / "etc", Path(name) / "state"
        folder.mkdir()
        state.mkdir()
        settings = files.settings(
            NODE, credentials="", ca=str(folder / "ca.pem"), kind="external", site="", underlay="eth0",
            state_dir=state,
        )  # fmt: skip
        faulty = {
            "credentials_invalid": settings,  # the certificate is cut
            "config_invalid": f'{settings}creds = "{folder}/agent.creds"\n',  # that file is gone
            "identity_unreadable": settings,  # the disk gave out as all were written
        }
        for code, text in faulty.items():
            (folder / "agent.toml").write_text(text)
            (folder / "ca.pem").write_text("-----BEGIN")
            status = LocalStatus(node="c", uid="u", cluster="default", pid=1, started_at=0, written_at=0)
            write_status(state, status)
            if code == "identity_unreadable":
                for file in ("identity.json", "view.json", "status.json"):
                    (state / file).write_text("{")
                (state / "uid").write_text("u")  # with the settings' name that is enough
                known = last_word(state, node="c", cluster="default")
                assert known is not None
                assert (known.node, known.uid, known.cluster) == ("c", "u", "default")
                (state / "uid").write_text("")
            error = CliRunner().invoke(root, ["leave", "--yes", "--folder", str(folder)]).exception
            assert isinstance(error, IsthmusError)
            assert error.code == code
            way_out = error.message.split("`isthmus ")[1].partition("`")[0]
            left = CliRunner().invoke(root, shlex.split(way_out))
            assert left.exit_code == 0, left.output
            assert re.search(
                r"not told \((credentials_|identity_unreadable).* `isthmus node remove c`", left.output
            )
            assert (list(folder.iterdir()), [one.name for one in state.iterdir()]) == ([], ["lock"])
        # Nobody reads what it says (`isthmus leave | head -1`, a terminal that is gone): it is done anyway.
        (folder / "agent.toml").write_text(f'{files.MARK}\nnode = "c"\n')
        reads, writes = os.pipe()
        os.close(reads)
        left = subprocess.run([ISTHMUS, "leave", "--yes", "--folder", folder], stdout=writes, check=False)
        os.close(writes)
        assert (left.returncode, list(folder.iterdir())) == (0, [])
        if host.SYSTEMD_UNITS.is_dir():
            _with_systemd(Path(name))


def _with_systemd(here: Path) -> None:
    sh(f"mount -t tmpfs none {host.SYSTEMD_UNITS} && mkdir -p /run/systemd/system")
    unit = host.SYSTEMD_UNITS / files.UNIT
    unit.write_text(files.MARK)
    (here / "systemctl").write_text(SYSTEMCTL.format(here=here))
    (here / "systemctl").chmod(0o755)
    env = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}"}
    leave = [ISTHMUS, "leave", "--yes", "--folder", str(here / "etc"), "--state-dir", str(here / "state")]
    _broken_off(leave, here, unit, env)
    left = subprocess.run(leave, capture_output=True, text=True, check=False, env=env)
    assert (left.returncode, unit.exists()) == (0, False), left.stderr
    assert (here / "said").read_text().splitlines()[-2:] == [f"disable --now {files.UNIT}", "daemon-reload"]


def test_an_agent_that_began_before_its_settings_were_written_is_started_afresh(tmp_path: Path) -> None:
    """A join that was killed between writing and starting left an agent with the settings of before."""
    written = tmp_path / "agent.toml"
    written.write_text("")
    request = JoinRequest(token="", state_dir=tmp_path)
    assert joining._began_before(request, written)  # no agent has said anything
    status = LocalStatus(
        cluster="c", node="n", uid="u", pid=1, started_at=written.stat().st_mtime - 1, written_at=0
    )
    write_status(tmp_path, status)
    assert joining._began_before(request, written)
    write_status(tmp_path, msgspec.structs.replace(status, started_at=written.stat().st_mtime + 1))
    assert not joining._began_before(request, written)
