"""Flannel's own rules on a node that was taken over: they go in the transaction that brings ours, and can come
back.

Flannel keeps them in chains of its own (FLANNEL-POSTRTG, FLANNEL-FWD) or, asked for nftables, in a table of its
own (flannel-ipv4). Its chains are emptied and stay, with the jumps to them, so that flannel finds them when it
is back. FLANNEL-FWD stays as it is where the host's FORWARD chain drops: it is what lets pods' packets through
there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from nodeagent import system
from nodeagent.local_files import write_atomically

FILE = "rules-before-isthmus"
TABLE = "flannel-ipv4"
CHAINS = (("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD"))
TIMEOUT_S = 30.0


async def replacing(state_dir: Path) -> str:
    """What empties flannel's rules, for the end of the transaction that brings ours; empty: there are none.

    Before that they are written down in ``state_dir``, once. Raises OSError, TimeoutError. Cancelled, nothing
    has changed.
    """
    lines = []
    for table, chain in CHAINS:
        listed = await _nft("list", "chain", "ip", table, chain)
        if listed is None or not _rules_in(listed):
            continue
        if chain == "FLANNEL-FWD" and "policy drop" in (
            await _nft("list", "chain", "ip", table, "FORWARD") or ""
        ):
            continue
        lines.append(f"flush chain ip {table} {chain}\n")
    if await _nft("list", "table", "ip", TABLE) is not None:
        lines.append(f"delete table ip {TABLE}\n")
    if lines:
        await _keep(state_dir / FILE)
    return "".join(lines)


def _rules_in(listed: str) -> list[str]:
    """The rules of a listed chain: what is neither its frame nor the chain's own type."""
    lines = [line.strip() for line in listed.splitlines()]
    frame = ("table ", "chain ", "type ", "#", "}")
    return [line for line in lines if line and not line.startswith(frame)]


async def _keep(path: Path) -> None:
    """Flannel's rules as they are now, in the form in which each comes back."""
    own = await _nft("list", "table", "ip", TABLE)
    saved = await _run("iptables-save")
    tables: dict[str, list[str]] = {}
    table = ""
    for line in (saved or "").splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A FLANNEL-"):
            tables.setdefault(table, []).append(line)
    parts = []
    for table, rules in tables.items():
        chains = dict.fromkeys(rule.split()[1] for rule in rules)
        parts += [f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *rules, "COMMIT"]
    if own is None and not parts:
        return
    content = "\n".join([*parts, ""]) + (f"#nft\n{own}" if own is not None else "")
    await asyncio.to_thread(write_atomically, path, content.encode(), durable=True)


async def restore(state_dir: Path) -> bool:
    """Put flannel's rules back as they were; False when none were written down.

    Raises OSError, TimeoutError. Cancelled, it may be repeated.
    """
    path = state_dir / FILE
    if not await asyncio.to_thread(path.exists):
        return False
    iptables, _, own = (await asyncio.to_thread(path.read_text)).partition("#nft\n")
    if iptables.strip():
        await _run("iptables-restore", "--noflush", stdin=iptables)
    if own.strip() and await _nft("list", "table", "ip", TABLE) is None:
        await _nft("-f", "-", stdin=own)
    await asyncio.to_thread(os.unlink, path)
    return True


async def _nft(*arguments: str, stdin: str = "") -> str | None:
    return await _run("nft", *arguments, stdin=stdin)


async def _run(program: str, *arguments: str, stdin: str = "") -> str | None:
    """What it says; None when it is not installed or refuses."""
    found = system.find(program)
    if found is None:
        return None
    ended = await system.run(found, *arguments, stdin=stdin, timeout_s=TIMEOUT_S)
    return ended.out if ended.code == 0 else None
