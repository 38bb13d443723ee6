"""Flannel's rules, in each form in which it writes them: away with our transaction, and back as they were."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from deploy.lab.machines.flannel import FlannelNode
from events.errors import Refused
from nodeagent.firewall import predecessor, ruleset
from nodeagent.firewall.predecessor import Predecessor
from nodeagent.firewall.ruleset import Rules
from nodeagent.privileges import keep_only_net_admin
from tests.nodeagent.sandbox import inside, sh

OLD = FlannelNode("a", 1, "10.0.0.1")
RULES = Rules(device="isthmus", port=8472, own_range=OLD.range, cidrs=(OLD.cluster,))
SAVES = ("iptables-nft-save", "iptables-legacy-save")


def fed(program: str, text: str) -> None:
    done = subprocess.run(program.split(), input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def seen() -> str:
    """All rules of everybody but us, without counters and comments."""
    saved = "".join(sh(f"{program} 2>/dev/null") for program in SAVES)
    tables = sh("nft list tables ip")
    own = sh("nft list table ip flannel-ipv4") if "flannel-ipv4" in tables else ""
    lines = [line.partition(" [")[0] for line in saved.splitlines() if not line.startswith("#")]
    return "\n".join([*lines, own])


def left() -> int:
    return seen().count("-A FLANNEL-") + seen().count("table ip flannel-ipv4")


async def taken(old: Predecessor) -> None:
    await ruleset.replace(RULES, ["10.0.0.2"], also=await old.also())
    await old.after()


@inside
async def test_rules_of_each_form_go_and_come_back_as_they_were() -> None:
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        old = Predecessor(state)
        assert await old.also() == ""
        for forms in (("iptables-nft",), ("iptables-legacy",), ("nft",), ("iptables-nft", "iptables-legacy")):
            for form in forms:
                if form == "nft":
                    fed("nft -f -", OLD.nft_rules())
                else:
                    fed(f"{form}-restore --noflush", OLD.rules())
            before = seen()
            assert left()
            await taken(old)
            assert not left()
            assert "jump FLANNEL" not in sh("nft list table inet isthmus")
            await taken(old)  # a second start writes nothing down and loses nothing
            assert await old.restore()
            assert seen() == before, forms
            assert not await old.restore()
            # A kill between our transaction and the legacy tables: what went first is not forgotten.
            await ruleset.replace(RULES, ["10.0.0.2"], also=await old.also())
            await taken(Predecessor(state))
            assert not left()
            assert await Predecessor(state).restore()
            assert seen() == before, forms
            for form in forms:
                if form == "nft":
                    sh("nft delete table ip flannel-ipv4")
                else:
                    sh(f"{form} -t nat -F && {form} -t nat -X && {form} -F && {form} -X")


@inside
async def test_what_lets_pods_through_stays_where_forwarding_drops() -> None:
    with tempfile.TemporaryDirectory() as name:
        for form in ("iptables-nft", "iptables-legacy"):
            fed(f"{form}-restore --noflush", OLD.rules())
            sh(f"{form} -P FORWARD DROP")
            old = Predecessor(Path(name))
            await taken(old)
            saved = sh(f"{form}-save 2>/dev/null")
            assert (saved.count("-A FLANNEL-POSTRTG"), saved.count("-A FLANNEL-FWD")) == (0, 2)
            assert await old.restore()
            assert sh(f"{form}-save 2>/dev/null").count("-A FLANNEL-") == 8
            sh(f"{form} -P FORWARD ACCEPT; {form} -t nat -F; {form} -t nat -X; {form} -F; {form} -X")


@inside
def test_legacy_tables_are_looked_at_with_what_the_agent_keeps_and_told_without() -> None:
    with tempfile.TemporaryDirectory() as name:
        fed("iptables-legacy-restore --noflush", OLD.rules())
        pid = os.fork()
        if not pid:
            keep_only_net_admin(legacy=True)
            asyncio.run(taken(Predecessor(Path(name))))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert not left()
        keep_only_net_admin()
        with pytest.raises(Refused) as refused:
            asyncio.run(Predecessor(Path(name)).also())
        assert "CAP_NET_RAW" in refused.value.message


@inside
async def test_rules_that_are_not_taken_back_stay_written_down() -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / predecessor.FILE
        file.write_text("*nat\n:FLANNEL-POSTRTG - [0:0]\n-A FLANNEL-POSTRTG -j NOWHERE\nCOMMIT\n")
        with pytest.raises(Refused) as refused:
            await Predecessor(Path(name)).restore()
        assert refused.value.code == "firewall_refused"
        assert file.exists()
