"""The forward chain of the older iptables, which nft does not see: what it drops, and our rules in it.

By its own program, with its lock. Our rules are known by their comment, as in nftables.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec

from nodeagent.health import diagnosis

PROGRAM, LOCK_WAIT_S = "iptables-legacy", "5"
CHAIN = "FORWARD"
_ENDS = {"-s": "saddr", "-d": "daddr"}
_OPTIONS = {end: option for option, end in _ENDS.items()}
Wanted = tuple[str, str]
"""``saddr`` or ``daddr``, and a CIDR."""


class LegacyRules(msgspec.Struct, frozen=True):
    """``before`` is the place (from 1) of the last rule when that denies everything; 0: it does not."""

    policy_drops: bool
    before: int
    ours: tuple[Wanted, ...]
    program: str
    """Who made chains beside it, in words."""

    @property
    def denies(self) -> bool:
        """Whether it drops or rejects what none of its rules accepts."""
        return self.policy_drops or bool(self.before)

    @property
    def how(self) -> str:
        """By what it denies, in words."""
        return "policy drop" if self.policy_drops else "its last rule drops or rejects the rest"

    def __str__(self) -> str:
        return f"chain {CHAIN} of table ip filter (of {PROGRAM})"


async def look(tag: str) -> LegacyRules | None:
    """The chain as it is; None where there is none, or it may not be looked at.

    Cancelled, it leaves nothing behind.
    """
    return parse(await diagnosis.run_program(f"{PROGRAM}-save", "-t", "filter"), tag)


def parse(saved: str, tag: str) -> LegacyRules | None:
    """The chain, from what iptables-save prints."""
    chains, rules, policy = list[str](), list[list[str]](), ""
    for line in saved.splitlines():
        if line.startswith(":"):
            name, policy_of, *_ = line[1:].split()
            chains.append(name)
            policy = policy_of if name == CHAIN else policy
        elif line.startswith(f"-A {CHAIN} "):
            rules.append(shlex.split(line)[2:])
    if not policy:
        return None
    ours = tuple(wanted for rule in rules if (wanted := _of_ours(rule, tag)) is not None)
    last = rules[-1] if rules else []
    return LegacyRules(
        policy == "DROP", len(rules) if _denies_all(last) else 0, ours, diagnosis.maker_of(chains)
    )


async def write(rules: LegacyRules, wanted: Sequence[Wanted], tag: str) -> None:
    """Make our rules in it these. What came of it the next look tells.

    Cancelled, a part may be written; it may be repeated.
    """
    for one in rules.ours:
        if one not in wanted:
            await _run("-D", CHAIN, *_rule(one, tag))
    for one in wanted:
        if one not in rules.ours:
            now = await look(tag)
            place = ["-I", CHAIN, str(now.before)] if now is not None and now.before else ["-A", CHAIN]
            await _run(*place, *_rule(one, tag))


async def _run(*words: str) -> None:
    await diagnosis.run_program(PROGRAM, "-w", LOCK_WAIT_S, *words)


def _rule(one: Wanted, tag: str) -> list[str]:
    end, cidr = one
    return [_OPTIONS[end], cidr, "-m", "comment", "--comment", tag, "-j", "ACCEPT"]


def _of_ours(words: list[str], tag: str) -> Wanted | None:
    """What a rule of ours accepts; None for anybody else's."""
    if len(words) != 8 or words[0] not in _ENDS or words[2:] != _rule(("saddr", ""), tag)[2:]:
        return None
    return _ENDS[words[0]], words[1]


def _denies_all(words: list[str]) -> bool:
    """Whether a rule drops or rejects whatever comes to it."""
    rest = words[4:] if words[:3] == ["-m", "comment", "--comment"] else words
    return rest[:2] in (["-j", "DROP"], ["-j", "REJECT"]) and (len(rest) == 2 or rest[2] == "--reject-with")
