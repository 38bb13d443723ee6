"""The Debian package under a real systemd: bus, controller and issuer as the guide says, nodes by one command.

One has the package, the other only Python and nftables, and is behind a masquerading router.

Makes and boots Debians (ISTHMUS_TEST_SUITE: bookworm or trixie), which takes a minute or more: only with
ISTHMUS_SYSTEMD=1 (``make systemd``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.join.machine import Machine, booted, install, make_package, make_system
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import until

pytestmark = [pytest.mark.netns, pytest.mark.slow]
SYSTEM, ALONE = "ISTHMUS_TEST_SYSTEM", "ISTHMUS_TEST_ALONE"
ADDRESS = "10.0.0.1"

CONTROL = f"""
isthmus credentials init --store authority --name prod-bus --host {ADDRESS}
isthmus deploy nats single --store authority --name bus-1 --host {ADDRESS} --to out/bus-1
mkdir -p /etc/isthmus/issuer/keys
cp -r out/bus-1 /etc/isthmus/nats
install -m 600 authority/creds/controller-controller-1.creds /etc/isthmus/controller.creds
install -m 644 authority/tls/ca.pem /etc/isthmus/ca.pem
printf 'bus = "tls://{ADDRESS}:4222"\\ncluster = "prod"\\ncreds = "/etc/isthmus/controller.creds"\\nca = "/etc/isthmus/ca.pem"\\ndata = "/var/lib/isthmus/controller"\\n' > /etc/isthmus/controller.toml
install -m 644 authority/book.json /etc/isthmus/issuer/book.json
install -m 600 authority/keys/nodes.seed /etc/isthmus/issuer/keys/nodes.seed
install -m 600 authority/creds/issuer-issuer.creds /etc/isthmus/issuer.creds
printf 'store = "/etc/isthmus/issuer"\\nbus = "tls://{ADDRESS}:4222"\\ncreds = "/etc/isthmus/issuer.creds"\\nca = "/etc/isthmus/ca.pem"\\n' > /etc/isthmus/issuer.toml
systemctl enable --now isthmus-nats.service isthmus-controller.service isthmus-issuer.service
"""  # noqa: E501  a file's whole text in one shell word
OPERATOR = (
    f"ISTHMUS_BUS=tls://{ADDRESS}:4222 ISTHMUS_CLUSTER=prod ISTHMUS_CA=authority/tls/ca.pem "
    "ISTHMUS_CREDS=authority/creds/prod/operator-alice.creds isthmus"
)


@pytest.fixture(scope="module", autouse=True)
def system(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A Debian to be copied by each test."""
    if not os.environ.get("ISTHMUS_SYSTEMD"):
        pytest.skip("makes and boots a Debian for some minutes: only with ISTHMUS_SYSTEMD=1")
    for program in ("mmdebstrap", "systemd-nspawn"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = tmp_path_factory.mktemp("systemd") / "debian"
    given = os.environ.get("ISTHMUS_TEST_PACKAGE")
    suite = os.environ.get("ISTHMUS_TEST_SUITE", "bookworm")
    package = Path(given) if given else make_package(folder.parent, {"bookworm": 12, "trixie": 13}[suite])
    make_system(folder, suite)
    install(folder, package)
    make_system(folder.parent / "bare", suite, "python3", "nftables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SYSTEM, str(folder))
        patch.setenv(ALONE, str(next(package.parent.glob("isthmus-*-node.pyz"))))
        yield


@inside
def test_units_start_under_systemd_and_a_node_joins_reboots_and_leaves() -> None:
    original = Path(os.environ[SYSTEM])
    sh("ip netns add desk && ip netns add node && ip -n desk link set lo up && ip -n node link set lo up")
    sh("ip link add eth0 netns desk type veth peer name eth0 netns node")
    sh(f"ip -n desk addr add {ADDRESS}/24 dev eth0 && ip -n desk link set eth0 up")
    sh("ip -n node addr add 10.0.0.2/24 dev eth0 && ip -n node link set eth0 up")
    sh(f"ip -n node route add default via {ADDRESS}")
    for name in ("desk", "node"):
        sh(f"cp -a {original} {original.parent / name}")
    with booted(original.parent / "desk", "desk") as desk, booted(original.parent / "node", "node") as node:
        for shell in ("bash-completion/completions/isthmus", "zsh/vendor-completions/_isthmus"):
            assert "_ISTHMUS_COMPLETE" in desk.ok(f"cat /usr/share/{shell}")
        assert "disabled" in desk.run("systemctl is-enabled isthmus-controller.service").stdout
        for line in CONTROL.strip().splitlines():
            desk.ok(line)
        push = f"--store authority --cluster prod --push tls://{ADDRESS}:4222"
        until(lambda: desk.ok(f"isthmus credentials operator alice {push}"), "the bus is up", 60)
        desk.ok(f"{OPERATOR} cluster define --cidr 10.200.0.0/16 --pods 64 --services 256")
        for unit in ("nats", "controller", "issuer"):
            until(lambda: desk.ok(f"systemctl is-active isthmus-{unit}.service"), f"{unit} runs", 30)  # noqa: B023

        token = desk.ok(f"isthmus token create idc-7 --bus tls://{ADDRESS}:4222 --site ams {push}")
        joined = node.run(f"echo {token.strip()} | isthmus join --token-file -")
        assert joined.returncode == 0, joined.stdout + joined.stderr
        assert joined.stdout.splitlines()[-1] == "node idc-7 has 10.200.0.0/26; 0 of 0 peers answer"
        fast = json.loads(node.ok("isthmus agent status --json"))["fastpath"]
        assert fast.startswith("on"), fast  # with no more than the unit's capabilities and calls
        again = node.ok(f"echo {token.strip()} | isthmus join --token-file -")
        assert "= service" in again
        before = node.ok("systemctl show --property=NRestarts --value isthmus-agent.service").strip()
        assert before == "0", node.ok("journalctl -u isthmus-agent --no-pager")

        token = desk.ok(f"isthmus token create branch-1 --bus tls://{ADDRESS}:4222 --site branch {push}")
        with _bare(original.parent / "bare") as bare:
            _joins_alone(bare, token.strip())

        node.reboot()
        until(lambda: node.ok("isthmus agent status"), "the agent is back after a reboot", 60)
        assert "idc-7" in desk.ok(f"{OPERATOR} node list")

        node.ok("isthmus leave --yes")
        assert node.run("systemctl is-enabled isthmus-agent.service").returncode != 0
        assert node.run("ls /etc/isthmus/agent.creds /etc/isthmus/agent.toml").returncode != 0
        assert "idc-7" not in desk.ok(f"{OPERATOR} node list --json")
        for unit in ("nats", "controller", "issuer"):
            desk.ok(f"systemctl stop isthmus-{unit}.service")
            assert (
                desk.ok(f"systemctl show --property=Result --value isthmus-{unit}.service").strip() == "success"
            )
        node.ok("dpkg --purge isthmus")
        assert node.run("ls /opt/isthmus /usr/bin/isthmus").returncode != 0
        assert desk.ok("dpkg --audit") == ""


@contextlib.contextmanager
def _bare(folder: Path) -> Iterator[Machine]:
    """A Debian with only Python and nftables, up behind a router that masquerades it."""
    sh("ip netns add router && ip netns add bare && ip -n router link set lo up && ip -n bare link set lo up")
    sh("ip link add eth1 netns desk type veth peer name wan netns router")
    sh("ip link add lan netns router type veth peer name eth0 netns bare")
    sh("ip -n desk addr add 10.0.1.1/24 dev eth1 && ip -n desk link set eth1 up")
    sh("ip -n router addr add 10.0.1.2/24 dev wan && ip -n router addr add 192.168.1.1/24 dev lan")
    sh("ip -n router link set wan up && ip -n router link set lan up")
    sh("ip -n router route add default via 10.0.1.1")
    sh("ip -n bare addr add 192.168.1.11/24 dev eth0 && ip -n bare link set eth0 up")
    sh("ip -n bare route add default via 192.168.1.1")
    for name in ("desk", "router"):
        sh(f"ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1")
    sh("ip netns exec router nft add table ip branch")
    sh("ip netns exec router nft 'add chain ip branch out { type nat hook postrouting priority srcnat; }'")
    sh("ip netns exec router nft add rule ip branch out oifname wan masquerade")
    with booted(folder, "bare") as machine:
        yield machine


def _joins_alone(bare: Machine, token: str) -> None:
    """One command, from nothing to a member whose peer answers; another one, and it is none."""
    alone = Path(os.environ[ALONE])
    assert bare.run(
        "python3 -m ensurepip --version || python3 -m pip --version || isthmus --version"
    ).returncode
    shutil.copy(alone, bare.folder / "root" / alone.name)
    (bare.folder / "root" / "branch-1.token").write_text(f"{token}\n")
    started = time.monotonic()
    joined = bare.run(f"python3 {alone.name} --token-file branch-1.token")
    assert joined.returncode == 0, joined.stdout + joined.stderr
    print(f"{joined.stdout}from a Debian with only Python: {time.monotonic() - started:.1f} s")
    assert joined.stdout.splitlines()[-1] == "node branch-1 has 10.200.0.64/26; 1 of 1 peers answer"
    again = bare.ok(f"python3 {alone.name} --token-file branch-1.token")
    assert "= install" in again
    assert "= service" in again
    bare.ok("isthmus leave --yes")
    assert bare.run("ls /etc/isthmus/agent.creds /etc/systemd/system/isthmus-agent.service").returncode != 0
