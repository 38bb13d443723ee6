"""Flannel's own rules on a node that was taken over: they go with the transaction that brings ours, and can
come back.

Flannel keeps them in chains of its own (FLANNEL-POSTRTG, FLANNEL-FWD), written by iptables in one of its two
forms (nf_tables or legacy), or, asked for nftables, in a table of its own (flannel-ipv4). Its chains are
emptied and stay, with the jumps to them, so that flannel finds them when it is back. What nftables knows goes
in the very transaction that brings ours. Legacy tables are another part of the kernel, which no such
transaction reaches: each is replaced as a whole right behind it, and until then both judge alike. FLANNEL-FWD
stays as it is where the FORWARD chain of its kind drops: it is what lets pods' packets through there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

from events.errors import Refused
from nodeagent import system
from nodeagent.local_files import write_atomically

FILE = "rules-before-isthmus"
TABLE = "flannel-ipv4"
CHAINS = {"FLANNEL-POSTRTG": "nat", "FLANNEL-FWD": "filter"}
LEGACY_TABLES = Path("/proc/net/ip_tables_names")
TIMEOUT_S = 30.0
LOCK_WAIT_S = "10"
"""How long to wait for the lock of legacy tables, which kube-proxy holds at times."""


class _Form(NamedTuple):
    """One form of iptables: what its version says, and where its rules stand in the file."""

    word: str
    suffix: str
    mark: str


NF_TABLES, LEGACY = _Form("nf_tables", "nft", ""), _Form("legacy", "legacy", "#legacy\n")
OWN_MARK = "#nft\n"


class Predecessor:
    """Flannel's rules on this node; before any goes, all are written down in ``state_dir``."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE

    async def also(self) -> str:
        """What empties flannel's rules, for the end of the transaction that brings ours; empty: there are none.

        Raises OSError, TimeoutError, Refused(firewall_refused). Cancelled, nothing has changed.
        """
        saved = {form: await _saved(form) for form in (NF_TABLES, LEGACY)}
        own = await _nft("list", "table", "ip", TABLE)
        if own is None and not any(_going(text) for text in saved.values()):
            return ""
        await self._keep(saved, own or "")
        lines = [f"flush chain ip {CHAINS[chain]} {chain}\n" for chain in _going(saved[NF_TABLES])]
        return "".join(lines) + (f"delete table ip {TABLE}\n" if own is not None else "")

    async def after(self) -> None:
        """What that transaction could not reach. Raises OSError, TimeoutError, Refused(firewall_refused).

        Cancelled, it may be repeated.
        """
        going = _going(await _saved(LEGACY))
        if going:
            emptied = [f"*{CHAINS[chain]}\n:{chain} - [0:0]\nCOMMIT\n" for chain in going]
            await _restore(LEGACY, "".join(emptied))

    async def restore(self) -> bool:
        """Put flannel's rules back as they were; False when none were written down.

        Raises OSError, TimeoutError, Refused(firewall_refused). Cancelled, it may be repeated.
        """
        if not await asyncio.to_thread(self._path.exists):
            return False
        tables, legacy, own = _sections(await asyncio.to_thread(self._path.read_text))
        for form, text in ((NF_TABLES, tables), (LEGACY, legacy)):
            if text.strip():
                await _restore(form, text)
        if own.strip() and await _nft("list", "table", "ip", TABLE) is None:
            ended = await _run("nft", "-f", "-", stdin=own)
            if ended is None or ended.code:
                raise _refused("nft", ended)
        await asyncio.to_thread(os.unlink, self._path)
        return True

    async def _keep(self, saved: dict[_Form, str], own: str) -> None:
        """Flannel's rules as they are now; what went before a kill is in the file already, and stays there."""
        known = {form: _parts(text) for form, text in saved.items()}
        if await asyncio.to_thread(self._path.exists):
            tables, legacy, before = _sections(await asyncio.to_thread(self._path.read_text))
            known = {NF_TABLES: known[NF_TABLES] or tables, LEGACY: known[LEGACY] or legacy}
            own = own or before
        marked = [form.mark + text for form, text in known.items() if text]
        content = "".join(marked) + (OWN_MARK + own if own else "")
        await asyncio.to_thread(write_atomically, self._path, content.encode(), durable=True)


def _parts(saved: str) -> str:
    """Flannel's chains in the form in which iptables-restore takes them; empty: there are none."""
    rules = _rules(saved)
    return "".join(
        "\n".join([f"*{table}", f":{chain} - [0:0]", *rules[chain], "COMMIT", ""])
        for chain, table in CHAINS.items()
        if chain in rules
    )


def _sections(content: str) -> tuple[str, str, str]:
    """What the file holds for iptables on nf_tables, for legacy iptables, and for nft."""
    rest, _, own = content.partition(OWN_MARK)
    tables, _, legacy = rest.partition(LEGACY.mark)
    return tables, legacy, own


def _rules(saved: str) -> dict[str, list[str]]:
    """Flannel's chains that have rules, in what iptables-save prints."""
    found: dict[str, list[str]] = {}
    for line in saved.splitlines():
        words = line.split(None, 2)
        if len(words) > 2 and words[0] == "-A" and words[1] in CHAINS:
            found.setdefault(words[1], []).append(line)
    return found


def _going(saved: str) -> list[str]:
    """The chains to empty."""
    drops = any(line.startswith(":FORWARD DROP") for line in saved.splitlines())
    return [chain for chain in _rules(saved) if not (drops and chain == "FLANNEL-FWD")]


async def _saved(form: _Form) -> str:
    """The rules that this form of iptables has; empty when it is not installed, or has none.

    Raises Refused(firewall_refused) when there are legacy tables and this process may not look at them.
    """
    program = await _program(form, "save")
    ended = await _run(program) if program else None
    if ended is not None and ended.code and form is LEGACY and await asyncio.to_thread(_legacy_tables):
        raise Refused(
            "firewall_refused",
            f"this node has tables of legacy iptables, in which flannel's rules may be, and {program} did not "
            f"show them: {ended.err.strip()[-200:]}. It needs CAP_NET_RAW: add it to the agent's unit "
            f"(AmbientCapabilities=CAP_NET_RAW and CapabilityBoundingSet=CAP_NET_RAW)",
        )
    return ended.out if ended is not None and not ended.code else ""


def _legacy_tables() -> bool:
    """Whether the kernel has any; when it does not say so, there may be some."""
    try:
        return bool(LEGACY_TABLES.read_text().strip())
    except FileNotFoundError:
        return False
    except OSError:
        return True


async def _restore(form: _Form, text: str) -> None:
    program = await _program(form, "restore")
    ended = await _run(program, "--noflush", "--wait", LOCK_WAIT_S, stdin=text) if program else None
    if ended is None or ended.code:
        raise _refused(program or f"iptables-{form.suffix}-restore", ended)


async def _program(form: _Form, verb: str) -> str:
    """The program of this form: by its own name, or the plain one where that is of this form; empty: none."""
    own, plain = f"iptables-{form.suffix}-{verb}", f"iptables-{verb}"
    if system.find(own) is not None:
        return own
    ended = await _run(plain, "--version")
    if ended is None:
        return ""
    # Before 1.8 there was one form only, and it said none.
    is_nft = NF_TABLES.word in ended.out
    return plain if is_nft == (form is NF_TABLES) else ""


async def _nft(*arguments: str) -> str | None:
    """What it says; None when it is not installed or refuses."""
    ended = await _run("nft", *arguments)
    return ended.out if ended is not None and not ended.code else None


async def _run(program: str, *arguments: str, stdin: str = "") -> system.Completed | None:
    """How it ended; None when it is not installed."""
    found = system.find(program)
    return None if found is None else await system.run(found, *arguments, stdin=stdin, timeout_s=TIMEOUT_S)


def _refused(program: str, ended: system.Completed | None) -> Refused:
    said = "it is not installed" if ended is None else ended.err.strip()[-300:] or f"exit code {ended.code}"
    return Refused(
        "firewall_refused",
        f"flannel's rules: {program} did not take them: {said}. They are kept in {FILE}; repeat it when that "
        f"is mended",
    )
